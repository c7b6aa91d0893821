"""How tests of what users attach to a network run it: toys with random weights, modes, and how far results differ."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from helpers.toys import TOYS
from mm_vitbackbones.backbones import Backbone


@contextmanager
def narrow_bands() -> Iterator[None]:
    """Inference in which what runs in bands takes many of them, as in large images."""
    modules = [m for name, m in sys.modules.items() if name.startswith("mm_vitbackbones.") and hasattr(m, "BAND_BYTES")]
    assert modules, "no module has BAND_BYTES, the size of a band: name here what it is called now"
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for module in modules:
            stack.enter_context(mock.patch.object(module, "BAND_BYTES", 2**14))
            if hasattr(module, "FEWEST_QUERIES"):
                stack.enter_context(mock.patch.object(module, "FEWEST_QUERIES", 1))
        yield


def bf16() -> AbstractContextManager:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@contextmanager
def bf16_inference() -> Iterator[None]:
    with torch.no_grad(), bf16():
        yield


@dataclass(frozen=True)
class Mode:
    """A way to run a network."""

    context: Callable[[], AbstractContextManager]
    tolerance: float = 1e-4
    """How far two right results may differ, see ``difference``."""
    training: bool = False
    gradients: Callable[[], AbstractContextManager] = nullcontext
    """The same with gradients, in eval mode."""


MODES = {
    "inference": Mode(torch.no_grad),
    "inference_in_bands": Mode(narrow_bands),
    "training": Mode(torch.enable_grad, training=True),
    "bf16": Mode(bf16_inference, tolerance=0.04, gradients=bf16),
}


def random_image() -> Tensor:
    """Its grids fill neither patches nor windows."""
    return torch.randn(2, 3, 70, 76, generator=torch.Generator().manual_seed(0))


def random_network(toy: str, seed: int = 0, **arguments: Any) -> Backbone:
    """A toy in eval mode in which everything matters: no weight is near its initial value, and no path is dropped."""
    return drawn(toy, seed, **arguments) if arguments else copy.deepcopy(kept(toy, seed))


@cache
def kept(toy: str, seed: int) -> Backbone:
    """One that nobody runs or changes. Its copies take half the time."""
    return drawn(toy, seed)


def drawn(toy: str, seed: int, **arguments: Any) -> Backbone:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = TOYS[toy](drop_path_rate=0.0, **arguments).eval()
        for p in network.parameters():
            if p.dim() == 1:
                p.add_(0.3 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * (0.5 if p.shape[0] == 1 else p[0].numel() ** -0.5))
    return network


def run(network: nn.Module, mode: Mode) -> list[Tensor]:
    """The network's maps; in training, the gradient of the image as well, and those of all parameters are in place."""
    network.train(mode.training)
    network.zero_grad()
    for module in network.modules():
        if isinstance(module, ParametrizationList):
            module.eval()  # the spectral norm would take a step at each use
    image = random_image().requires_grad_(mode.training)
    with mode.context():
        maps = network(image)
    if not mode.training:
        return [*maps]
    loss = sum((m * torch.linspace(-1, 1, m.numel()).view_as(m)).sum() for m in maps)
    loss.backward()
    return [*(m.detach() for m in maps), image.grad]


@cache
def run_plain(toy: str, mode: Mode) -> list[Tensor]:
    """``run`` of a toy as it is."""
    return run(random_network(toy), mode)


def difference(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative distance of any two tensors: 0 for equal ones, about 1 for those that differ completely."""
    return max(float((a.float() - e.float()).norm() / e.float().norm()) for a, e in zip(actual, expected, strict=True))


def names_of(network: nn.Module, kinds: type | tuple[type, ...], within: str = "") -> list[str]:
    """The modules of these kinds, with ``within`` in the name of a module that they are a part of."""
    named = [name for name, module in network.named_modules() if isinstance(module, kinds)]
    return [name for name in named if any(within in part for part in ("", *name.split(".")[:-1]))]


def put(network: nn.Module, name: str, module: nn.Module) -> None:
    """``module`` in the place of that name."""
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)


def same_linear(module: nn.Module, inputs: int) -> nn.Linear:
    """The plain linear map that equals an affine module; ``origin`` is how it came from the module's parameters."""
    zero, rows = module(torch.zeros(1, inputs)), module(torch.eye(inputs))
    linear = nn.Linear(inputs, zero.shape[1])
    linear.origin = (rows - zero).mT, zero[0]
    with torch.no_grad():
        linear.weight.copy_(linear.origin[0])
        linear.bias.copy_(linear.origin[1])
    return linear


def check_linears(attached: nn.Module, names: Sequence[str], toy: str, mode: Mode) -> None:
    """That a toy in whose linears of these names something else is, or which something is attached to, gives what one
    with the equal plain linears gives, and something else than before.

    In training, the gradients of all that is attached have to be those of the equal linears by the chain rule.
    """
    equal = random_network(toy)
    for name in names:
        inputs = equal.get_submodule(name).in_features
        put(equal, name, same_linear(attached.get_submodule(name), inputs))
    expected = run(equal, mode)
    effect, error = (difference(x, expected) for x in (run_plain(toy, mode), run(attached, mode)))
    assert effect > 5 * mode.tolerance, f"it makes a difference of {effect:.2g} only"
    assert error < mode.tolerance, f"differs by {error:.2g} from the equal linears"
    for name in names if mode.training else ():
        linear = equal.get_submodule(name)
        parameters = [p for p in attached.get_submodule(name).parameters() if p.requires_grad]
        assert all(p.grad is not None for p in parameters), f"a parameter of {name} has no gradient"
        gradients = torch.autograd.grad(linear.origin, parameters, (linear.weight.grad, linear.bias.grad))
        flat = [torch.cat([g.flatten() for g in grads]) for grads in ([p.grad for p in parameters], gradients)]
        error = difference(flat[:1], flat[1:])
        assert error < 1e-3, f"the gradients of {name} differ by {error:.2g}"
