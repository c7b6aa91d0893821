import json
import re

import pytest
import torch

from helpers.official import official_state, published_names, published_shapes
from helpers.paths import DATA
from helpers.toys import RECORDED
from mm_vitbackbones.checkpoints import CheckpointError
from mm_vitbackbones.checkpoints.key_map import KeyMap, under
from mm_vitbackbones.checkpoints.recognise import FAMILIES, find_archs, find_layout, looks_like, outline_of

LISTED = sorted(path.name.removesuffix("_names.txt") for path in DATA.glob("*_names.txt"))
PUBLISHED = [(family, *case) for family in LISTED for case in published_names(family)]
CASES = [(name, layout.name) for name, toy in RECORDED.items() for layout in FAMILIES[toy.family.__name__].layouts]


def test_key_map_is_read_both_ways():
    keys = KeyMap(
        [
            ("patch_embed{stage+1}.", "stages.{stage}.patch_embed."),
            *under("block{stage+1}.{block}.", "stages.{stage}.blocks.{block}.", [("mlp.fc1.", "ffn.fc1.")]),
            ("pos_embed{stage+1}", "stages.{stage}.position.table"),
        ]
    )
    for theirs, ours in {
        "patch_embed1.proj.weight": "stages.0.patch_embed.proj.weight",
        "block3.12.mlp.fc1.bias": "stages.2.blocks.12.ffn.fc1.bias",
        "pos_embed4": "stages.3.position.table",
    }.items():
        assert keys.to_ours(theirs) == ours
        assert keys.to_theirs(ours) == theirs


def test_an_unknown_key_has_no_name():
    keys = KeyMap([("norm{stage+1}.", "stages.{stage}.norm."), ("pos{stage+1}", "stages.{stage}.pos")])
    for key in (
        "norm0.weight",
        "norm01.weight",
        "norm1",
        "norm1.",
        "xnorm1.weight",
        "pos1.weight",
        "pos",
        "head.weight",
    ):
        assert keys.to_ours(key) is None
    assert keys.to_theirs("stages.0.norms.weight") is None


def test_offsets_on_both_sides_leave_out_the_first():
    keys = KeyMap([("patch_embed.", "stages.0.embed."), ("s.{i+1}.down.", "stages.{i+1}.embed.")])
    assert keys.to_ours("s.1.down.weight") == "stages.1.embed.weight"
    assert keys.to_ours("s.0.down.weight") is None
    assert keys.to_theirs("stages.0.embed.weight") == "patch_embed.weight"


@pytest.mark.parametrize(
    "pairs",
    [
        [("a.{i}.", "b.")],
        [("a.{i}.", "b.{i}")],
        [("a.{i}.{i}.", "b.{i}.")],
        [("a.{i-1}.", "b.{i}.")],
        [("a.{i}.", "b.{i}."), ("a.{j}.norm.", "c.{j}.")],
        [("a.", "x.{i}."), ("b.", "x.{i}.y.")],
        [("a.{i}.", "x.{i}."), ("b.0.", "x.0.")],
    ],
)
def test_a_malformed_table_is_refused(pairs):
    with pytest.raises(ValueError, match="template"):
        KeyMap(pairs)


def test_ambiguous_key_is_an_error():
    keys = KeyMap([("a.{i}.5.", "x.{i}."), ("a.6.{j}.", "y.{j}.")])
    with pytest.raises(ValueError, match=r"a\.6\.5\.w"):
        keys.to_ours("a.6.5.w")


