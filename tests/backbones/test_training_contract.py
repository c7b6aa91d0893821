"""What PyTorch lets people do around a training step, with every family: gradients are those of plain modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from helpers.agreement import build, error, gradient_error, gradients, image, loss_of
from helpers.toys import TOYS, only
from mm_vitbackbones.ops import context

each_toy = pytest.mark.parametrize("toy", TOYS)
FORMS = {"cpu": ("cpu", "nothing"), "cuda-least": ("cuda", "all_but_attention"), "cuda-all": ("cuda", "all")}
"""A device, and what the backward pass computes again."""
each_form = pytest.mark.parametrize(("device", "with_cp"), FORMS.values(), ids=FORMS.keys())


@each_toy
@each_form
def test_functional_calls_train_the_weights_that_they_are_given(toy: str, device: str, with_cp: str) -> None:
    network, x = build(toy, with_cp=with_cp).train(), image(33, 40)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1).add_(0.01)
    given = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    with context.pretend_device(device):
        loss_of(torch.func.functional_call(network, given, (x,))).backward()
        loss_of(other(x)).backward()
    expected = [x, *(p.grad for p in other.parameters())]
    assert gradient_error([x, *(p.grad for p in given.values())], expected) < 1e-5
    assert all(p.grad is None for p in network.parameters())


@each_toy
@pytest.mark.parametrize(("device", "mode"), [("cuda", torch.enable_grad), ("cpu", torch.no_grad)])
def test_forward_mode_gives_the_slope_that_gradients_have(toy: str, device: str, mode: type) -> None:
    network, x = build(toy).eval(), image(33, 40).requires_grad_()
    (grad,) = torch.autograd.grad(loss_of(network(x)), x)
    way = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    # PyTorch's other kernels of attention have no forward mode.
    with context.pretend_device(device), sdpa_kernel(SDPBackend.MATH), mode(), forward_ad.dual_level():
        slope = forward_ad.unpack_dual(loss_of(network(forward_ad.make_dual(x.detach(), way)))).tangent
    expected = (grad * way).sum()
    assert abs(float(slope.detach() - expected)) < 1e-3 * float((grad * way).norm())


@each_toy
def test_several_sets_of_weights_are_one_call_under_vmap(toy: str) -> None:
    network, x = build(toy).eval(), image(33, 40)
    sets = {name: torch.stack([p.detach(), 1.1 * p.detach()]) for name, p in network.named_parameters()}
    with context.pretend_device("cuda"), torch.no_grad():
        with sdpa_kernel(SDPBackend.MATH):
            found = torch.func.vmap(lambda weights: torch.func.functional_call(network, weights, (x,)))(sets)
        for i in range(2):
            weights = {name: both[i] for name, both in sets.items()}
            assert error([m[i] for m in found], torch.func.functional_call(network, weights, (x,))) < 1e-5


@each_toy
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_features_that_are_written_into_give_right_gradients_or_an_error(toy: str, device: str) -> None:
    network, x = build(toy).train(), image(33, 40)
    with context.pretend_device(device):
        for index in range(4):
            found = []
            for write in (Tensor.mul, Tensor.mul_):
                network.zero_grad(set_to_none=True)
                grids = [level.grid for level in network.features(x)]
                try:
                    grids[index] = write(grids[index], 2)
                    loss_of(grids).backward()
                except RuntimeError as refusal:
                    assert "inplace" in str(refusal)  # noqa: PT017
                else:
                    found.append([x, *(p.grad for p in network.parameters())])
            assert gradient_error(found[-1], found[0]) < 1e-5


@each_toy
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_batch_without_images_has_maps_without_images(toy: str, device: str) -> None:
    network, x = build(toy), torch.empty(0, 3, 33, 40, requires_grad=True)
    with context.pretend_device(device):
        with torch.no_grad():
            maps = network.eval()(image(33, 40))
            assert [m.shape[1:] for m in network(x)] == [m.shape[1:] for m in maps]
        loss_of(network.train()(x)).backward()
    assert not any(p.grad.any() for p in network.parameters() if p.grad is not None)


@each_toy
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_backward_pass_inside_autocast_has_the_types_of_its_forward_pass(toy: str, device: str) -> None:
    network = build(toy).train()
    expected = gradients(network, image(33, 40))
    network.zero_grad()
    x = image(33, 40).requires_grad_()
    with context.pretend_device(device):
        loss = loss_of(network(x))
        with torch.autocast("cpu", torch.bfloat16):
            loss.backward()
    assert gradient_error([x.grad, *(p.grad for p in network.parameters())], expected) < 0.1


@each_toy
@pytest.mark.parametrize(("device", "with_cp"), [FORMS["cpu"], FORMS["cuda-least"]], ids=["cpu", "cuda-least"])
def test_what_is_written_into_before_the_backward_pass_gives_no_wrong_gradient(
    toy: str, device: str, with_cp: str
) -> None:
    network, x = build(toy, with_cp=with_cp).train(), image(33, 40)
    names = [name for name, p in network.named_parameters() if name.endswith(("proj.weight", "fc2.weight"))]
    with context.pretend_device(device):
        loss_of(network(x)).backward()
        expected = [x, *(p.grad for p in network.parameters())]
        for written in (x, *map(network.get_parameter, (names[-1], names[len(names) // 2]))):
            network.zero_grad(set_to_none=True)
            loss, before = loss_of(network(x)), written.detach().clone()
            with torch.no_grad():
                written.add_(1)
            try:
                loss.backward()
            except RuntimeError as refusal:
                assert "inplace" in str(refusal)  # noqa: PT017
            else:
                assert gradient_error([x, *(p.grad for p in network.parameters())], [x, *expected[1:]]) < 1e-5
            with torch.no_grad():
                written.copy_(before)


@only("vit")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_compiled_gradient_of_a_function_call_is_that_without_the_compiler(toy: str, device: str) -> None:
    torch._dynamo.reset()
    network, x = build(toy).train(), image(33, 40)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return loss_of(torch.func.functional_call(network, parameters, (x,)))

    parameters = {name: p.detach() for name, p in network.named_parameters()}
    expected = torch.func.grad(loss)(parameters)
    with context.pretend_device(device), sdpa_kernel(SDPBackend.MATH):
        found = torch.compile(torch.func.grad(loss), backend="eager")(parameters)
    assert gradient_error([x, *found.values()], [x, *expected.values()]) < 1e-5
