"""The weights of a whole model, from any wrapper, into a model that is tested or trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.logging import MMLogger
from torch import nn

from helpers.official import official_state
from helpers.toys import TOYS
from mm_vitbackbones.checkpoints.recognise import FAMILIES
from mm_vitbackbones.cli import weights
from mm_vitbackbones.cli.weights import load, load_weights, start_from
from mm_vitbackbones.errors import CheckpointError, UserError

State = dict[str, torch.Tensor]


class Toy(nn.Module):
    """A network of a backbone and a head."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.backbone = TOYS["pvt"]()
        self.head = nn.Linear(4, classes)


WRAPPERS: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "meta": {"epoch": 3}},
    "model": lambda state: {"model": state},
    "model_ema": lambda state: {"model_ema": {"state_dict": state}},
    "state_dict_ema": lambda state: {"state_dict_ema": state},
    "teacher": lambda state: {"teacher": state, "student": {key: tensor + 1 for key, tensor in state.items()}},
    "module": lambda state: {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}},
    "compiled": lambda state: {f"_orig_mod.module.{key}": tensor for key, tensor in state.items()},
    "compiled parts": lambda state: {key.replace(".", "._orig_mod.", 1): tensor for key, tensor in state.items()},
}


def runner_of(model: nn.Module, seen: list[dict[str, Any]]) -> Any:
    return SimpleNamespace(
        model=model,
        logger=MMLogger.get_current_instance(),
        call_hook=lambda name, checkpoint: seen.append(checkpoint),
    )


def equal(model: nn.Module, expected: State) -> bool:
    state = model.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.fixture(params=WRAPPERS)
def wrapped(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, State]:
    state = Toy().state_dict()
    torch.save(WRAPPERS[request.param](state), tmp_path / "file.pth")
    return tmp_path / "file.pth", state


def test_a_tested_model_takes_every_wrapper(wrapped: tuple[Path, State]) -> None:
    path, state = wrapped
    model, seen = Toy(), list[dict[str, Any]]()
    load(runner_of(model, seen), weights.read(path), path)
    assert equal(model, state)
    assert seen[0]["state_dict"].keys() == state.keys()
    assert not {"teacher", "student"} & seen[0].keys()
    model = Toy()
    load_weights(model, weights.read(path), path)
    assert equal(model, state)


def test_a_trained_model_starts_from_every_wrapper(wrapped: tuple[Path, State]) -> None:
    path, state = wrapped
    model, seen = Toy(), list[dict[str, Any]]()
    start_from(runner_of(model, seen), path)
    assert equal(model, state)
    assert seen[0]["state_dict"].keys() == state.keys()


def test_the_log_says_which_of_several_weights_were_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(weights, "print_log", lambda text, **_: lines.append(text))
    torch.save(WRAPPERS["teacher"](Toy().state_dict()), tmp_path / "file.pth")
    said = f"{tmp_path / 'file.pth'}: the file holds weights under teacher, student: those under teacher were taken"
    start_from(runner_of(Toy(), []), tmp_path / "file.pth")
    assert lines == [said]
    load(runner_of(Toy(), []), weights.read(tmp_path / "file.pth"), tmp_path / "file.pth")
    assert lines == [said] * 2


@pytest.mark.parametrize("layout", ["official", "openmmlab"])
def test_a_start_takes_a_backbone_of_another_layout_and_leaves_out_other_classes(tmp_path: Path, layout: str) -> None:
    source, model = Toy(classes=5), Toy(classes=3)
    head = {key: tensor.clone() for key, tensor in model.head.state_dict().items()}
    theirs, _ = FAMILIES["PVT"].layout(layout).to_theirs(source.backbone.state_dict())
    state = {f"backbone.{key}": tensor for key, tensor in theirs.items()}
    torch.save(
        {"state_dict": state | {"head.weight": source.head.weight, "head.bias": source.head.bias}}, tmp_path / "f.pth"
    )
    start_from(runner_of(model, []), tmp_path / "f.pth")
    assert equal(model.backbone, source.backbone.state_dict())
    assert equal(model.head, head)


def test_a_start_takes_a_bare_published_backbone(tmp_path: Path) -> None:
    torch.save(official_state("pvt"), tmp_path / "file.pth")
    model, alone = Toy(), TOYS["pvt"]()
    start_from(runner_of(model, []), tmp_path / "file.pth")
    weights.load_pretrained(alone, official_state("pvt"))
    assert equal(model.backbone, alone.state_dict())