@pytest.mark.parametrize(("toy", "name"), CASES)
def test_each_layout_holds_the_whole_network_and_gives_it_back(toy, name):
    family = FAMILIES[RECORDED[toy].family.__name__]
    source = official_state(toy)
    ours, unknown = family.layout("official").to_ours(source)
    assert not unknown
    theirs, nameless = family.layout(name).to_theirs(ours)
    assert all(key.startswith("classifier.") or family.files_may_lack(key) for key in nameless)
    assert not nameless or name not in ("official", "ours")
    assert ("classifier.head.weight" in nameless) == (name == "openmmlab")
    back, unknown = family.layout(name).to_ours(theirs)
    assert not unknown
    assert back.keys() == ours.keys() - set(nameless)
    assert all(torch.equal(back[key], ours[key]) for key in back)
    again, _ = family.layout("official").to_theirs(back | {key: ours[key] for key in nameless})
    assert again.keys() == source.keys()
    assert all(torch.equal(again[key], source[key]) for key in again)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
@pytest.mark.parametrize(("toy", "name"), CASES)
def test_each_layout_is_recognised_and_no_other(toy, name, prefix):
    family = FAMILIES[RECORDED[toy].family.__name__]
    theirs, _ = family.layout(name).to_theirs(family.layout("official").to_ours(official_state(toy))[0])
    found = find_layout({prefix + key: tensor for key, tensor in theirs.items()})
    assert (found.family.name, found.layout.name, found.prefix) == (family.name, name, prefix)


@pytest.mark.parametrize(("family", "arch", "name"), PUBLISHED)
def test_published_names_and_shapes_are_those_of_the_network(family, arch, name):
    published = published_names(family)[arch, name]
    found = find_layout(published)
    assert found.layout.name == name
    inside, outside = found.split(published)
    ours, unknown = found.layout.to_ours(inside)
    assert not outside + unknown
    backbone = {key: tensor.shape for key, tensor in ours.items() if not key.startswith("classifier.")}
    assert backbone == outline_of(found.family, arch).shapes
    theirs, nameless = found.layout.to_theirs(ours)
    assert not nameless
    assert {key: t.shape for key, t in theirs.items()} == {key: t.shape for key, t in inside.items()}
    assert re.match(rf"{found.family.name} {arch}\b", looks_like(published))


CLASSIFIERS = {  # values in the official ImageNet files, those that several blocks share counted once
    ("CoaT", "tiny"): 5_498_844,
    ("CoaT", "mini"): 10_337_308,
    ("CoaT", "small"): 21_694_212,
    ("CoaT", "lite_tiny"): 5_722_856,
    ("CoaT", "lite_mini"): 11_012_584,
    ("CoaT", "lite_small"): 19_839_528,
    ("CoaT", "lite_medium"): 44_572_456,
}


@pytest.mark.parametrize(("name", "arch"), CLASSIFIERS)
def test_the_official_files_of_every_variant_are_known_by_name_and_shape(name, arch):
    family, published = FAMILIES[name], published_shapes(name.lower())[arch]
    ours, unknown = family.layout("official").to_ours({k: torch.zeros(()).expand(s) for k, s in published.items()})
    assert not unknown
    assert sum(tensor.numel() for tensor in ours.values()) == CLASSIFIERS[name, arch]
    backbone = {key: tensor.shape for key, tensor in ours.items() if not key.startswith("classifier.")}
    assert backbone == outline_of(family, arch).shapes
    assert find_archs(family, ours) == (arch,)
    theirs, nameless = family.layout("official").to_theirs(ours)
    assert not nameless
    assert {key: tuple(tensor.shape) for key, tensor in theirs.items()} == published


def test_names_that_share_a_tensor_become_one():
    layout = FAMILIES["CoaT"].layout("official")
    source = official_state("coat")
    ours, _ = layout.to_ours(source)
    shared = [key for key in ours if ".cpe." in key or ".crpe." in key or "blocks.0.ffn." in key]
    assert len(shared) == 4 * (2 + 6) + 4 * 4 + 4
    again = {key for key in source if ".cpe." in key or ".crpe." in key or ".mlp3." in key or ".mlp4." in key}
    assert len(again) == 4 * (2 + 6) + 2 * (3 * 6 + 2 * 4)
    owned = {key: tensor for key, tensor in source.items() if key not in again}
    without, _ = layout.to_ours(owned)
    assert without.keys() == ours.keys()
    # Some writers keep one name of a tensor, and not the stage's.
    del owned["cpe2.proj.weight"]
    kept, _ = layout.to_ours(owned | {k: source[k] for k in ["serial_blocks2.0.cpe.proj.weight"]})
    assert torch.equal(kept["stages.1.cpe.conv.weight"], source["cpe2.proj.weight"])
    other = source | {"parallel_blocks.1.mlp4.fc1.weight": source["parallel_blocks.1.mlp4.fc1.weight"] + 1}
    with pytest.raises(CheckpointError, match=r"parallel_blocks\.1\.ffn\.fc1\.weight is shared"):
        layout.to_ours(other)


