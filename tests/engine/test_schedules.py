"""A resumed run follows its config: the schedule of a run of this config from its start, the checkpoint's moments."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from helpers.toy_runs import StopHook, Stopped, ToyModel, logged, toy_config, toy_runner
from helpers.toys import TOYS
from mm_vitbackbones.cli.weights import Trainer
from mm_vitbackbones.engine import plain_data, schedules
from mm_vitbackbones.engine.layer_decay import LayerDecayOptimWrapperConstructor
from mm_vitbackbones.errors import UserError

STOP = 2
"""The epoch, or four times as many iterations, at which runs are stopped and resumed."""


class State(Hook):
    """What the optimizer and the schedulers are like as training begins."""

    def before_train(self, runner: Any) -> None:
        schedulers = runner.param_schedulers or []
        self.optimizer = copy.deepcopy(runner.optim_wrapper.state_dict())
        self.schedulers = copy.deepcopy([each.state_dict() for each in schedulers])
        self.iter = runner.iter


Train = Callable[..., Any]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Train a toy config in the folder of this name, to this epoch or to the end: the first state, and the messages."""

    def run(name: str, resumed: str | None = None, model: Any = None, stop: int | None = None, **changes: Any) -> Any:
        options = {"load_from": str(tmp_path / resumed), "resume": True} if resumed else {}
        runner = toy_runner(toy_config(**changes), tmp_path / name, **options, model=model and model())
        state = State()
        runner.register_hook(state)
        if stop is not None:
            runner.register_hook(StopHook(stop))
        with logged(runner) as lines, contextlib.suppress(Stopped):
            runner.train()
        lines = [line for line in lines if line.startswith(("the config", "resumed at"))]
        return SimpleNamespace(state=state, lines=lines)

    return run


def checkpoint(path: Path) -> dict[str, Any]:
    content = torch.load(path, weights_only=True)
    plain_data.restore(content)
    return content


def settings(optimizer: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [*optimizer["param_groups"], optimizer.get("base_param_settings") or {}]
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]


def without_functions(states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in state.items() if not callable(value)} for state in states]


WARM_UP = dict(type="LinearLR", by_epoch=False, start_factor=0.1, begin=0, end=11)
COSINE = dict(type="CosineAnnealingLR", by_epoch=True)
BY_ITERATION = dict(train_cfg=dict(_delete_=True, by_epoch=False, max_iters=16))
HEAD = dict(custom_keys=dict(head=dict(lr_mult=10.0)))

