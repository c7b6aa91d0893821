"""Checkpoints of runs with EMAHook: testing takes the averages, training goes on with the weights themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseTTAModel

from helpers.toy_runs import StopHook, Stopped, ToyModel, logged, toy_config, toy_evaluation, toy_runner
from mm_vitbackbones.cli.weights import EvaluationRunner, load_weights
from mm_vitbackbones.engine.resume import read

EMA = dict(type="EMAHook", momentum=0.3)
State = dict[str, torch.Tensor]


class Seen(Hook):
    """The model's weights during an evaluation, and as training begins."""

    def __init__(self) -> None:
        self.tested: list[State] = []

    def _keep(self, runner: Any, *_: Any, **__: Any) -> None:
        model = getattr(runner.model, "module", runner.model)
        self.tested.append({key: tensor.clone() for key, tensor in model.state_dict().items()})

    before_train = after_val_iter = after_test_iter = _keep


def train(folder: Path, hook: dict[str, Any] | None = EMA, **options: Any) -> tuple[Any, Seen, list[str]]:
    runner = toy_runner(toy_config(custom_hooks=[hook] if hook else [], train_cfg__max_epochs=2), folder, **options)
    seen = Seen()
    runner.register_hook(seen)
    with logged(runner) as lines:
        runner.train()
    return runner, seen, lines


def weights(runner: Any) -> State:
    return {key: tensor.clone() for key, tensor in runner.model.state_dict().items()}


def averages(runner: Any) -> State:
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
    return {key: tensor.clone() for key, tensor in hook.ema_model.module.state_dict().items()}


def equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class ToyTTA(BaseTTAModel):
    def merge_preds(self, data_samples_list: Any) -> Any:
        return data_samples_list

    def test_step(self, data: Any) -> Any:
        return self.module(data["inputs"], mode="predict")


def evaluate(folder: Path, path: Path, hook: dict[str, Any] | None, tta: bool) -> tuple[Seen, list[str]]:
    cfg = Config(dict(default_scope="mmengine", custom_hooks=[hook] if hook else [], randomness=dict(seed=5)))
    cfg.merge_from_dict(toy_evaluation("test"))
    model = ToyTTA(ToyModel()) if tta else ToyModel()
    runner, seen = toy_runner(cfg, folder, kind=EvaluationRunner, model=model), Seen()
    runner.register_hook(seen)
    with logged(runner) as lines:
        runner.use(read(path), path)
        runner.test()
    return seen, lines


@pytest.mark.parametrize(
    ("hook", "in_test", "tta"),
    [
        (EMA, True, False),
        (EMA, False, False),
        (EMA, True, True),
        (EMA, False, True),
        (dict(EMA, ema_type="MomentumAnnealingEMA", gamma=3), True, False),
        (dict(type="EMAHook", ema_type="StochasticWeightAverage"), True, False),
        (dict(EMA, update_buffers=True), True, True),
        (dict(EMA, begin_epoch=1), False, False),
    ],
)
def test_a_test_is_of_the_averages_and_says_so(hook: dict[str, Any], in_test: bool, tta: bool, tmp_path: Path) -> None:
    runner, _, _ = train(tmp_path / "run", hook)
    path = tmp_path / "run/epoch_2.pth"
    assert not equal(averages(runner), weights(runner))
    seen, lines = evaluate(tmp_path / "test", path, hook if in_test else None, tta)
    assert seen.tested
    assert all(equal(state, averages(runner)) for state in seen.tested)
    assert sum("averages that EMAHook made" in line for line in lines) == 1


def test_averages_of_mmdets_kind_are_tested(tmp_path: Path) -> None:
    pytest.importorskip("mmdet")
    from mmdet.models.layers import ExpMomentumEMA

    hook = dict(EMA, ema_type=ExpMomentumEMA, momentum=0.1)
    runner, _, _ = train(tmp_path / "run", hook)
    seen, _ = evaluate(tmp_path / "test", tmp_path / "run/epoch_2.pth", hook, tta=False)
    assert all(equal(state, averages(runner)) for state in seen.tested)


def test_a_file_without_averages_is_tested_with_the_hook(tmp_path: Path) -> None:
    runner, _, _ = train(tmp_path / "run", None)
    seen, lines = evaluate(tmp_path / "test", tmp_path / "run/epoch_2.pth", EMA, tta=False)
    assert all(equal(state, weights(runner)) for state in seen.tested)
    assert not any("weights are the averages" in line for line in lines)


def test_a_predicting_model_has_the_averages(tmp_path: Path) -> None:
    runner, _, _ = train(tmp_path / "run")
    model, path = ToyModel(), tmp_path / "run/epoch_2.pth"
    with logged(runner) as lines:
        load_weights(model, read(path), path)
    assert equal(model.state_dict(), averages(runner))
    assert sum("averages that EMAHook made" in line for line in lines) == 1


def test_validation_in_training_is_of_the_averages(tmp_path: Path) -> None:
    runner, seen, _ = train(tmp_path / "run", **toy_evaluation("val"))
    assert equal(seen.tested[-1], averages(runner))
    assert not equal(seen.tested[-1], weights(runner))


@pytest.mark.parametrize("hook", [EMA, None])
def test_resuming_goes_on_with_the_trained_weights(hook: dict[str, Any] | None, tmp_path: Path) -> None:
    runner = toy_runner(toy_config(custom_hooks=[EMA], train_cfg__max_epochs=2), tmp_path / "run")
    runner.register_hook(StopHook(1))
    with pytest.raises(Stopped):
        runner.train()
    trained, averaged = weights(runner), averages(runner)
    options = {"load_from": str(tmp_path / "run/epoch_1.pth"), "resume": True}
    _, seen, lines = train(tmp_path / "resumed", hook, **options)
    assert equal(seen.tested[0], trained)
    assert not equal(trained, averaged)
    assert any("averages are dropped" in line for line in lines) == (hook is None)


def test_another_momentum_is_used_after_resuming(tmp_path: Path) -> None:
    train(tmp_path / "run")
    options = {"load_from": str(tmp_path / "run/epoch_1.pth"), "resume": True}
    resumed, _, _ = train(tmp_path / "resumed", dict(EMA, momentum=0.999), **options)
    for key, average in averages(resumed).items():
        torch.testing.assert_close(average, weights(resumed)[key], rtol=0, atol=1e-4)


def test_a_training_starts_from_the_averages(tmp_path: Path) -> None:
    runner, _, _ = train(tmp_path / "run")
    _, seen, lines = train(tmp_path / "next", load_from=str(tmp_path / "run/epoch_2.pth"))
    assert equal(seen.tested[0], averages(runner))
    assert sum("averages that EMAHook made" in line for line in lines) == 1