def test_joint_weights_are_split_in_the_order_q_k_v():
    source = official_state("pvt")
    family = FAMILIES["PVT"]
    ours, _ = family.layout("official").to_ours(source)
    openmmlab, _ = family.layout("openmmlab").to_theirs(ours)
    joint = openmmlab["layers.0.1.1.attn.attn.in_proj_weight"]
    assert torch.equal(joint[:8], source["block1.0.attn.q.weight"])
    assert torch.equal(joint[8:], source["block1.0.attn.kv.weight"])
    assert openmmlab["layers.0.1.1.ffn.layers.0.weight"].shape == (64, 8, 1, 1)
    huggingface, _ = family.layout("huggingface").to_theirs(ours)
    assert torch.equal(huggingface["encoder.block.1.0.attention.self.value.bias"], source["block2.0.attn.kv.bias"][16:])
    assert torch.equal(huggingface["encoder.patch_embeddings.3.position_embeddings"], source["pos_embed4"])


def test_the_class_row_is_split_from_the_last_table_only():
    source = official_state("pvt")
    ours, _ = FAMILIES["PVT"].layout("official").to_ours(source)
    assert ours["stages.0.position.table"].shape == (1, 16, 16, 8)
    assert torch.equal(ours["stages.0.position.table"][0, 1, 2], source["pos_embed1"][0, 18])
    assert torch.equal(ours["stages.3.position.table"].flatten(1, 2), source["pos_embed4"][:, 1:])
    assert torch.equal(ours["classifier.token_position"], source["pos_embed4"][:, :1])


PIT_CLASSIFIERS = {  # parameters, as published
    "ti": 4_847_272,
    "xs": 10_618_888,
    "s": 23_461_912,
    "b": 73_764_840,
    "ti_distilled": 5_104_336,
    "xs_distilled": 11_003_984,
    "s_distilled": 24_039_056,
    "b_distilled": 74_790_096,
}


@pytest.mark.parametrize("arch", PIT_CLASSIFIERS)
def test_the_official_names_and_shapes_of_pit(arch):
    """tests/data/pit_official_names.json lists the names and shapes of the four published files; those of the
    distilled ones differ in the second token and the second head."""
    shapes = json.loads((DATA / "pit_official_names.json").read_text())[arch.removesuffix("_distilled")]
    if arch.endswith("_distilled"):
        shapes["cls_token"] = [1, 2, shapes["cls_token"][2]]
        shapes |= {"head_dist.weight": shapes["head.weight"], "head_dist.bias": shapes["head.bias"]}
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert sum(tensor.numel() for tensor in state.values()) == PIT_CLASSIFIERS[arch]

    official = FAMILIES["PiT"].layout("official")
    ours, unknown = official.to_ours(state)
    assert not unknown
    assert find_archs(FAMILIES["PiT"], ours) == (arch,)
    expected = {
        key: s for key, s in outline_of(FAMILIES["PiT"], arch).shapes.items() if not key.startswith("upsample.")
    }
    assert {key: t.shape for key, t in ours.items() if not key.startswith("classifier.")} == expected
    theirs, nameless = official.to_theirs(ours)
    assert not nameless
    assert {key: [*tensor.shape] for key, tensor in theirs.items()} == shapes
