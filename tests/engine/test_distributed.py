"""Training in two processes equals training in one: no parameter waits for a gradient that never comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers import peft as peft_helper
from helpers.distributed import (
    ADAPTED,
    ADAPTERS,
    ALL_SHARDED,
    BY_STRATEGY,
    CASES,
    ORDERS,
    SHARDED,
    TRUNKS,
    build,
    build_trunk,
    forms,
    images,
    strategy_folder,
    train,
    train_by_trainer,
    work,
    work_by_strategy_in_all,
    work_by_trainer_in_all,
    work_compiled,
    work_in_all_shards,
)
from helpers.official import relative_error
from helpers.paths import ROOT
from helpers.peft import needs_peft, peft  # noqa: F401
from helpers.runs import run_program
from mm_vitbackbones.adapters import name_in_file
from mm_vitbackbones.engine.sharding import ShardedModel
from mm_vitbackbones.errors import UserError

pytestmark = pytest.mark.xdist_group("distributed")


def in_two(function: Callable[[int, str], None], folder: Path) -> None:
    """Runs a function of helpers/distributed.py in two processes, which get their ranks and this folder."""
    done = run_program([str(ROOT / "tests/helpers/in_two.py"), function.__name__, str(folder)], str(folder))
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    in_two(work, folder)
    return folder


@pytest.fixture(scope="module")
def learnt_by_two(folder_of_two: Path) -> list[dict]:
    folder = folder_of_two
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_two_processes_learn_what_one_does(case: tuple[str, str], learnt_by_two: list[dict]) -> None:
    network = build(*case)
    check_learnt(network, frozen_in(network), [learnt[case] for learnt in learnt_by_two])


@needs_peft
def test_two_processes_learn_the_adapters_that_one_does(learnt_by_two: list[dict], peft: None) -> None:  # noqa: F811
    network = build("dinov3", "block", adapters=ADAPTERS)
    frozen = frozen_in(network) | {"lora_alpha"}  # which is given
    check_learnt(network, frozen, [learnt[ADAPTED] for learnt in learnt_by_two])


def frozen_in(network: nn.Module) -> set[str]:
    """The names of its parameters that are not trained, of which there are some."""
    frozen = {name_in_file(name) for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert 0 < len(frozen) < len(network.state_dict())
    return frozen


@pytest.mark.parametrize("case", TRUNKS, ids="-".join)
def test_two_processes_learn_on_a_frozen_trunk_and_with_it_what_one_does(
    case: tuple[str, str], folder_of_two: Path
) -> None:
    network = build_trunk(*case)
    learnt = [torch.load(folder_of_two / f"trunks_{rank}.pth", weights_only=True)[case] for rank in (0, 1)]
    frozen = {name for name, _ in network.named_parameters() if not name.startswith("pyramid.")}
    check_learnt(network, frozen if case[1] == "all" else set(), learnt)


def check_learnt(network: nn.Module, frozen: set[str], learnt: list[dict[str, Any]]) -> None:
    """Two processes have learnt the same, which is what this network learns in one: all parameters but the frozen, and
    those that add the same to the scores of all keys, which the softmax cancels."""
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    frozen = frozen | {name for name, _ in network.named_buffers()}  # batch norms are in eval mode
    train(network, images())
    for name, tensor in network.state_dict().items():
        first, second = (each[name] for each in learnt)
        assert torch.equal(first, second), name
        if name.endswith(CANCELLED) and (tensor - start[name]).abs().max() < 1e-14:
            assert (first - start[name]).abs().max() < 1e-14, name
            continue
        assert torch.equal(tensor, start[name]) == (name in frozen), name
        if name not in frozen:
            assert relative_error(first - start[name], tensor - start[name]) < 1e-9, name


CANCELLED = ("attn.proj_l.bias", "attn.norm_k.bias")
"""Of CaiT, and of MViTv2's blocks without windows."""


def check_against_one_process(case: tuple[str, str, str], learnt: dict[str, Any], **arguments: Any) -> None:
    """Full weights of a sharded training load into a plain network, and are those of a training in one process."""
    toy, with_cp, kind = case
    network, loaded = (build(toy, with_cp, **arguments) for _ in range(2))
    start = build(toy, with_cp, **arguments).state_dict()
    loaded.load_state_dict(learnt)
    with forms(kind):
        train(network, images())
    trained = 0
    for (name, tensor), found in zip(network.state_dict().items(), loaded.state_dict().values(), strict=True):
        change = tensor - start[name]
        if name.endswith(CANCELLED) and change.abs().max() < 1e-14:
            assert (found - start[name]).abs().max() < 1e-14, name
        elif torch.equal(tensor, start[name]):
            assert torch.equal(found, tensor), name
        else:
            assert relative_error(found - start[name], change) < 1e-6, name
            trained += 1
    assert trained


@pytest.mark.parametrize("case", SHARDED, ids="-".join)
def test_sharded_blocks_learn_what_one_process_does(case: tuple[str, str, str], folder_of_two: Path) -> None:
    learnt = torch.load(folder_of_two / "sharded.pth", weights_only=True)
    check_against_one_process(case, learnt[case])


