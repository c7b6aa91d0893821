"""Low-rank adapters in every family: they act in every form, they alone train, and files keep their plain names."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from helpers.attachments import MODES, difference, random_image, random_network, run
from helpers.memory import kept_bytes
from helpers.peft import needs_peft, peft  # noqa: F401
from helpers.toys import TOYS, only
from mm_vitbackbones import adapters
from mm_vitbackbones.backbones import Backbone, CoaT, DINOv3, PiT, Swin, ViT
from mm_vitbackbones.backbones.columnar import ColumnarBackbone
from mm_vitbackbones.checkpoints import CheckpointMismatch, load_pretrained
from mm_vitbackbones.errors import ArgumentError
from mm_vitbackbones.ops import context

slow = pytest.mark.slow
toys = pytest.mark.parametrize("toy", TOYS)
some_toys = only("dinov3", "coat", "pvt_v2")
pytestmark = [needs_peft, pytest.mark.usefixtures("peft")]
ASKED = dict(rank=4, alpha=6, targets="all")
SCALE = 6 / 4


def adapted(toy: str, **arguments: Any) -> Backbone:
    """A toy with random weights, whose adapters act."""
    network = random_network(toy, **{"adapters": ASKED} | arguments)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if adapters.is_adapter(name):
                p.normal_(std=p.shape[1] ** -0.5)
    return network


def plain(toy: str, state: dict[str, Tensor]) -> Backbone:
    network = random_network(toy)
    network.load_state_dict(state)
    return network


def maps_of(network: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return [*network.eval()(random_image())]


@toys
def test_adapters_alone_train_and_give_what_the_merged_weights_give(toy):
    network = adapted(toy)
    state = network.state_dict()
    equal, without = plain(toy, adapters.merged(state)), plain(toy, adapters.split(state)[0])
    for mode in (MODES["inference"], MODES["training"]):
        found = run(network, mode)
        assert difference(found, run(equal, mode)) < 1e-5
    assert difference(maps_of(network), maps_of(without)) > 0.1
    check_gradients(network, equal)
    fresh = {id(p) for part in network.parts() if part.fresh for module in part.modules for p in module.parameters()}
    for name, p in network.named_parameters():
        trains = adapters.is_adapter(name) or id(p) in fresh
        assert p.requires_grad == trains, name
        assert (p.grad is not None) == trains, name


@toys
@pytest.mark.slow
def test_adapters_act_in_bands_under_autocast_and_in_the_forms_for_cuda(toy):
    network = adapted(toy)
    equal = plain(toy, adapters.merged(network.state_dict()))
    expected = run(equal, MODES["inference"])
    assert difference(run(network, MODES["inference_in_bands"]), expected) < 1e-5
    assert difference(run(network, MODES["bf16"]), expected) < 0.06
    with context.pretend_device("cuda"):
        found, expected = run(network, MODES["training"]), run(equal, MODES["training"])
    assert difference(found, expected) < 1e-5
    check_gradients(network, equal)


def check_gradients(network: Backbone, equal: Backbone) -> None:
    """That the gradients of adapters follow from those of merged weights, by the chain rule."""
    tensors = {adapters.name_in_file(name): p for name, p in network.named_parameters()}
    names = [name.removesuffix(adapters.DOWN) for name in tensors if name.endswith(adapters.DOWN)]
    assert names
    for name in names:
        of_weight = equal.get_parameter(f"{name}weight").grad
        down, up = tensors[name + adapters.DOWN], tensors[name + adapters.UP]
        expected = [SCALE * up.detach().T @ of_weight, SCALE * of_weight @ down.detach().T]
        assert difference([down.grad, up.grad], expected) < 1e-4, name


def test_what_files_lack_is_named():
    """The pyramids, PiT's finest level and the norms of Swin's levels."""
    fresh = {
        toy: {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad} - {"blocks"}
        for toy in ("pit", "vit", "swin", "pvt")
        for network in [random_network(toy, adapters=ASKED)]
    }
    assert fresh == {"pit": {"stages", "upsample"}, "vit": {"pyramid"}, "swin": {"stages"}, "pvt": {"stages"}}
    network = random_network("swin", adapters=ASKED)
    assert all(p.requires_grad for stage in network.stages for p in stage.norm.parameters())


def test_what_somebody_unfroze_is_frozen_again_when_a_training_begins():
    network = random_network("swin", adapters=ASKED)
    expected = {name for name, p in network.named_parameters() if p.requires_grad}
    network.requires_grad_(True).train()
    assert {name for name, p in network.named_parameters() if p.requires_grad} == expected


def test_batch_norms_train_in_a_pyramid_alone_and_paths_are_dropped():
    network = TOYS["vit"](adapters={}, norm_eval=False, drop_path_rate=0.5)
    network.blocks[0].attn.proj = nn.Sequential(network.blocks[0].attn.proj, nn.BatchNorm1d(16))
    network.train()
    assert not network.blocks[0].attn.proj[1].training
    assert not network.blocks[0].attn.proj[1].weight.requires_grad
    assert network.blocks[0].drop_path.training
    assert all(m.training for m in network.pyramid.modules())


RECOMPUTED = [(toy, with_cp) for toy in TOYS for with_cp in ("ffn", "block")]
QUICK = {("dinov3", "block"), ("coat", "ffn"), ("mit", "block")}


@pytest.mark.parametrize(
    ("toy", "with_cp"), [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in RECOMPUTED]
)
def test_dropout_of_adapters_is_drawn_once_where_blocks_are_computed_again(toy, with_cp):
    results = []
    for recompute in (False, with_cp):
        network = adapted(toy, adapters=dict(ASKED, dropout=0.3), with_cp=recompute)
        torch.manual_seed(3)
        maps = run(network, MODES["training"])
        results.append([*maps, *(p.grad for p in network.parameters() if p.grad is not None)])
    torch.manual_seed(4)
    assert difference(run(network, MODES["training"])[:1], results[0][:1]) > 1e-3
    assert difference(*results) < 1e-5


@toys
def test_frozen_stages_have_no_adapters_and_stay_in_eval_mode(toy):
    network = TOYS[toy](adapters=ASKED, frozen_stages=1).train()
    found = [part for part in network.parts() if part.stage < 1 and part.kind != "shared"]
    assert found
    for part in found:
        for module in part.modules:
            assert not module.training
            assert not [name for name, p in module.named_parameters() if adapters.is_adapter(name) or p.requires_grad]
    assert any(adapters.is_adapter(name) for name, _ in network.named_parameters())


TARGETS = {
    "attention": r".+\.attn\.(\d\.)?\w+",
    "feed_forward": r".+\.ffn\.\w+",
    "all": r".+",
}


@toys
@pytest.mark.parametrize("targets", ["attention", *(pytest.param(x, marks=slow) for x in ("feed_forward", "all"))])
def test_targets_are_linear_maps_of_every_block(toy, targets):
    network, without = TOYS[toy](adapters=dict(targets=targets)), TOYS[toy]()
    linears = {name for name, module in without.named_modules() if type(module) is nn.Linear}
    named = {name.rpartition(".lora_A")[0] for name, _ in network.named_parameters() if ".lora_A." in name}
    assert named == {name for name in linears if re.fullmatch(TARGETS[targets], name)}
    blocks = [part.modules[0] for part in network.parts() if part.kind == "block"]
    assert all(any(".lora_A." in name for name, _ in block.named_parameters()) for block in blocks)


def test_names_and_patterns_are_targets():
    def found(*targets: str) -> set[str]:
        network = TOYS["dinov3"](adapters=dict(targets=[*targets]))
        return {name.partition(".lora_A")[0] for name, _ in network.named_parameters() if ".lora_A." in name}

    assert found("q") == {f"blocks.{i}.attn.q" for i in range(4)}
    assert found("ffn.fc1", "blocks.3.attn.[kv]") == {
        *(f"blocks.{i}.ffn.fc1" for i in range(4)),
        *("blocks.3.attn.k", "blocks.3.attn.v"),
    }


@pytest.mark.parametrize(
    ("family", "given", "message"),
    [
        (DINOv3, dict(rank=0), "adapters.rank=0: give an integer of at least 1"),
        (DINOv3, dict(alpha=-1), "adapters.alpha=-1: give a finite number above 0"),
        (DINOv3, dict(dropout=1), "adapters.dropout=1: give a finite number of at least 0 and below 1"),
        (DINOv3, dict(r=4), "adapters has no field 'r'; it takes rank, alpha, dropout, targets"),
        (DINOv3, dict(target="q"), "adapters has no field 'target'; did you mean 'targets'"),
        (DINOv3, dict(targets="attentions"), "did you mean 'attention'"),
        (DINOv3, dict(targets=[]), r"adapters.targets=\[\]: give 'attention', 'feed_forward', 'all', or a list"),
        (DINOv3, dict(targets=["qkv"]), "no linear map is called 'qkv'; there are fc1, fc2, k, proj, q, v"),
        (DINOv3, dict(targets=["q", "stem.proj"]), "stem.proj is a ChannelsLastConv2d, and adapters are for linear"),
        (ViT, dict(targets=["norm1"]), "blocks.0.norm1 is a LayerNorm, and adapters are for linear maps: fc1, fc2"),
        (Swin, dict(targets=["relative_position_bias_table"]), "no linear map is called 'relative_position_bias_tab"),
        (CoaT, dict(targets=["convs.0"]), "crpe.convs.0 is a ChannelsLastConv2d, and adapters are for linear maps"),
        (PiT, dict(targets=["upsample"]), "no linear map is called 'upsample'"),
    ],
)
def test_bad_adapters_are_one_line(family, given, message):
    toy = next(toy for toy in TOYS.values() if toy.family is family)
    with pytest.raises(ArgumentError, match=message) as caught:
        toy(adapters=given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("toy", "arguments"),
    [
        ("dinov3", dict(frozen_stages="all", adapters={})),
        ("swin", dict(frozen_stages=4, adapters={})),
        ("dinov3", dict(frozen_stages=2, adapters=dict(targets=["q", "blocks.1.attn.v"]))),
    ],
)
def test_adapters_in_frozen_stages_alone_are_refused(toy, arguments):
    with pytest.raises(
        ArgumentError, match=r"adapters.targets: all that .* is frozen by frozen_stages=\d.*leave adapters out"
    ):
        TOYS[toy](**arguments)


def test_without_peft_one_line_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    with pytest.raises(ArgumentError, match=r"^adapters need the peft library: pip install 'mm-vitb.*adapters.*$"):
        TOYS["swin"](adapters=dict(rank=8))


# ---- files


@toys
def test_weights_have_their_plain_names_and_come_back(toy):
    network, other = adapted(toy), random_network(toy, seed=1, adapters=ASKED)
    state = network.state_dict()
    base, own = adapters.split(state)
    assert base.keys() == random_network(toy).state_dict().keys()
    assert {key.rpartition("lora_")[2] for key in own} == {"A.weight", "B.weight", "alpha"}
    other.load_state_dict(copy.deepcopy(state))
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())
    assert difference(maps_of(other), maps_of(network)) == 0
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert all(torch.equal(tensor, state[name]) for name, tensor in twin.state_dict().items())


@some_toys
@pytest.mark.parametrize("whole", [False, True], ids=["as_they_lie", "whole"])
@pytest.mark.parametrize("within", ["backbone", "detector"])
def test_distributed_checkpoints_have_the_plain_names_and_come_back(toy, whole, within):
    options = StateDictOptions(full_state_dict=whole)
    network, other = adapted(toy), random_network(toy, seed=1, adapters=ASKED)
    if within == "detector":
        network, other = (nn.ModuleDict({"backbone": each}) for each in (network, other))
    for each in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), network):
        state = get_model_state_dict(each, options=options)
        expected = network.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    set_model_state_dict(other, copy.deepcopy(state), options=options)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())


@toys
def test_a_pretrained_file_goes_into_an_adapted_network_and_changes_nothing_at_first(toy):
    file, network = random_network(toy, seed=1), TOYS[toy](adapters=ASKED, drop_path_rate=0.0)
    report = load_pretrained(network, file.state_dict())
    assert not report.fresh
    assert re.search(r"; adapters of rank 4 and alpha 6 in \d+ linear maps: fresh", str(report))
    assert difference(maps_of(network), maps_of(file)) < 1e-6


@pytest.mark.parametrize(
    "kind", [dict(type="Normal", layer="Linear", std=1.0), dict(type="mm_vitbackbones.FromScratch")]
)
def test_an_initialisation_of_linear_maps_leaves_adapters_without_effect(kind):
    network = TOYS["pvt"](adapters=ASKED, init_cfg=kind)
    before = network.stages[0].blocks[0].ffn.fc1.base_layer.weight.clone()
    network.init_weights()
    assert not torch.equal(network.stages[0].blocks[0].ffn.fc1.base_layer.weight, before)
    assert not any(p.any() for name, p in network.named_parameters() if ".lora_B." in name)
    trained = adapted("pvt", init_cfg=None)
    trained.init_weights()
    assert all(p.any() for name, p in trained.named_parameters() if ".lora_B." in name)


@some_toys
def test_an_adapted_file_goes_into_the_same_network(toy):
    file, network = adapted(toy), random_network(toy, seed=1, adapters=ASKED)
    whole = {f"backbone.{key}": tensor for key, tensor in file.state_dict().items()}
    assert "from the file" in str(load_pretrained(network, {"state_dict": whole}))
    assert difference(maps_of(network), maps_of(file)) == 0


OTHERS = [None, dict(ASKED, rank=2), dict(ASKED, alpha=8), dict(ASKED, targets="attention")]


@pytest.mark.parametrize("asked", OTHERS, ids=str)
def test_an_adapted_file_for_another_network_is_one_line(asked):
    network = random_network("dinov3", adapters=asked)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(CheckpointMismatch) as caught:
        load_pretrained(network, adapted("dinov3").state_dict())
    said = str(caught.value)
    assert "the weights have adapters of rank 4 and alpha 6 in 24 linear maps" in said
    wanted = "adapters=dict(rank=4, alpha=6, ...) as in the training, or merge them: convert_checkpoint --merge"
    assert (wanted if asked is None else "the same rank, alpha and targets") in said
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_pytorch_refuses_a_state_of_another_alpha_or_without_adapters():
    network, other = adapted("dinov3"), random_network("dinov3", adapters=dict(ASKED, alpha=7))
    with pytest.raises(RuntimeError, match=r"lora_alpha is 6, and that of the network's adapters is 7"):
        other.load_state_dict(network.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*lora_alpha"):
        other.load_state_dict(random_network("dinov3").state_dict())


# ---- what works with them


@pytest.mark.parametrize("toy", ["dinov3", *(pytest.param(x, marks=pytest.mark.slow) for x in ("swin", "coat", "mit"))])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_blocks_give_the_same(toy):
    network = adapted(toy)
    expected = run(network, MODES["training"])
    torch._dynamo.reset()
    assert network.compile_blocks(backend="eager")
    assert difference(run(network, MODES["training"]), expected) < 1e-5
    torch._dynamo.reset()


@toys
def test_an_adapter_has_the_depth_and_the_stage_of_its_linear_map(toy):
    network, without = TOYS[toy](adapters=ASKED), TOYS[toy]()
    plain_stages = without.parameter_stages()
    plain_depths, count = without.layer_depths()
    depths, same = network.layer_depths()
    assert same == count
    assert depths.keys() == {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    stages = network.parameter_stages()
    for name, depth in depths.items():
        base = re.sub(r"lora_[AB]\.weight$", "weight", adapters.name_in_file(name))
        assert depth == plain_depths[base]
        assert stages[adapters.name_in_file(name)] == plain_stages[base]


@toys
def test_a_step_keeps_less_than_one_of_a_full_training(toy):
    arguments = dict(drop_path_rate=0.0)
    if issubclass(TOYS[toy].family, ColumnarBackbone):
        arguments["pyramid"] = "resize"  # others train, and keep as much in either case
    networks = [TOYS[toy](**arguments, adapters=asked).train() for asked in (None, dict(rank=1))]
    kept = [kept_bytes(network, lambda network=network: network(random_image())) for network in networks]
    assert kept[1] < 0.95 * kept[0]