# what the first run has, what the resumed one has in its place, and a word of the message
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "more epochs": ({}, dict(train_cfg__max_epochs=6), "CosineAnnealingLR.T_max 4 -> 6"),
    "learning rate": ({}, dict(optim_wrapper__optimizer__lr=0.03), "lr 0.01 -> 0.03"),
    "weight decay and betas": (
        {},
        dict(optim_wrapper__optimizer__weight_decay=0.1, optim_wrapper__optimizer__betas=(0.8, 0.99)),
        "betas (0.9, 0.999) -> (0.8, 0.99), weight_decay 0.05 -> 0.1",
    ),
    "another schedule": (
        {},
        dict(param_scheduler=[WARM_UP, dict(type="MultiStepLR", by_epoch=True, milestones=[1, 3])]),
        "CosineAnnealingLR -> LinearLR, MultiStepLR",
    ),
    "milestones": (
        dict(param_scheduler=[dict(type="MultiStepLR", by_epoch=True, milestones=[1, 3])]),
        dict(param_scheduler=[dict(type="MultiStepLR", by_epoch=True, milestones=[2, 3], gamma=0.5)]),
        "MultiStepLR.milestones [1, 3] -> [2, 3]",
    ),
    "a warm-up before a cosine by iteration": (
        dict(param_scheduler=[WARM_UP, dict(COSINE, convert_to_iter_based=True)]),
        dict(param_scheduler=[dict(WARM_UP, end=9), dict(COSINE, T_max=7, eta_min=1e-5, convert_to_iter_based=True)]),
        "LinearLR.end 11 -> 9",
    ),
    "one cycle": (
        dict(param_scheduler=[dict(type="OneCycleLR", by_epoch=False, eta_max=0.1, total_steps=16)]),
        dict(
            param_scheduler=[dict(type="OneCycleLR", by_epoch=False, eta_max=0.2, total_steps=24)],
            train_cfg__max_epochs=6,
        ),
        "OneCycleLR.eta_max 0.1 -> 0.2",
    ),
    "no schedule": ({}, dict(param_scheduler=None), "CosineAnnealingLR -> no scheduler"),
    "a schedule for the first time": (
        dict(param_scheduler=None),
        dict(param_scheduler=[COSINE]),
        "no scheduler -> CosineAnnealingLR",
    ),
    "momentum of AdamW": (
        dict(param_scheduler=[COSINE, dict(type="CosineAnnealingMomentum", by_epoch=False)]),
        dict(param_scheduler=[COSINE, dict(type="CosineAnnealingMomentum", by_epoch=False, eta_min=0.5)]),
        "CosineAnnealingMomentum.eta_min 0 -> 0.5",
    ),
    "momentum of SGD": (
        dict(optim_wrapper__optimizer=dict(_delete_=True, type="SGD", lr=0.01, momentum=0.9)),
        dict(optim_wrapper__optimizer=dict(_delete_=True, type="SGD", lr=0.01, momentum=0.5)),
        "momentum 0.9 -> 0.5",
    ),
    "more iterations": (
        dict(BY_ITERATION, param_scheduler=[dict(type="PolyLR", by_epoch=False, power=0.9)]),
        dict(
            train_cfg=dict(_delete_=True, by_epoch=False, max_iters=24),
            param_scheduler=[dict(type="PolyLR", by_epoch=False, power=0.9)],
        ),
        "PolyLR.end 16 -> 24",
    ),
    "rate of a part": (dict(optim_wrapper__paramwise_cfg=HEAD), dict(train_cfg__max_epochs=6), "T_max 4 -> 6"),
    "rate of a part for the first time": ({}, dict(optim_wrapper__paramwise_cfg=HEAD), "parameter groups 1 -> 6"),
    "no rate of a part": (
        dict(optim_wrapper__paramwise_cfg=HEAD),
        dict(optim_wrapper__paramwise_cfg=None),
        "parameter groups 6 -> 1",
    ),
    "another batch": ({}, dict(train_dataloader__batch_size=4), "iterations of an epoch 4 -> 2"),
    "another batch and a schedule by iteration": (
        dict(param_scheduler=[WARM_UP]),
        dict(train_dataloader__batch_size=1, param_scheduler=[WARM_UP]),
        "batch_size 2 -> 1",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_run_has_the_schedule_of_a_fresh_run_at_its_step(case: str, train: Train, tmp_path: Path) -> None:
    old, changes, said = CASES[case]
    new = {**old, **changes}
    by_iteration = "train_cfg" in old
    keep = dict(default_hooks__checkpoint__by_epoch=not by_iteration, default_hooks__checkpoint__interval=1)
    train("old", stop=STOP, **old, **keep)
    train("fresh", stop=STOP, **new, **keep)
    stopped = f"old/iter_{4 * STOP}.pth" if by_iteration else f"old/epoch_{STOP}.pth"
    resumed = train("resumed", resumed=stopped, stop=0, **new, **keep)

    before = checkpoint(tmp_path / stopped)
    fresh = checkpoint(tmp_path / stopped.replace("old", "fresh"))
    assert settings(resumed.state.optimizer) == settings(fresh["optimizer"])
    assert without_functions(resumed.state.schedulers) == fresh.get("param_schedulers", [])
    assert resumed.state.iter == fresh["meta"]["iter"]
    # The moments are the checkpoint's, by the names of the parameters.
    moments = [by_name(content["optimizer"]["state"], content["meta"]) for content in (before, fresh)]
    assert same(by_name(resumed.state.optimizer["state"], fresh["meta"]), moments[0])
    (line,) = resumed.lines
    assert said in line
    assert line.startswith("the config differs")


def by_name(state: dict[int, Any], meta: dict[str, Any]) -> dict[str, Any]:
    names = [name for group in meta["run"]["parameters"][""] for name in group]
    return {names[index]: value for index, value in state.items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name][key], other[name][key]) for name in one for key in one[name] if one[name][key] is not None
    )


def test_learning_rate_after_more_epochs_is_that_of_the_formula(train: Train) -> None:
    train("old", stop=3)
    resumed = train("resumed", resumed="old/epoch_3.pth", stop=0, train_cfg__max_epochs=12)
    (group,) = settings(resumed.state.optimizer)[:1]
    assert group["lr"] == pytest.approx(0.01 * (1 + math.cos(math.pi * 3 / 12)) / 2, rel=1e-12)
    assert "learning rate 0.00146447 -> 0.00853553" in resumed.lines[0]


