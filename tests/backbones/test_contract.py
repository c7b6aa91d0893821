"""The contract that every registered family keeps, over all published variants or, where it costs, toy sizes."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import statistics
from functools import cache

import pytest
import torch
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch.utils._pytree import tree_leaves

from helpers.agreement import error
from helpers.counting import counted_together
from helpers.families import blocks_of
from helpers.toys import BY_FAMILY, TOYS, different_toys, only
from helpers.toys.pit import PIT
from mm_vitbackbones.backbones import PVT, Backbone, CoaT, MViTv2, PiT, PVTv2
from mm_vitbackbones.backbones.base import Level, Part
from mm_vitbackbones.backbones.columnar import ColumnarBackbone
from mm_vitbackbones.build import families
from mm_vitbackbones.layers import DropPath, Recomputable
from mm_vitbackbones.measuring import multiply_adds
from mm_vitbackbones.ops import memory
from mm_vitbackbones.registry import BACKBONES, MODELS

VARIANTS = [(family, arch) for family in families().values() for arch in family.archs]
toys = pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS.keys())

SUBSETS = [subset for n in (1, 2, 3, 4) for subset in itertools.combinations(range(4), n)]


def total(outputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """A loss that reaches every output, and every element of it differently."""
    return sum((o * torch.linspace(-1, 1, o.numel()).view_as(o)).sum() for o in outputs)


def test_every_family_has_a_toy():
    assert {name: family.network for name, family in BY_FAMILY.items()} == families()
    for family in BY_FAMILY.values():
        assert {toy.family for toy in family.toys.values()} == {family.network}
        assert family.parameters.keys() == family.network.archs.keys()


@cache
def on_meta(family: type[Backbone], arch: str) -> Backbone:
    with torch.device("meta"):
        return family(arch=arch)


variants = pytest.mark.parametrize(("family", "arch"), VARIANTS, ids=lambda v: getattr(v, "__name__", v))


@variants
def test_parameter_counts_are_the_official_ones(family, arch):
    parameters = on_meta(family, arch).parameters()
    assert sum(p.numel() for p in parameters) == BY_FAMILY[family.__name__].parameters[arch]


@variants
def test_declared_sizes_of_every_variant(family, arch):
    backbone, outputs = on_meta(family, arch), []
    with counted_together(), torch.device("meta"):  # counting works out the sizes that equal operators give once
        multiply_adds(lambda: outputs.extend(backbone(torch.empty(1, 3, 230, 33))))
    expected = [
        (1, c, math.ceil(230 / s), math.ceil(33 / s)) for c, s in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert [tuple(o.shape) for o in outputs] == expected


@toys
@pytest.mark.parametrize("size", [(32, 32), (33, 63), (64, 96), (65, 130), (127, 45), (448, 448)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_levels_of_any_image_size_are_contiguous_and_finite(toy, size, batch):
    backbone = toy().eval()
    image = torch.randn(batch, 3, *size)
    with torch.no_grad():
        outputs = backbone(image)
    expected = [
        (batch, c, *(math.ceil(n / s) for n in size)) for c, s in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert [tuple(o.shape) for o in outputs] == expected
    for output in outputs:
        assert output.is_contiguous()
        assert torch.isfinite(output).all()


@toys
def test_batch_entries_are_independent(toy):
    backbone = toy().eval()
    images = torch.randn(3, 3, 70, 90)
    with torch.no_grad():
        together = backbone(images)
        apart = [backbone(image[None]) for image in images]
    for level, batched in enumerate(together):
        torch.testing.assert_close(batched, torch.cat([outputs[level] for outputs in apart]), rtol=1e-4, atol=1e-5)


@toys
@pytest.mark.parametrize("out_indices", SUBSETS, ids=str)
def test_subsets_use_every_parameter(toy, out_indices):
    torch.manual_seed(0)
    backbone = toy(out_indices=out_indices, drop_path_rate=0.0)
    outputs = backbone(torch.randn(2, 3, 64, 64))
    assert len(outputs) == len(out_indices) == len(backbone.channels) == len(backbone.strides)
    assert [o.shape[1] for o in outputs] == [*backbone.channels]
    total(outputs).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters())


@toys
def test_gradients_of_one_image_lie_in_memory_as_their_parameters(toy):
    """Otherwise DDP warns, and copies them more slowly."""
    network = toy(drop_path_rate=0.0).train()
    sum(level.sum() for level in network(torch.randn(1, 3, 64, 70))).backward()
    strides = {name: (p.grad.stride(), p.stride()) for name, p in network.named_parameters()}
    assert {name: pair for name, pair in strides.items() if pair[0] != pair[1]} == {}


@toys
def test_subset_equals_the_levels_of_all(toy):
    torch.manual_seed(1)
    full, part = toy().eval(), toy(out_indices=(0, 2)).eval()
    part.load_state_dict({k: v for k, v in full.state_dict().items() if k in part.state_dict()})
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(part(image), [full(image)[i] for i in (0, 2)], strict=True):
            assert torch.equal(a, b)


@toys
@pytest.mark.parametrize("frozen_stages", range(-1, 5))
def test_frozen_stages_get_no_gradients_and_stay_in_eval_mode(toy, frozen_stages):
    backbone = toy(frozen_stages=frozen_stages)
    for _ in range(2):
        frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
        names = [name for name, _ in backbone.named_parameters()]
        stem = {n for n in names if n.startswith(("stages.0.patch_embed", "stages.0.position", "stem."))}
        stages = {n for n in names if n.startswith(("stages.", "blocks.")) and int(n.split(".")[1]) < frozen_stages}
        # What follows the last stage, PiT's upsampling, CoaT's parallel blocks and the norm of ViT, is frozen with it.
        last = {n for n in names if n.startswith(("upsample.", "parallel_blocks.", "norm.")) and frozen_stages == 4}
        assert frozen == (set() if frozen_stages == -1 else stem | stages | last)
        assert backbone.train() is backbone
        for part in blocks_of(backbone):
            assert part.modules[0].training == (part.stage >= frozen_stages)
    image = torch.randn(1, 3, 64, 64)
    if frozen_stages < 4:
        total(backbone(image)).backward()
        assert all((p.grad is None) != p.requires_grad for p in backbone.parameters())


def test_norm_eval_keeps_batch_norms_in_eval():
    class WithBatchNorm(Backbone):
        def __init__(self, norm_eval):
            super().__init__((4,), 3, (0,), -1, norm_eval, False, None)
            self.norm = nn.BatchNorm2d(3)

        def levels(self, image):
            yield Level(self.norm(image).permute(0, 2, 3, 1))

        def parts(self):
            return [Part((self.norm,), 0, "open")]

    assert not WithBatchNorm(norm_eval=True).train().norm.training
    assert WithBatchNorm(norm_eval=False).train().norm.training


@toys
@pytest.mark.parametrize("with_cp", ["all_but_attention", "all"])
def test_checkpointing_changes_neither_output_nor_gradient(toy, with_cp):
    torch.manual_seed(2)
    plain = toy(drop_path_rate=0.3).train()
    saving = toy(drop_path_rate=0.3, with_cp=with_cp).train()
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 70, 64)
    results = []
    for backbone in (plain, saving):
        torch.manual_seed(3)  # of drop path
        outputs = backbone(image)
        total(outputs).backward()
        results.append((outputs, [p.grad for p in backbone.parameters()]))
    for a, b in zip(results[0][0], results[1][0], strict=True):
        assert torch.equal(a, b)
    for (name, _), a, b in zip(plain.named_parameters(), results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("with_cp", "recompute"),
    [
        (False, memory.NOTHING),
        ("nothing", memory.NOTHING),
        ("ffn", memory.ALL_BUT_ATTENTION),
        ("all_but_attention", memory.ALL_BUT_ATTENTION),
        (True, memory.ALL),
        ("block", memory.ALL),
        ("all", memory.ALL),
    ],
)
def test_words_of_with_cp(with_cp, recompute):
    backbone = TOYS["mit"](with_cp=with_cp)
    assert {module.recompute for module in backbone.modules() if isinstance(module, Recomputable)} == {recompute}


@toys
@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 3)], ids=str)
def test_features_are_the_maps_as_grids_with_class_tokens(toy, out_indices):
    torch.manual_seed(3)
    backbone, image = toy(out_indices=out_indices).eval(), torch.randn(2, 3, 70, 90)
    with torch.no_grad():
        maps, levels = backbone(image), backbone.features(image)
    for level, expected in zip(levels, maps, strict=True):
        assert torch.equal(level.grid.permute(0, 3, 1, 2), expected)
        if isinstance(backbone, (PiT, CoaT)) or getattr(backbone, "num_tokens", 0):
            count = getattr(backbone, "num_tokens", None) or getattr(backbone.arch, "num_tokens", 1)
            assert level.class_tokens.shape == (2, count, expected.shape[1])
        else:
            assert level.class_tokens is None


@toys
def test_features_of_blocks_are_what_the_blocks_give(toy):
    torch.manual_seed(3)
    backbone, image = toy().eval(), torch.randn(2, 3, 70, 90)
    blocks = [part for part in backbone.parts() if part.kind == "block"]
    before = [block.modules[0]._forward_hooks.copy() for block in blocks]
    with torch.no_grad():
        every = backbone.features(image, blocks=range(len(blocks)))
        last, first = backbone.features(image, blocks=[-1])[-1], backbone.features(image, blocks=[0])[0]
        levels = [*backbone.levels(image)]
    assert torch.equal(first.grid, every[0].grid)
    assert torch.equal(last.grid, every[-1].grid)
    assert len(every) == len(blocks) + 2 * getattr(backbone.arch, "parallel_depth", 0)
    sides = {level.grid.shape[1:3] for level in levels}
    if isinstance(backbone, PiT):
        sides -= {levels[0].grid.shape[1:3]}
    if isinstance(backbone, ColumnarBackbone):
        sides = {tuple(math.ceil(side / backbone.patch_size) for side in (70, 90))}
    assert {level.grid.shape[1:3] for level in every} == sides
    if not any(part.kind in ("close", "pyramid") and part.stage == blocks[-1].stage for part in backbone.parts()):
        assert torch.equal(last.grid, levels[-1].grid)
        assert (last.class_tokens is None) or torch.equal(last.class_tokens, levels[-1].class_tokens)
    assert [block.modules[0]._forward_hooks for block in blocks] == before
    with pytest.raises(ValueError, match=f"there is no block {len(blocks)}"):
        backbone.features(image, blocks=[len(blocks)])


@toys
@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1,)], ids=str)
def test_every_parameter_is_of_one_part(toy, out_indices):
    backbone = toy(out_indices=out_indices)
    found = [id(tensor) for part in backbone.parts() for module in part.modules for tensor in tensors_of(module)]
    assert sorted(found) == sorted(map(id, backbone.parameters()))
    assert backbone.parameter_stages().keys() == backbone.state_dict().keys()
    order = [part.stage for part in backbone.parts() if part.kind == "block"]
    assert order == sorted(order)


def tensors_of(module):
    return [*module.parameters()] if isinstance(module, nn.Module) else [module]


@toys
def test_drop_path_drops_whole_samples_in_training_only(toy):
    torch.manual_seed(4)
    backbone = toy(drop_path_rate=0.5)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone.eval()(image)[-1], backbone(image)[-1])
        backbone.train()
        outputs: set[float] = set()
        for _ in range(20):
            outputs.add(float(backbone(image)[-1].sum()))
            if len(outputs) > 5:
                return
    # All blocks but the first drop, at four blocks or more, two branches each: few outcomes repeat in 20 draws.
    pytest.fail(f"20 passes have {len(outputs)} results")


@toys
def test_drop_path_rates_follow_the_official_rule(toy):
    backbone = toy(drop_path_rate=0.5)
    rates = [module.rate for module in backbone.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx(BY_FAMILY[type(backbone).__name__].drop_path(0.5, backbone))


@toys
def test_bf16_autocast_changes_gradients_of_norms_by_rounding_only(toy):
    torch.manual_seed(0)
    backbone, image = toy(drop_path_rate=0.0).train(), torch.randn(2, 3, 128, 96)
    weights = [torch.randn_like(output) for output in backbone(image)]
    norms = [p for module in backbone.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()]

    def gradients(autocast):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            outputs = backbone(image)
        return torch.autograd.grad(sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)), norms)

    # A bf16 stream makes it 0.02 and, in networks that learn, 0.1. The worst are near zero at random weights. MViTv2,
    # which normalises queries, keys and values, is more sensitive: a rounding of its patches alone makes it 0.015, a
    # bf16 stream 0.042.
    limit = 0.035 if isinstance(backbone, MViTv2) else 0.01
    pairs = zip(gradients(False), gradients(True), strict=True)
    assert statistics.median(float((rounded - exact).norm() / exact.norm()) for exact, rounded in pairs) < limit


@toys
def test_bf16_autocast_is_finite_and_close(toy):
    torch.manual_seed(5)
    backbone = toy(drop_path_rate=0.0)
    image = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        exact = backbone.eval()(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = backbone(image)
    for a, b in zip(exact, rough, strict=True):
        assert torch.isfinite(b).all()
        assert (a - b.float()).abs().max() < 0.15 * a.abs().max()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = total(backbone.train()(image))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters())


def test_from_scratch_scales_weights_by_their_fan():
    def std(layer):
        return float(layer.weight.detach().std())

    torch.manual_seed(0)
    backbone = MODELS.build(dict(type="PVTv2", arch="b1", init_cfg=[dict(type="mm_vitbackbones.FromScratch")]))
    block = backbone.stages[0].blocks[0]
    official = [std(x) for x in (block.ffn.fc1, block.ffn.fc2, block.attn.q, block.attn.proj)]
    assert official == pytest.approx([0.02] * 4, rel=0.1)
    backbone.init_weights()
    # dim 64, hidden 512: sqrt(2 / fan-out), and sqrt(2 / (64 + 3 * 64)) for queries, keys and values.
    scratch = [std(x) for x in (block.ffn.fc1, block.ffn.fc2, block.attn.q, block.attn.kv)]
    assert scratch == pytest.approx([0.0625, 0.1768, 0.0884, 0.0884], rel=0.1)
    assert std(block.ffn.dwconv) == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    assert std(block.attn.proj) == pytest.approx(0.02, rel=0.1)


@toys
def test_state_dict_round_trip_deep_copy_and_pickle(toy):
    torch.manual_seed(6)
    backbone, image = toy().eval(), torch.randn(1, 3, 64, 64)
    other = toy().eval()
    other.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        expected = backbone(image)
        for twin in (other, copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
            assert all(torch.equal(a, b) for a, b in zip(expected, twin(image), strict=True))


@toys
def test_optimizer_rules_of_mmengine_take_each_parameter_once(toy):
    from mmengine.optim import build_optim_wrapper

    backbone = toy()
    rules = dict(norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys=dict(patch_embed=dict(lr_mult=0.1)))
    wrapper = build_optim_wrapper(
        backbone, dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1.0, weight_decay=1.0), paramwise_cfg=rules)
    )
    every = [(p, group["lr"], group["weight_decay"]) for group in wrapper.param_groups for p in group["params"]]
    groups = [group for group in every if isinstance(group[0], nn.Parameter)]  # MMEngine adds a tensor of its own
    assert [id(p) for p, *_ in groups] == [id(p) for p in backbone.parameters()]
    for (name, p), (_, rate, decay) in zip(backbone.named_parameters(), groups, strict=True):
        embeds = "patch_embed" in name
        assert rate == (0.1 if embeds else 1.0)
        assert decay == (1.0 if embeds or p.dim() > 1 or name.endswith("gamma") else 0.0)


@toys
@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 2)], ids=str)
def test_layer_depths_rise_from_the_stem_to_the_last_block(toy, out_indices):
    backbone = toy(out_indices=out_indices)
    columnar = isinstance(backbone, ColumnarBackbone)
    serial = (
        [("", len(backbone.blocks))]
        if columnar
        else [(f"stages.{i}.", len(stage.blocks)) for i, stage in enumerate(backbone.stages)]
    )
    names = [name for name, _ in backbone.named_parameters()]
    depths = {name: backbone.get_layer_depth(f"backbone.{name}", "backbone.") for name in names}
    count = sum(blocks for _, blocks in serial) + len(getattr(backbone, "parallel_blocks", ())) + 2
    assert {total for _, total in depths.values()} == {count}
    # A pyramid has the depth of what follows the backbone.
    assert {depth for depth, _ in depths.values()} == {*range(count if "pyramid" in str(names) else count - 1)}
    first = 1
    for prefix, blocks in serial:
        for j in range(blocks):
            found = {depths[name][0] for name in names if name.startswith(f"{prefix}blocks.{j}.")}
            assert found == {first + j}
        before = {
            depths[n][0] for n in names if n.startswith((f"{prefix}patch_embed", f"{prefix}pool", f"{prefix}cpe"))
        }
        assert before <= {first if prefix != "stages.0." else 0}
        assert {depths[n][0] for n in names if n.startswith(f"{prefix}norm.")} <= {first + blocks - 1}
        first += blocks
    with pytest.raises(ValueError, match=r"'backbone\.stages\.9\.x' is no parameter of"):
        backbone.get_layer_depth("backbone.stages.9.x", "backbone.")


@toys
@pytest.mark.parametrize("in_channels", [1, 4])
def test_images_of_other_channel_counts(toy, in_channels):
    backbone = toy(in_channels=in_channels).eval()
    with torch.no_grad():
        assert len(backbone(torch.randn(1, in_channels, 32, 32))) == 4
    with pytest.raises(ValueError, match=f"{in_channels}, H, W"):
        backbone(torch.randn(1, 3, 32, 32))


@different_toys
def test_block_compiles_to_one_graph(toy):
    torch._dynamo.reset()  # the limit of recompilations counts those of other tests too
    torch.manual_seed(7)
    backbone, image = TOYS[toy]().eval(), torch.randn(1, 3, 64, 96)
    block, inputs = blocks_of(backbone)[0].modules[0], []
    hook = block.register_forward_pre_hook(lambda block, given: inputs.extend(given))
    with torch.no_grad():
        backbone(image)
    hook.remove()
    # The graph is what can break; code generation is the compiler's business and takes minutes.
    with torch.no_grad():
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*inputs), block(*inputs), rtol=1e-5, atol=1e-5)
    backbone.train()
    trained = torch.compile(block, fullgraph=True, backend="aot_eager")
    tree_leaves(trained(*inputs))[-1].sum().backward()


@only("pit", "pvt_v2", "swin")
def test_backbone_compiles_to_one_graph(toy):
    torch._dynamo.reset()
    torch.manual_seed(7)
    backbone, image = TOYS[toy]().eval(), torch.randn(1, 3, 64, 96)
    # Its graph alone is traced. The slow test below splits it into PyTorch's operators, too, which takes as long again.
    whole = torch.compile(backbone, fullgraph=True, backend="eager")
    with torch.no_grad():
        for a, b in zip(whole(image), backbone(image), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@toys
def test_six_image_sizes_need_at_most_three_compilations(toy):
    torch._dynamo.reset()
    torch.manual_seed(7)
    backbone, graphs = toy().eval(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    compiled = torch.compile(backbone, fullgraph=True, backend=backend)
    # Of COCO's images, padded. (Convolutions of smaller maps take another kernel on CPU, which a graph asks about.)
    for size in [(800, 1344), (800, 1216), (1344, 800), (768, 1344), (960, 960), (704, 1248)]:
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            assert error(compiled(image), backbone(image)) < 1e-5  # of whole maps: rounding changes a cell by 3e-5
    assert len(graphs) <= 3


def test_registered_under_the_scope():
    assert MODELS is BACKBONES
    backbone = MODELS.build(dict(type="PVT", arch="tiny"))
    assert isinstance(backbone, PVT)
    assert backbone.channels == (64, 128, 320, 512)
    assert backbone.strides == (4, 8, 16, 32)
    from mmengine.registry import MODELS as root

    assert isinstance(root.build(dict(type="mm_vitbackbones.PVTv2", arch="b0", out_indices=(1, 3))), PVTv2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(arch="smal"), "did you mean 'small'"),
        (dict(arch=dict(depths=(1, 1, 1, 1), depth=3)), "no field \\['depth'\\]"),
        (dict(arch=dict(depths=(1, 1, 1))), "4 stages"),
        (dict(arch=dict(depths=(1, 1, 1, 1), dims=(10, 20, 30, 33))), "num_heads"),
        (dict(out_indices=(0, 4)), "out_indices"),
        (dict(out_indices=()), "out_indices"),
        (dict(out_indices=(2, 1)), "ascending"),
        (dict(frozen_stages=5), "frozen_stages"),
        (dict(with_cp="blocks"), "with_cp"),
        (dict(in_channels=0), "in_channels"),
        (dict(drop_path_rate=1.0), "drop_path_rate"),
        (dict(norm_eps=0.0), "norm_eps"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PVT(**arguments)


@pytest.mark.parametrize(("arch", "strides"), [("ti", (8, 16, 32)), ("b_distilled", (7, 14, 28))])
def test_the_published_geometry_of_pit(arch, strides):
    with torch.device("meta"):
        backbone = PiT(arch, stem="published", out_indices=(1, 2, 3))
        outputs = backbone(torch.empty(2, 3, 800, 1344))
    assert backbone.strides == strides
    grids = {8: [(99, 167), (50, 84), (25, 42)], 7: [(113, 191), (57, 96), (29, 48)]}
    assert [tuple(o.shape[2:]) for o in outputs] == grids[strides[0]]
    assert not any(name.startswith("upsample") for name, _ in backbone.named_parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(stem="published"), "no 0"),
        (dict(stem="official"), "'aligned' or 'published'"),
        (dict(arch="s_distiled"), "did you mean 's_distilled'"),
        (dict(arch=dict(PIT, dims=(8, 12, 32))), "multiples of the stage before"),
        (dict(arch=dict(PIT, patch_size=7)), "even number of at least 8"),
        (dict(arch=dict(PIT, depths=(1, 1, 1, 1))), "3 stages"),
    ],
    ids=str,
)
def test_bad_arguments_of_pit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PiT(**arguments)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.zeros(1, 3, 31, 64), ValueError, "at least 32"),
        (torch.zeros(3, 64, 64), ValueError, "B, 3, H, W"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, "uint8"),
    ],
    ids=["small", "3d", "uint8"],
)
def test_bad_images_are_named(image, error, message):
    with pytest.raises(error, match=message):
        TOYS["pvt"]()(image)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mit", "coat"])
@pytest.mark.parametrize("with_cp", ["all_but_attention", "all"])
def test_torch_compile_of_what_is_recomputed(name, with_cp):
    torch._dynamo.reset()
    torch.manual_seed(7)
    backbone, image = TOYS[name](with_cp=with_cp, drop_path_rate=0.0).train(), torch.randn(1, 3, 64, 96)
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(image), backbone(image), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    total(compiled(image)).backward()
    assert all(p.grad is not None for p in backbone.parameters())
