"""Weights that no network can use, in each way that a file comes in: predict, test, load_from, --resume."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from helpers.toy_runs import ToyModel, toy_config, toy_runner
from helpers.toys import TOYS
from mm_vitbackbones.checkpoints import load_pretrained
from mm_vitbackbones.checkpoints.reading import read_checkpoint
from mm_vitbackbones.checkpoints.values import check_values
from mm_vitbackbones.cli import convert_checkpoint, weights
from mm_vitbackbones.engine.resume import read
from mm_vitbackbones.errors import CheckpointError, UserError

NAME = "backbone.1.weight"
NAN, INF = torch.tensor([1, float("nan"), 1]), torch.tensor([1, float("-inf"), 1])
BROKEN = {
    "nan": (NAN, "NaN or infinite weights, under backbone.1.weight"),
    "inf": (INF, "NaN or infinite weights, under backbone.1.weight"),
    "nan in half": (NAN.half(), "NaN or infinite weights, under backbone.1.weight"),
    "complex": (torch.ones(3, dtype=torch.cfloat), "backbone.1.weight holds values of type complex64"),
    "integer": (torch.ones(3, dtype=torch.long), "backbone.1.weight holds values of type int64"),
    "bool": (torch.ones(3, dtype=torch.bool), "backbone.1.weight holds values of type bool"),
    "too large": (torch.full((3,), 1e300, dtype=torch.double), "too large for the network's type: backbone.1.weight"),
    "sparse": (torch.ones(3).to_sparse(), "backbone.1.weight is quantized, sparse, nested or without data"),
    "meta": (torch.ones(3, device="meta"), "backbone.1.weight is quantized, sparse, nested or without data"),
}


def quantized(size: int = 3) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are deprecated
        return torch.quantize_per_tensor(torch.ones(size), 0.1, 0, torch.qint8)


BROKEN["quantized"] = (quantized(), "backbone.1.weight is quantized, sparse, nested or without data")


def nested(layout: torch.layout = torch.strided) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are a prototype
        return torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=layout)


CALLED = {
    "strided nested": (nested, "file.pth holds a nested tensor under KEY, and those are not read"),
    "jagged": (lambda: nested(torch.jagged), "file.pth holds a nested tensor under KEY, and those are not read"),
    "jagged parameter": (lambda: nn.Parameter(nested(torch.jagged)), "holds a nested tensor under KEY, and"),
    "subclass": (lambda: TwoTensor(torch.ones(3), torch.ones(3)), "_rebuild_wrapper_subclass.* under KEY"),
}
"""Tensors that a file can only make by a call, which is refused."""


def predict(path: Path, folder: Path) -> None:
    weights.load_weights(ToyModel(), read(path), path)


def evaluate(path: Path, folder: Path) -> None:
    runner = toy_runner(toy_config(), folder, weights.EvaluationRunner)
    runner.use(read(path), path)


def load_from(path: Path, folder: Path) -> None:
    toy_runner(toy_config(), folder, load_from=str(path)).train()


def resume(path: Path, folder: Path) -> None:
    toy_runner(toy_config(), folder, load_from=str(path), resume=True).train()


WAYS = (predict, evaluate, load_from, resume)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The checkpoint of a training of one epoch of four."""
    folder = tmp_path_factory.mktemp("trained")
    toy_runner(toy_config(train_cfg__max_epochs=1), folder).train()
    return read(folder / "epoch_1.pth")


def check_refused(way: Callable[[Path, Path], None], content: Any, folder: Path, message: str) -> None:
    torch.save(content, folder / "file.pth")
    with pytest.raises((UserError, CheckpointError), match=message) as caught:
        way(folder / "file.pth", folder / "run")
    assert "file.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")  # PyTorch's, at the first quantized one
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", BROKEN)
def test_weights_of_no_use_are_refused_with_their_name(
    way: Callable[[Path, Path], None], kind: str, trained: dict[str, Any], tmp_path: Path
) -> None:
    content = copy.deepcopy(trained)
    content["state_dict"][NAME], message = BROKEN[kind]
    check_refused(way, content, tmp_path, message)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", CALLED)
def test_tensors_of_other_classes_end_in_one_line(
    way: Callable[[Path, Path], None], kind: str, trained: dict[str, Any], tmp_path: Path
) -> None:
    content = copy.deepcopy(trained)
    make, message = CALLED[kind]
    content["state_dict"][NAME] = make()
    check_refused(way, content, tmp_path, message.replace("KEY", NAME))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *CALLED.values(),
        (lambda: quantized(32), "KEY is quantized, sparse, nested or without data"),
        (lambda: torch.ones(32, device="meta"), "KEY is quantized, sparse, nested or without data"),
        (lambda: torch.ones(32).to_sparse(), "KEY is quantized, sparse, nested or without data"),
    ],
    ids=[*CALLED, "quantized", "meta", "sparse"],
)
def test_an_init_cfg_of_such_weights_ends_in_one_line_and_changes_nothing(
    make: Callable[[], torch.Tensor], message: str, tmp_path: Path
) -> None:
    backbone = TOYS["pvt"](init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "file.pth")))
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    key = next(name for name, tensor in before.items() if tensor.shape == (32,))
    torch.save({"state_dict": {**before, key: make()}}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=message.replace("KEY", key)) as caught:
        backbone.init_weights()
    assert "file.pth" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize("kind", CALLED)
def test_a_conversion_of_such_weights_ends_in_one_line_and_writes_nothing(kind: str, tmp_path: Path) -> None:
    make, message = CALLED[kind]
    state = TOYS["pvt"]().state_dict()
    key = next(name for name, tensor in state.items() if tensor.shape == (32,))
    torch.save({"state_dict": {**state, key: make()}}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=message.replace("KEY", key)) as caught:
        convert_checkpoint.main([str(tmp_path / "file.pth"), str(tmp_path / "out.pth")])
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file.pth"]


