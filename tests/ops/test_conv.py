"""Convolutions over grids: both forms equal PyTorch's, their weights are plain parameters, and one thing is copied."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.official import relative_error
from mm_vitbackbones.layers import ChannelsLastConv2d, Upsample2x
from mm_vitbackbones.measuring import OperatorCount
from mm_vitbackbones.ops import context, conv, norm
from mm_vitbackbones.ops.kernels import registration

# kernel, stride, padding, groups, sides
SHAPES = [
    (2, 2, 0, 1, (5, 6)),
    (8, 8, 0, 1, (17, 16)),
    (3, 2, 1, 1, (5, 6)),
    (7, 4, 3, 1, (9, 13)),
    (1, 1, 0, 1, (3, 3)),
    (3, 1, 1, 1, (4, 4)),
    (3, 1, 1, 6, (4, 5)),
]


def results(module, function, grid):
    module.zero_grad()
    grid = grid.clone().requires_grad_()
    out = function(grid)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [out.detach(), grid.grad, *(p.grad.clone() for p in module.parameters())]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("images", [1, 40], ids=["patches", "weight"])
def test_a_convolution_over_grids_is_pytorchs(shape, images):
    torch.manual_seed(0)
    kernel, stride, padding, groups, sides = shape
    ours = ChannelsLastConv2d(6, 48, kernel, stride, padding, groups=groups).double()
    theirs = nn.Conv2d(6, 48, kernel, stride, padding, groups=groups).double()
    theirs.load_state_dict(ours.state_dict())
    grid = torch.randn(images, *sides, 6, dtype=torch.float64)
    expected = results(theirs, lambda x: theirs(x.permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1), grid)
    for a, b in zip(results(ours, ours, grid), expected, strict=True):
        assert relative_error(a, b) <= 1e-12
    assert ours(grid).is_contiguous()
    assert all(p.is_contiguous() for p in ours.parameters())


def test_the_smaller_thing_is_copied():
    module = ChannelsLastConv2d(6, 48, 2, 2)
    with torch.no_grad():
        assert conv.over_patches(torch.randn(1, 8, 8, 6), module) is not None  # 16 patches for 48 filters
        assert conv.over_patches(torch.randn(1, 14, 14, 6), module) is None  # 49
        with context.pretend_device("cuda"):
            assert conv.over_patches(torch.randn(1, 8, 8, 6), module) is None


@pytest.mark.parametrize("places", [(2, 2, 0), (3, 2, 1)], ids=str)
def test_gradients_of_the_gradients_of_patches(places):
    kernel, stride, padding = ((side, side) for side in places)
    patches = conv.Places(kernel, stride, padding).patches
    grid = torch.randn(1, 5, 6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(patches, grid)
    assert torch.autograd.gradgradcheck(patches, grid)


def test_the_gradient_of_a_depthwise_weight_has_its_strides():
    module, grid = ChannelsLastConv2d(8, 8, 3, padding=1, groups=8), torch.randn(1, 5, 5, 8)
    module(grid).sum().backward()
    assert module.weight.grad.stride() == module.weight.stride()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_map_in_pytorchs_usual_order_gives_a_contiguous_grid(channels):
    module = ChannelsLastConv2d(channels, 8, 3, padding=1)
    assert module(torch.randn(2, channels, 40, 40).permute(0, 2, 3, 1)).is_contiguous()


def test_windows_together_see_what_each_of_them_sees():
    torch.manual_seed(0)
    convs = [ChannelsLastConv2d(4, 4, side, padding=side // 2, groups=4) for side in (3, 5)]
    grid = torch.randn(2, 6, 7, 8)
    expected = torch.cat([module(part) for module, part in zip(convs, grid.chunk(2, -1), strict=True)], -1)
    torch.testing.assert_close(conv.depthwise(grid, *conv.windows(convs)), expected, rtol=1e-5, atol=1e-6)
    with context.pretend_device("cuda"), registration.forced(False), torch.autocast("cpu", torch.bfloat16):
        several = conv.windows(convs)
        assert [x.shape[-1] for x in several[0]] == [3, 5]  # one window of 5 for all would take longer there
        assert {x.dtype for group in several for x in group} == {torch.bfloat16}
    several = [[x.float() for x in group] for group in several]
    torch.testing.assert_close(conv.depthwise(grid, *several), expected, rtol=2e-2, atol=2e-2)
    convs[0].register_forward_hook(lambda *_: None)
    assert conv.windows(convs) is None


def test_upsampling_makes_four_cells_of_each():
    torch.manual_seed(1)
    upsample, grid = Upsample2x(4), torch.randn(2, 3, 5, 4)
    out = upsample(grid)
    assert out.shape == (2, 6, 10, 4)
    for i in (0, 1):
        for j in (0, 1):
            cells = grid @ upsample.weight[:, :, i, j] + upsample.bias
            torch.testing.assert_close(out[:, i::2, j::2], cells, rtol=1e-5, atol=1e-6)


# ---- with batch norms


def convs_and_norms(affine=True, bias=False):
    torch.manual_seed(3)
    convs = [ChannelsLastConv2d(a, b, 3, 2, 1, bias=bias) for a, b in ((3, 8), (8, 16))]
    norms = [nn.BatchNorm2d(width, affine=affine) for width in (8, 16)]
    for part in norms:
        for tensor in part.state_dict().values():
            if tensor.is_floating_point():
                nn.init.uniform_(tensor, 0.5, 2)
    return convs, [part.eval() for part in norms]


def written_out(grid, convs, norms):
    maps = norms[0](convs[0](grid).permute(0, 3, 1, 2))
    return norms[1](convs[1](F.gelu(maps).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@torch.no_grad()
def test_convolutions_take_in_their_batch_norms_in_inference(affine, bias):
    convs, norms = convs_and_norms(affine, bias)
    grid = torch.randn(2, 40, 24, 3)
    with OperatorCount() as count:
        out = norm.convs_and_norms(grid, convs, norms)
    assert relative_error(out, written_out(grid, convs, norms)) <= 1e-5
    assert not {"aten.native_batch_norm", "aten.gelu"} & set(count.by_name)
    assert out.is_contiguous()


def another_class(convs, norms):
    norms[1] = nn.SyncBatchNorm.convert_sync_batchnorm(norms[1])


def with_a_hook(convs, norms):
    norms[0].register_forward_hook(lambda _, __, out: out * 2)


def of_the_batch(convs, norms):
    norms[1].train()


def reflecting(convs, norms):
    convs[1].padding_mode = "reflect"
    convs[1]._reversed_padding_repeated_twice = [1, 1, 1, 1]


@pytest.mark.parametrize("change", [another_class, with_a_hook, of_the_batch, reflecting], ids=lambda f: f.__name__)
@torch.no_grad()
def test_other_batch_norms_and_convolutions_are_called(change):
    convs, norms = convs_and_norms()
    grid = torch.randn(2, 40, 24, 3)
    before = norm.convs_and_norms(grid, convs, norms)
    change(convs, norms)
    expected = written_out(grid, copy.deepcopy(convs), copy.deepcopy(norms))
    assert relative_error(norm.convs_and_norms(grid, convs, norms), expected) <= 1e-5
    assert change is another_class or relative_error(expected, before) > 0.01
    assert norms[1].num_batches_tracked == (change is of_the_batch)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("options", [{"stride": 2, "padding": 1}, {"dilation": 2}, {"groups": 2}, {"padding": "same"}])
def test_on_cuda_a_convolution_over_a_grid_has_the_value_and_gradients_of_that_of_maps(grad, options):
    module, grid = ChannelsLastConv2d(6, 4, 3, **options), torch.randn(2, 9, 8, 6, requires_grad=True)
    plain = nn.Conv2d(6, 4, 3, **options)
    plain.load_state_dict(module.state_dict())
    with context.pretend_device("cuda"), torch.set_grad_enabled(grad):
        found = module(grid)
    expected = plain(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, expected)
    if grad:
        pairs = (found, [grid, *module.parameters()]), (expected, [grid, *plain.parameters()])
        ours, theirs = (torch.autograd.grad(y.square().sum(), wanted) for y, wanted in pairs)
        torch.testing.assert_close(ours, theirs)


class Framed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ChannelsLastConv2d(2, 2, k, padding=k // 2, groups=2) for k in (3, 5))

    def forward(self, grid: Tensor) -> Tensor:
        if (one := conv.windows([*self.convs])) is not None:
            return conv.depthwise(grid, *one)
        return torch.cat([each(part) for each, part in zip(self.convs, grid.split(2, -1), strict=True)], -1)


@pytest.mark.parametrize("hooked", [False, True])
def test_an_export_holds_several_windows_as_one_convolution_unless_one_is_observed(hooked: bool) -> None:
    module, grid = Framed(), torch.randn(1, 6, 5, 4)
    expected = module(grid)
    if hooked:
        module.convs[1].register_forward_hook(lambda _, __, out: 2 * out)
        expected = torch.cat((expected[..., :2], 2 * expected[..., 2:]), -1)
    program = torch.export.export(module, (grid,))
    assert sum(node.target is torch.ops.aten.conv2d.default for node in program.graph.nodes) == 1 + hooked
    torch.testing.assert_close(program.module()(grid), expected)