def test_a_start_without_a_weight_of_the_model_is_refused(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.ones(1)}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"load_from: no weight of .*file\.pth is one of this model's \(conv\.weight\)"):
        start_from(runner_of(Toy(), []), tmp_path / "file.pth")


@pytest.mark.parametrize("use", [start_from, lambda runner, path: load_weights(runner.model, weights.read(path), path)])
def test_a_file_of_two_models_is_refused_by_its_name(use: Callable[..., Any], tmp_path: Path) -> None:
    state = official_state("pvt")
    torch.save(
        {f"{who}.{key}": tensor for who in ("student", "teacher") for key, tensor in state.items()}, tmp_path / "f.pth"
    )
    with pytest.raises(
        CheckpointError, match=r"f\.pth: holds 2 backbones, under the prefixes 'student\.', 'teacher\.'"
    ):
        use(runner_of(Toy(), []), tmp_path / "f.pth")


class Wrapped(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_a_model_in_two_wrappers_takes_its_weights(tmp_path: Path) -> None:
    # Test-time augmentation in a distributed run.
    state, model = Toy().state_dict(), Toy()
    load(runner_of(Wrapped(Wrapped(model)), []), {"state_dict": state}, tmp_path / "file.pth")
    assert equal(model, state)


def lines_of(use: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(weights, "print_log", lambda text, **_: lines.append(text))
    use()
    return lines


def test_a_start_lists_what_stays_fresh_and_what_is_unused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, path = Toy(classes=5), tmp_path / "file.pth"
    torch.save({"state_dict": source.state_dict() | {"neck.weight": torch.ones(2)}}, path)
    count = len(source.state_dict())
    assert lines_of(lambda: start_from(runner_of(Toy(classes=3), []), path), monkeypatch) == [
        f"load_from: {count - 2} of {count} tensors come from {path}; fresh: 2 of 2 of head "
        "(head.weight (3, 4), head.bias (3,))",
        f"load_from: not used of {path}: head.weight (5, 4), head.bias (5,), neck.weight (2,)",
    ]
    torch.save(source.state_dict(), path)
    assert lines_of(lambda: start_from(runner_of(Toy(classes=5), []), path), monkeypatch) == []


def test_a_start_takes_what_fits_of_another_arch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, model = Toy(), Toy()
    state = {key: tensor for key, tensor in source.state_dict().items() if ".stages.3." not in key}
    assert len(state) < len(source.state_dict())
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    torch.save(state, tmp_path / "file.pth")
    (line,) = lines_of(lambda: start_from(runner_of(model, []), tmp_path / "file.pth"), monkeypatch)
    assert "of backbone (backbone.stages.3." in line
    assert equal(model, before | state)


@pytest.mark.parametrize(
    "state",
    [{"backbone.conv1.weight": torch.ones(1)}, {}, {"backbone.stages.0.patch_embed.proj.weight": torch.ones(1)}],
)
def test_a_start_without_a_backbones_weight_is_refused(state: State, tmp_path: Path) -> None:
    torch.save(state | {f"head.{key}": tensor for key, tensor in Toy().head.state_dict().items()}, tmp_path / "f.pth")
    with pytest.raises(
        UserError, match=r"no weight of .*f\.pth fits this model's backbone \(.*\), only 2 of other parts"
    ):
        start_from(runner_of(Toy(), []), tmp_path / "f.pth")


def test_a_start_fits_position_tables_of_another_size(tmp_path: Path) -> None:
    source = Toy()
    key = "stages.0.position.table"
    theirs, _ = FAMILIES["PVT"].layout("official").to_theirs(source.backbone.state_dict())
    larger = {k: torch.ones(1, 4 * t.shape[1], t.shape[2]) if k == "pos_embed1" else t for k, t in theirs.items()}
    assert larger["pos_embed1"].shape != theirs["pos_embed1"].shape
    torch.save({f"backbone.{k}": tensor for k, tensor in larger.items()}, tmp_path / "file.pth")
    model = Toy()
    start_from(runner_of(model, []), tmp_path / "file.pth")
    torch.testing.assert_close(model.backbone.state_dict()[key], torch.ones_like(source.backbone.state_dict()[key]))