def saved_by_strategy(folder: Path, *case: str) -> dict[str, Any]:
    """The backbone's weights of a checkpoint that MMEngine has saved."""
    checkpoint = torch.load(strategy_folder(folder, *case) / "epoch_1.pth", weights_only=False)
    return {name.removeprefix("backbone."): tensor for name, tensor in checkpoint["state_dict"].items()}


@pytest.mark.parametrize("case", BY_STRATEGY, ids="-".join)
def test_the_sharding_strategy_of_mmengine_learns_what_one_process_does(
    case: tuple[str, str], folder_of_two: Path
) -> None:
    check_against_one_process((*case, "cpu"), saved_by_strategy(folder_of_two, *case))


@pytest.mark.slow
def test_the_sharding_strategy_of_mmengine_trains_every_family_and_adapters(tmp_path: Path) -> None:
    in_two(work_by_strategy_in_all, tmp_path)
    for case in CASES:
        check_against_one_process((*case, "cpu"), saved_by_strategy(tmp_path, *case))
    if peft_helper.IS_THERE:
        with peft_helper.importable():
            learnt = saved_by_strategy(tmp_path, ADAPTED)
            check_against_one_process(("dinov3", "block", "cpu"), learnt, adapters=ADAPTERS)


@pytest.mark.slow
def test_sharded_blocks_of_every_family_learn_what_one_process_does(tmp_path: Path) -> None:
    in_two(work_in_all_shards, tmp_path)
    learnt = torch.load(tmp_path / "sharded.pth", weights_only=True)
    assert len(learnt) == len(ALL_SHARDED)
    for case, weights in learnt.items():
        check_against_one_process(case, weights)


@pytest.fixture(scope="module")
def folder_of_compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled")
    in_two(work_compiled, folder)
    return folder


@pytest.mark.slow
def test_two_processes_learn_in_compiled_blocks_what_one_does(folder_of_compiled: Path) -> None:
    network = build("mit", "block")
    learnt = [torch.load(folder_of_compiled / f"{rank}.pth", weights_only=True) for rank in (0, 1)]
    check_learnt(network, frozen_in(network), learnt)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_sharded_blocks_that_are_compiled_learn_what_one_process_does(order: str, folder_of_compiled: Path) -> None:
    learnt = torch.load(folder_of_compiled / "sharded.pth", weights_only=True)
    check_against_one_process(("mit", "block", "cpu"), learnt[order])


def check_equal_files(first: Path, second: Path) -> None:
    """Two checkpoints hold the same: whole tensors, of equal values, under the same names."""
    one, two = (torch.load(path, weights_only=False) for path in (first, second))
    for key in ("state_dict", "ema_state_dict", "optimizer"):
        expected, found = (dict(leaves(each[key])) for each in (one, two))
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert type(found[name]) is type(value), name
            if isinstance(value, torch.Tensor):
                expected_values, values = value.double(), found[name].double()
                assert (values - expected_values).norm() <= 1e-9 * expected_values.norm(), name
            else:
                assert found[name] == value, name
    assert any(name.startswith("backbone.") for name in two["state_dict"])


def leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else None
    if items is None:
        yield name, node
    for key, value in items or ():
        yield from leaves(value, f"{name}.{key}")


@pytest.mark.parametrize("name", ["sharded", "to_whole", "to_sharded"])
def test_a_sharded_training_saves_what_a_whole_one_does_and_resumes_what_it_has_saved(
    name: str, folder_of_two: Path
) -> None:
    check_equal_files(folder_of_two / "whole" / "epoch_2.pth", folder_of_two / name / "epoch_2.pth")


def test_a_process_holds_its_share_of_weights_averages_and_states(folder_of_two: Path) -> None:
    held = {
        name: [torch.load(folder_of_two / name / f"held_{rank}.pth", weights_only=True) for rank in (0, 1)]
        for name in ("whole", "sharded", "to_sharded")
    }
    whole = held["whole"][0]
    assert whole == held["whole"][1]
    for name in ("sharded", "to_sharded"):
        first, second = held[name]
        for key, elements in whole.items():
            assert first[key] + second[key] == elements
            assert 0.45 < first[key] / elements < 0.6


def test_one_process_says_that_it_keeps_all_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    train_by_trainer(build("swin", "ffn"), tmp_path, sharded=True, epochs=1, launcher="none")
    (log,) = tmp_path.glob("*/*.log")
    assert "model_wrapper_cfg: one process trains, and keeps all weights" in log.read_text()
    assert (tmp_path / "epoch_1.pth").exists()


@pytest.mark.slow
def test_sharded_trainings_of_every_family_save_what_whole_ones_do(tmp_path: Path) -> None:
    in_two(work_by_trainer_in_all, tmp_path)
    for case in CASES:
        whole, sharded = (tmp_path / "-".join(case) / kind / "epoch_1.pth" for kind in ("whole", "sharded"))
        check_equal_files(whole, sharded)


def test_a_parameter_without_dimensions_is_named() -> None:
    model = nn.Module()
    model.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(UserError, match="cannot spread parameters without dimensions, as scale: leave"):
        ShardedModel(model)