@pytest.mark.parametrize(
    "config",
    [
        {},
        dict(param_scheduler=[WARM_UP, dict(COSINE, convert_to_iter_based=True)], optim_wrapper__paramwise_cfg=HEAD),
        dict(param_scheduler=[dict(type="OneCycleLR", by_epoch=False, eta_max=0.1, total_steps=16)]),
        dict(param_scheduler=[COSINE, dict(type="CosineAnnealingMomentum", by_epoch=False)]),
        dict(param_scheduler=[dict(type="MultiStepLR", by_epoch=True, milestones=[1, 3])]),
    ],
)
def test_unchanged_config_resumes_to_equal_weights_without_a_message(
    config: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    config = dict(config, train_cfg__max_epochs=3)
    train("old", **config)
    resumed = train("resumed", resumed=f"old/epoch_{STOP}.pth", **config)
    assert resumed.lines == []
    ends = [checkpoint(tmp_path / name / "epoch_3.pth") for name in ("old", "resumed")]
    assert all(torch.equal(ends[0]["state_dict"][key], ends[1]["state_dict"][key]) for key in ends[0]["state_dict"])
    assert settings(ends[0]["optimizer"]) == settings(ends[1]["optimizer"])
    histories = [[*end["message_hub"]["log_scalars"]["train/loss"].data[0]] for end in ends]
    assert histories[0] == histories[1]


def test_checkpoint_in_the_middle_of_an_epoch_keeps_its_iteration(train: Train) -> None:
    train("old", stop=2, default_hooks__checkpoint__by_epoch=False)
    resumed = train("resumed", resumed="old/iter_6.pth", stop=0)
    assert (resumed.state.iter, resumed.lines) == (6, [])


def test_another_batch_by_iteration_is_reported_and_changes_no_rate(train: Train) -> None:
    config = dict(BY_ITERATION, default_hooks__checkpoint__by_epoch=False)
    train("old", stop=1, **config)
    changes = dict(train_dataloader__batch_size=1, optim_wrapper__accumulative_counts=2)
    resumed = train("resumed", resumed="old/iter_4.pth", stop=0, **config, **changes)
    assert len(resumed.state.schedulers) == 1
    assert resumed.lines == [
        "resumed at epoch 0, iteration 4 with another batch than the checkpoint's: batch_size 2 -> 1, "
        "accumulative_counts 1 -> 2"
    ]


def test_plateau_goes_on_unless_the_schedule_changes(train: Train) -> None:
    plateau = [dict(type="ReduceOnPlateauLR", by_epoch=True, monitor="loss", patience=1)]
    train("old", stop=2, param_scheduler=plateau)
    assert train("same", resumed="old/epoch_2.pth", stop=0, param_scheduler=plateau).lines == []
    changed = [dict(plateau[0], patience=3)]
    resumed = train("changed", resumed="old/epoch_2.pth", stop=0, param_scheduler=changed)
    assert "ReduceOnPlateauLR.patience 1 -> 3" in resumed.lines[0]
    assert resumed.state.schedulers[0]["_global_step"] == 2


def test_steps_of_many_equal_groups_are_made_once(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmengine.optim.scheduler import CosineAnnealingLR

    counts = set[int]()
    original = CosineAnnealingLR._get_value
    monkeypatch.setattr(
        CosineAnnealingLR,
        "_get_value",
        lambda self: counts.add(len(self.optimizer.optimizer.param_groups)) or original(self),
    )
    train("old", optim_wrapper__paramwise_cfg=HEAD)
    counts.clear()
    train(
        "resumed",
        resumed="old/epoch_3.pth",
        optim_wrapper__paramwise_cfg=HEAD,
        train_cfg__max_epochs=4,
        param_scheduler=[dict(COSINE, eta_min=1e-4)],
    )
    assert counts == {6, 2}


# ---- what the optimizer's state is of


class Detector(ToyModel):
    """With a backbone of ours, whose depths have rates of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = TOYS["pvt"](), nn.Linear(1, 1)

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        image = torch.stack([*inputs])[:, :1, None, None].expand(-1, 3, 32, 32)
        return {"loss": self.head(self.backbone(image)[-1].mean().view(1, 1)).square().mean()}


def test_another_layer_decay_keeps_each_parameters_moments(train: Train, tmp_path: Path) -> None:
    def config(rate: float) -> dict[str, Any]:
        return dict(
            optim_wrapper__constructor=LayerDecayOptimWrapperConstructor,
            optim_wrapper__paramwise_cfg=dict(layer_decay_rate=rate),
            train_cfg__max_epochs=2,
        )

    train("old", stop=1, model=Detector, **config(0.5))
    train("fresh", stop=1, model=Detector, **config(1.0))
    resumed = train("resumed", resumed="old/epoch_1.pth", stop=0, model=Detector, **config(1.0))
    before, fresh = (checkpoint(tmp_path / name / "epoch_1.pth") for name in ("old", "fresh"))
    assert settings(resumed.state.optimizer) == settings(fresh["optimizer"])
    assert len(before["optimizer"]["param_groups"]) > len(fresh["optimizer"]["param_groups"])
    assert same(
        by_name(resumed.state.optimizer["state"], fresh["meta"]), by_name(before["optimizer"]["state"], before["meta"])
    )


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class HeadAlone:
    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: Any = None) -> None:
        self.rate = optim_wrapper_cfg["optimizer"]["lr"]

    def __call__(self, model: Any) -> OptimWrapper:
        return OptimWrapper(torch.optim.AdamW(model.head.parameters(), lr=self.rate, weight_decay=0.05))


def test_parameters_that_only_one_run_trains_are_named(train: Train) -> None:
    train("old", stop=2, optim_wrapper__constructor="HeadAlone")
    resumed = train("resumed", resumed="old/epoch_2.pth", stop=3)
    assert "4 parameters trained now (backbone.0.bias, backbone.0.weight, ... (2 more))" in resumed.lines[0]
    assert len(resumed.state.optimizer["state"]) == 2
    resumed = train("back", resumed="resumed/epoch_3.pth", stop=0, optim_wrapper__constructor="HeadAlone")
    assert "4 parameters no longer trained" in resumed.lines[0]
    assert len(resumed.state.optimizer["state"]) == 2


def without_record(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    del content["meta"]["run"]
    torch.save(content, path)


def test_file_without_names_is_resumed_by_position(train: Train, tmp_path: Path) -> None:
    train("old", stop=2, optim_wrapper__paramwise_cfg=HEAD)
    without_record(tmp_path / "old/epoch_2.pth")
    resumed = train(
        "resumed", resumed="old/epoch_2.pth", stop=0, optim_wrapper__paramwise_cfg=HEAD, train_cfg__max_epochs=6
    )
    before = checkpoint(tmp_path / "old/epoch_2.pth")["optimizer"]["state"]
    assert torch.equal(resumed.state.optimizer["state"][3]["exp_avg"], before[3]["exp_avg"])
    resumed = train(
        "batch", resumed="old/epoch_2.pth", optim_wrapper__paramwise_cfg=HEAD, train_dataloader__batch_size=4
    )
    assert "iterations of an epoch 4 -> 2" in resumed.lines[0]
    assert resumed.state.iter == 4
    with pytest.raises(UserError, match=r"groups the parameters in another way .*load_from"):
        train("refused", resumed="old/epoch_2.pth")


def test_state_of_another_optimizer_is_refused(train: Train) -> None:
    train("old", stop=2)
    sgd = dict(optim_wrapper__optimizer=dict(_delete_=True, type="SGD", lr=0.1, momentum=0.9))
    with pytest.raises(UserError, match=r"another optimizer than SGD .*betas.*load_from"):
        train("resumed", resumed="old/epoch_2.pth", **sgd)
    # Adam and AdamW have the same state.
    assert (
        "decoupled_weight_decay"
        in train("adam", resumed="old/epoch_2.pth", optim_wrapper__optimizer__type="Adam").lines[0]
    )


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TwoOptimizers:
    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: Any = None) -> None:
        self.rates = optim_wrapper_cfg["rates"]

    def __call__(self, model: Any) -> OptimWrapperDict:
        parts = {"one": model.backbone, "two": model.head}
        optimizers = {name: torch.optim.AdamW(parts[name].parameters(), lr=rate) for name, rate in self.rates.items()}
        return OptimWrapperDict(**{name: OptimWrapper(each) for name, each in optimizers.items()})


class TwoSteps(ToyModel):
    def train_step(self, data: Any, optim_wrapper: Any) -> Any:
        losses = self(data["inputs"], mode="loss")
        for wrapper in optim_wrapper.values():
            wrapper.zero_grad()
        losses["loss"].backward()
        for wrapper in optim_wrapper.values():
            wrapper.step()
        return {"loss": losses["loss"].detach()}


def test_each_of_several_optimizers_follows_its_schedule(train: Train, tmp_path: Path) -> None:
    def config(rate: float, **more: Any) -> dict[str, Any]:
        wrapper = dict(_delete_=True, constructor="TwoOptimizers", rates=dict(one=0.1, two=rate))
        return dict(optim_wrapper=wrapper, param_scheduler=dict(_delete_=True, one=[COSINE], two=[WARM_UP]), **more)

    class Both(State):
        def before_train(self, runner: Any) -> None:
            self.optimizer = copy.deepcopy(runner.optim_wrapper.state_dict())

    def run(name: str, resumed: str | None = None, **changes: Any) -> tuple[Any, list[str]]:
        cfg = toy_config()
        cfg.param_scheduler, cfg.optim_wrapper = changes["param_scheduler"], changes["optim_wrapper"]
        cfg.optim_wrapper.pop("_delete_")
        cfg.param_scheduler.pop("_delete_")
        cfg.train_cfg.max_epochs = changes.get("max_epochs", 4)
        options = {"load_from": str(tmp_path / resumed), "resume": True} if resumed else {}
        runner, state = toy_runner(cfg, tmp_path / name, model=TwoSteps(), **options), Both()
        runner.register_hook(state)
        with logged(runner) as lines:
            runner.train()
        return state, [line for line in lines if line.startswith("the config")]

    run("old", **config(0.2))
    run("fresh", **config(0.4, max_epochs=6))
    state, (line,) = run("resumed", "old/epoch_2.pth", **config(0.4, max_epochs=6))
    assert run("same", "old/epoch_2.pth", **config(0.2))[1] == []
    fresh = checkpoint(tmp_path / "fresh/epoch_2.pth")["optimizer"]
    for name in ("one", "two"):
        assert settings(state.optimizer[name]) == settings(fresh[name])
    assert "one: CosineAnnealingLR.T_max 4 -> 6" in line
    assert "two: lr 0.2 -> 0.4" in line
    with pytest.raises(UserError, match=r"the optimizers one, two, and the config one optimizer"):
        toy_runner(toy_config(), tmp_path / "single", load_from=str(tmp_path / "old/epoch_2.pth"), resume=True).train()


# ---- parts


@pytest.mark.parametrize(
    ("meta", "by_epoch"),
    [
        ({"run": {"by_epoch": False}, "epoch": 3}, False),
        ({"cfg": "a = 1\ntrain_cfg = dict(max_epochs=2, type='EpochBasedTrainLoop')\n", "epoch": 0}, True),
        ({"cfg": "train_cfg = dict(\n    max_iters=20,\n    val_interval=2)\n", "epoch": 0}, False),
        ({"cfg": "", "epoch": 3}, True),
        ({"epoch": 0, "iter": 5}, None),
    ],
)
def test_loop_of_a_checkpoint_is_found(meta: dict[str, Any], by_epoch: bool | None) -> None:
    assert schedules.trained_by_epoch(meta) is by_epoch


@pytest.mark.parametrize(("counts", "processes", "factor"), [(1, 1, 0.125), (8, 1, 1.0), (8, 2, 2.0), (1, 4, 0.5)])
def test_learning_rate_is_scaled_by_all_images_of_a_step(
    counts: int, processes: int, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = torch.optim.SGD([{"params": nn.Linear(1, 1).parameters(), "lr": 0.5}], lr=0.1)
    wrapper = OptimWrapper(optimizer, accumulative_counts=counts)
    lines: list[str] = []
    runner = SimpleNamespace(
        train_dataloader=SimpleNamespace(batch_size=2),
        world_size=processes,
        logger=SimpleNamespace(info=lines.append),
    )
    Trainer.scale_lr(runner, wrapper, {"enable": True, "base_batch_size": 16})
    assert optimizer.param_groups[0]["lr"] == 0.5 * factor
    images = 2 * processes * counts
    assert f"2 images x {processes} process(es) x {counts} iteration(s) = {images} images a step" in lines[0]
    assert f"scaled by {factor:g}" in lines[0]
    with pytest.raises(UserError, match="base_batch_size"):
        Trainer.scale_lr(runner, wrapper, {"enable": True})
    Trainer.scale_lr(runner, wrapper, {"enable": False, "base_batch_size": 16})
    assert optimizer.param_groups[0]["lr"] == 0.5 * factor