@pytest.mark.parametrize("zipped", [True, False])
def test_the_first_nested_tensor_is_named_wherever_it_is(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    jagged = nested(torch.jagged)
    contents = {
        "state_dict": {"state_dict": jagged},
        "a": {"b": "text", "a": [torch.ones(1), "text", nested()], "c": jagged},
        "exp_avg": {"optimizer": {"state": {0: {"step": 3, "exp_avg": jagged}}}},
        "first": OrderedDict(zero=torch.ones(2), first=nested(), second=jagged),
        r"esc\\x1b\[31m": {"esc\x1b[31m": jagged},
    }
    for key, content in contents.items():
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=f"file.pth holds a nested tensor under {key}, and"):
            read_checkpoint(path)
    torch.save(jagged, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"file.pth holds a nested tensor, and"):
        read_checkpoint(path)


@pytest.mark.parametrize("make", [None, nested, lambda: nested(torch.jagged)], ids=["fake", "strided", "jagged"])
def test_a_given_state_of_fake_or_nested_tensors_is_refused_with_their_name(
    make: Callable[[], torch.Tensor] | None,
) -> None:
    backbone = TOYS["pvt"]()
    state = backbone.state_dict()
    key = next(name for name, tensor in state.items() if tensor.shape == (32,))
    with FakeTensorMode() as mode:
        pass
    state[key] = make() if make else mode.from_tensor(torch.ones(32))
    with pytest.raises(CheckpointError, match=f"{key} is quantized, sparse, nested or without data"):
        load_pretrained(backbone, state)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("state", [[1, 2], 3, None, "text", {1: 2}, {1: torch.ones(2)}, {"a": [1]}, {}], ids=repr)
def test_an_odd_state_dict_ends_in_one_line(
    way: Callable[[Path, Path], None], state: Any, trained: dict[str, Any], tmp_path: Path
) -> None:
    check_refused(way, {**trained, "state_dict": state}, tmp_path, r"holds no state dict|cannot be resumed: its ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meta": [1]}, r"its meta is \[1\], of type list"),
        ({"meta": None}, "its meta is None"),
        ({"meta": {"epoch": "1", "iter": 4}}, "its epoch is '1', of type str"),
        ({"meta": {"epoch": 1, "iter": -4}}, "its iter is -4"),
        ({"meta": {}}, "not that of a training .*epoch"),
        ({"meta": {"epoch": 1, "iter": 4, "seed": [1]}}, r"its seed is \[1\]"),
        ({"optimizer": [1]}, "its optimizer is"),
        ({"optimizer": {"state": 3, "param_groups": 4}}, "not that of a training"),
        ({"param_schedulers": 3}, "its param_schedulers is 3"),
        ({"message_hub": [1]}, "its message_hub is"),
        ({"ema_state_dict": [1]}, "its ema_state_dict is"),
    ],
    ids=repr,
)
def test_an_odd_state_of_a_run_ends_in_one_line(
    change: dict[str, Any], message: str, trained: dict[str, Any], tmp_path: Path
) -> None:
    check_refused(resume, {**trained, **change}, tmp_path, message)


@pytest.mark.parametrize("way", WAYS)
def test_whole_weights_are_taken(way: Callable[[Path, Path], None], trained: dict[str, Any], tmp_path: Path) -> None:
    content = copy.deepcopy(trained)
    content["state_dict"] = {key: tensor.half() for key, tensor in content["state_dict"].items()}
    torch.save(content, tmp_path / "file.pth")
    way(tmp_path / "file.pth", tmp_path / "run")


def test_a_state_that_holds_itself_ends_in_one_line(trained: dict[str, Any], tmp_path: Path) -> None:
    content = copy.deepcopy(trained)
    content["message_hub"]["log_scalars"]["loss"] = content["message_hub"]
    check_refused(resume, content, tmp_path, "cannot be resumed, as its state is not that of a training")
    content["model"] = content
    torch.save(content, tmp_path / "file.pth")
    predict(tmp_path / "file.pth", tmp_path)  # the weights are right


class WithBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.register_buffer("attn_mask", torch.zeros(2, 2))
        self.register_buffer("relative_position_index", torch.zeros(4, dtype=torch.long))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("attn_mask", torch.tensor([[0, float("-inf")], [-100, 0]]), True),
        ("attn_mask", torch.tensor([[0, float("nan")], [0, 0]]), False),
        ("relative_position_index", torch.arange(4), True),
        ("relative_position_index", torch.arange(4).int(), True),
        ("relative_position_index", torch.arange(4).half(), True),  # a file that was cast as a whole
        ("relative_position_index", torch.tensor([0, 1, 2, 0.5]), False),
        ("relative_position_index", torch.tensor([0, 1, 2, float("inf")]), False),
        ("relative_position_index", torch.ones(4, dtype=torch.cfloat), False),
        ("norm.num_batches_tracked", torch.tensor(7), True),
        ("norm.num_batches_tracked", torch.tensor(7.0), True),
        ("norm.running_var", torch.tensor([1, float("inf")]), False),
        ("norm.running_mean", torch.tensor([1, 2]), False),
        ("seen", torch.tensor([True, False]), True),
        ("seen", torch.tensor([1, 0]), True),
    ],
)
def test_buffers_may_hold_what_masks_and_counts_hold(name: str, value: torch.Tensor, right: bool) -> None:
    model = WithBuffers()
    given = model.state_dict() | {name: value}
    if right:
        check_values(model, given)
    else:
        with pytest.raises(CheckpointError, match=name):
            check_values(model, given)
