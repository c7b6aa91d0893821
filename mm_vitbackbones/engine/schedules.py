"""Resuming under a config that has changed: its schedule and its optimizer's settings, at the checkpoint's position.

MMEngine loads the state of schedulers and optimizer as the checkpoint has it, and the config's own values are lost.
Here that state is rewritten first: to what a run of this config from its start would have at this point. The
optimizer's moments stay those of the checkpoint. Where nothing has changed, nothing is rewritten.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import ParamSchedulerHook
from mmengine.optim import OptimWrapperDict
from mmengine.optim.scheduler.param_scheduler import ReduceOnPlateauParamScheduler
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from mm_vitbackbones.engine.plain_data import equal
from mm_vitbackbones.errors import UserError, counted, shorten

RECORD = "run"
"""Where a checkpoint's ``meta`` has the record of ``run_record``."""

PROGRESS = ("last_step", "_global_step", "_last_value", "base_values", "best", "num_bad_epochs", "cooldown_counter")
"""What changes in a scheduler's state during a run, or follows from the optimizer's settings. The rest is constant."""


@dataclass(frozen=True)
class Part:
    """An optimizer and its schedulers, of the run and of the checkpoint."""

    name: str
    """Empty for a run with one optimizer."""
    wrapper: Any
    schedulers: Sequence[Any]
    optimizer: dict[str, Any]
    states: Sequence[Mapping[str, Any]]


def run_record(runner: Runner) -> dict[str, Any]:
    """What resuming wants to know of a run and MMEngine does not save, as plain data."""
    loop = runner.train_loop
    wrappers = named_wrappers(runner.optim_wrapper)
    schedulers = {name: _schedulers(runner, name) for name in wrappers}
    return {
        "by_epoch": isinstance(loop, EpochBasedTrainLoop),
        "epoch_length": len(loop.dataloader),
        "batch_size": batch_size(loop.dataloader),
        "processes": get_world_size(),
        "accumulative_counts": {name: accumulation(wrapper) for name, wrapper in wrappers.items()},
        "parameters": {name: _names(runner.model, wrapper) for name, wrapper in wrappers.items()},
        "schedulers": {name: [type(each).__name__ for each in found] for name, found in schedulers.items()},
    }


def batch_size(loader: Any) -> int | None:
    """Images of one process in an iteration; None if the loader does not say."""
    size = getattr(loader, "batch_size", None)
    return size or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)


def trained_by_epoch(meta: Mapping[str, Any]) -> bool | None:
    """Whether a checkpoint is of a run by epochs; None if it does not say."""
    if (record := meta.get(RECORD)) is not None:
        return bool(record["by_epoch"])
    found = re.search(r"^train_cfg = dict\(([^)]*)\)", str(meta.get("cfg", "")), re.MULTILINE)
    if found and ("max_epochs" in found[1]) != ("max_iters" in found[1]):
        return "max_epochs" in found[1]
    return True if meta.get("epoch") else None


def follow_config(runner: Runner, checkpoint: dict[str, Any]) -> None:
    """Rewrite the state in a checkpoint that is resumed as this run's config has it. One line is logged if it differs.

    The runner has the optimizer and the schedulers of the config, as new. MMEngine loads the rewritten state next.

    Raises:
        UserError: the state is that of other optimizers, or which parameter it belongs to is not known.
    """
    meta, loop = checkpoint["meta"], runner.train_loop
    record = meta.get(RECORD) or {}
    parts = [*_parts(runner, checkpoint)]
    changes = _batch_changes(runner, record)
    length, iteration = len(loop.dataloader), _position(loop, meta, record, changes)
    rewrite, meta["iter"] = iteration != meta["iter"], iteration
    for part in parts:
        label = f"{part.name}: " if part.name else ""
        _check_optimizer(part)
        mapped = _map_parameters(part, runner.model, record)
        found = _differences(part, (record.get("schedulers") or {}).get(part.name)) + mapped
        changes += [f"{label}{each}" for each in found]
        rewrite |= bool(found)
    where = f"epoch {meta['epoch']}, iteration {iteration}"
    if not rewrite:
        if changes:
            runner.logger.info(f"resumed at {where} with another batch than the checkpoint's: {shorten(changes)}")
        return
    before = [_rates(part.optimizer["param_groups"]) for part in parts]
    _replay(runner, parts, meta["epoch"], iteration, length)
    after = [_rates(part.wrapper.optimizer.param_groups) for part in parts]
    for part in parts:
        fresh = part.wrapper.state_dict()
        part.optimizer["param_groups"] = fresh["param_groups"]
        part.optimizer.pop("base_param_settings", None)
        if fresh.get("base_param_settings") is not None:
            part.optimizer["base_param_settings"] = fresh["base_param_settings"]
    states = {part.name: [each.state_dict() for each in part.schedulers] for part in parts}
    checkpoint["param_schedulers"] = states if isinstance(runner.optim_wrapper, OptimWrapperDict) else states[""]
    rates = ", ".join(f"{old} -> {new}" for old, new in zip(before, after, strict=True))
    runner.logger.info(
        f"the config differs from the checkpoint's run, and its own schedule goes on at {where}: learning rate "
        f"{rates}; changed: {shorten(changes, 6)}"
    )


ENOUGH = 0.1
"""The part of its own value that a learning rate reaches in any run whose schedule fits it."""


def warn_of_low_rate(runner: Runner) -> None:
    """Log, in one line, that the schedule keeps the learning rate below a tenth of the config's in the whole run."""
    for name, wrapper in named_wrappers(runner.optim_wrapper).items():
        schedulers = [*_schedulers(runner, name)]
        if (reached := highest_rate(runner.train_loop, wrapper, schedulers)) is None:
            continue
        share, rate = reached[0], wrapper.optimizer.defaults.get("lr", reached[1])  # a part may have another one
        if share < ENOUGH:
            key, where = (f"{part}.{name}" if name else part for part in ("param_scheduler", "optim_wrapper"))
            runner.logger.warning(
                f"the learning rate reaches {share * rate:.2g} at most in the {counted(runner.max_iters, 'iteration')} "
                f"of this run, less than a tenth of {where}.optimizer.lr={rate:g}: "
                f"{_why_low(runner.train_loop, schedulers, key)}"
            )


def highest_rate(loop: Any, wrapper: Any, schedulers: Sequence[Any]) -> tuple[float, float] | None:
    """The largest part of its own value that a learning rate reaches in a run, and that value; the first part from
    ``ENOUGH`` on is enough to know. None if there is no learning rate or no schedule of it that is known beforehand.

    The schedulers are copied, and step a copy of one parameter group.
    """
    groups = getattr(getattr(wrapper, "optimizer", None), "param_groups", [])
    index = max(range(len(groups)), key=lambda i: groups[i].get("initial_lr", 0.0), default=None)
    kept = [each for each in schedulers if getattr(each, "param_name", None) == "lr"]
    plateau = any(isinstance(each, ReduceOnPlateauParamScheduler) for each in kept)
    if index is None or not kept or plateau or not groups[index].get("initial_lr"):
        return None
    group = {key: value for key, value in groups[index].items() if key != "params"}
    # Schedulers look whether the optimizer counts its steps.
    alone = SimpleNamespace(param_groups=[group], step=SimpleNamespace(_with_counter=True), _global_step=0)
    copies = [copy.deepcopy(each, {id(each.optimizer): alone}) for each in kept]
    for each in copies:
        each.base_values, each._last_value = [each.base_values[index]], [each._last_value[index]]
    by_epoch, own = isinstance(loop, EpochBasedTrainLoop), float(group["initial_lr"])
    best = float(group["lr"])
    for iteration in range(1, loop.max_iters):
        if best >= ENOUGH * own:
            break
        for each in copies:
            if not each.by_epoch or (by_epoch and iteration % len(loop.dataloader) == 0):
                each.step()
        best = max(best, float(group["lr"]))
    return best / own, own


def _why_low(loop: Any, schedulers: Sequence[Any], key: str) -> str:
    """What keeps a learning rate low in a whole run, and what to set."""
    for index, each in enumerate(schedulers):
        kind = f"{type(each).__name__} ({key}.{index})"
        if each.by_epoch and not isinstance(loop, EpochBasedTrainLoop):
            return f"{kind} counts epochs and the run counts iterations; set {key}.{index}.by_epoch=False"
        if each.end > (loop.max_epochs if each.by_epoch else loop.max_iters):
            unit = "epoch" if each.by_epoch else "iteration"
            value = "" if each.by_epoch else f"={max(1, loop.max_iters // 10)}"
            return f"{kind} ends at {unit} {each.end:,}; set {key}.{index}.end{value}, or train longer"
    return f"see {key}"


def named_wrappers(wrapper: Any) -> dict[str, Any]:
    """The optimizer wrappers of a run by their names; a single one has an empty name."""
    return dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else {"": wrapper}


def _schedulers(runner: Runner, name: str) -> Sequence[Any]:
    found = runner.param_schedulers
    return (found.get(name) if isinstance(found, Mapping) else found) or []


def accumulation(wrapper: Any) -> int:
    """Iterations in a step of an optimizer."""
    return int(getattr(wrapper, "_accumulative_counts", 1))


def _parts(runner: Runner, checkpoint: Mapping[str, Any]) -> Iterator[Part]:
    given, states = checkpoint["optimizer"], checkpoint.get("param_schedulers")
    wrappers = named_wrappers(runner.optim_wrapper)
    held = {""} if "param_groups" in given else set(given)
    if held != set(wrappers):
        raise UserError(
            f"--resume: the checkpoint has the state of {_optimizers(held)}, and the config "
            f"{_optimizers(set(wrappers))}: keep optim_wrapper, or start from the checkpoint's weights with load_from"
        )
    for name, wrapper in wrappers.items():
        each = (states.get(name) if isinstance(states, Mapping) else states) or []
        yield Part(name, wrapper, _schedulers(runner, name), given[name] if name else given, each)


def _optimizers(names: set[str]) -> str:
    return "one optimizer" if names == {""} else f"the optimizers {', '.join(sorted(names))}"


def _batch_changes(runner: Runner, record: Mapping[str, Any]) -> list[str]:
    """Differences in the batch, as text. The schedule follows from them in runs by epochs alone."""
    now = {"batch_size": batch_size(runner.train_loop.dataloader), "processes": get_world_size()}
    changes = [f"{key} {record[key]} -> {now[key]}" for key in now if key in record and record[key] != now[key]]
    counts = record.get("accumulative_counts") or {}
    for name, wrapper in named_wrappers(runner.optim_wrapper).items():
        if (before := counts.get(name)) not in (None, accumulation(wrapper)):
            changes.append(f"{name}{name and '.'}accumulative_counts {before} -> {accumulation(wrapper)}")
    return changes


def _position(loop: Any, meta: Mapping[str, Any], record: Mapping[str, Any], changes: list[str]) -> int:
    """The iteration at which to go on: in a run by epochs whose epochs have another length now, that of its epoch."""
    epoch, iteration, length = meta["epoch"], meta["iter"], len(loop.dataloader)
    if not isinstance(loop, EpochBasedTrainLoop):
        return iteration
    before = record.get("epoch_length") or (iteration // epoch if epoch and iteration % epoch == 0 else length)
    if before == length:
        return iteration
    changes.append(f"iterations of an epoch {before} -> {length}")
    return epoch * length


def _check_optimizer(part: Part) -> None:
    """Check by the names of its settings that the state is of the same optimizer."""
    old, new = (
        {key for key in groups[0] if not key.startswith("initial_")}
        for groups in (part.optimizer["param_groups"], part.wrapper.optimizer.param_groups)
    )
    scheduled = {each.param_name for each in part.schedulers} | {"momentum"} & (old if "betas" in old else set())
    lacks, has = sorted(new - old - scheduled), sorted(old - new - scheduled)
    if lacks and has:
        raise UserError(
            f"--resume: the checkpoint has the state of another optimizer than {type(part.wrapper.optimizer).__name__} "
            f"(it has {shorten(has, 3)} and lacks {shorten(lacks, 3)}): keep the optimizer, or start from the "
            "checkpoint's weights with load_from"
        )


def _names(model: nn.Module, wrapper: Any) -> list[list[str]]:
    """The names of an optimizer's parameters, for each of its groups."""
    model = getattr(model, "module", model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names.get(id(p), "?") for p in group["params"]] for group in wrapper.optimizer.param_groups]


def _map_parameters(part: Part, model: nn.Module, record: Mapping[str, Any]) -> list[str]:
    """Give the optimizer's state the indices that the parameters have now. Returns what has changed, as text."""
    old_groups, new_groups = part.optimizer["param_groups"], part.wrapper.optimizer.param_groups
    new = _names(model, part.wrapper)
    old = (record.get("parameters") or {}).get(part.name)
    parameters = [parameter for group in new_groups for parameter in group["params"]]
    state = part.optimizer["state"]
    if old is None or any("?" in group for group in (*old, *new)):
        fits = [len(group["params"]) for group in old_groups] == [len(group["params"]) for group in new_groups]
        if not fits or not all(_is_state_of(state.get(i, {}), each) for i, each in enumerate(parameters)):
            raise UserError(
                "--resume: optim_wrapper.paramwise_cfg groups the parameters in another way than the checkpoint does, "
                "which has no names for them: keep it as it was, or start from the checkpoint's weights with load_from"
            )
        return []
    if old == new:
        return []
    index = {name: i for i, name in enumerate(name for group in old for name in group)}
    names = [name for group in new for name in group]
    part.optimizer["state"] = {
        i: state[index[name]]
        for i, name in enumerate(names)
        if index.get(name) in state and _is_state_of(state[index[name]], parameters[i])
    }
    changes = [f"parameter groups {len(old)} -> {len(new)}"]
    for what, found in (
        ("trained now", sorted(set(names) - set(index))),
        ("no longer trained", sorted(set(index) - set(names))),
    ):
        if found:
            changes.append(f"{len(found)} parameters {what} ({shorten(found, 2)})")
    return changes


def _is_state_of(state: Mapping[str, Any], parameter: torch.Tensor) -> bool:
    """Whether the moments of a parameter have its shape."""
    moments = [state.get(name) for name in ("exp_avg", "momentum_buffer", "square_avg")]
    return all(moment is None or moment.shape == parameter.shape for moment in moments)


def _differences(part: Part, names: Sequence[str] | None) -> list[str]:
    """In what the config's optimizer and schedulers differ from the checkpoint's, as text."""
    new = [type(each).__name__ for each in part.schedulers]
    if len(part.states) != len(new) or names not in (None, new):
        was = ", ".join(names) if names is not None else f"{len(part.states)} schedulers"
        return [f"{was or 'no scheduler'} -> {', '.join(new) or 'no scheduler'}", *_group_differences(part)]
    found = []
    for scheduler, old in zip(part.schedulers, part.states, strict=True):
        now = {key: value for key, value in scheduler.state_dict().items() if not callable(value)}
        for key in now.keys() | old.keys():
            if key not in PROGRESS and not callable(old.get(key)) and not equal(old.get(key), now.get(key)):
                found.append(f"{type(scheduler).__name__}.{key} {_text(old.get(key))} -> {_text(now.get(key))}")
    return [*sorted(found), *_group_differences(part)]


def _group_differences(part: Part) -> list[str]:
    """The same for the settings of the parameter groups, without the values that schedulers change."""
    pairs = [*zip(part.optimizer["param_groups"], part.wrapper.optimizer.param_groups, strict=False)]
    found: dict[str, str] = {}
    for old, new in pairs:
        old, new = _settings(old), _settings(new)
        for key in old.keys() | new.keys():
            # A newer torch may have settings that the checkpoint lacks.
            if key in new and key in old and not equal(old[key], new[key]) and key not in found:
                found[key] = f"{key.removeprefix('initial_')} {_text(old.get(key))} -> {_text(new[key])}"
    return [found[key] for key in sorted(found)]


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """The constant settings of a parameter group."""
    scheduled = {key.removeprefix("initial_") for key in group if key.startswith("initial_")}
    settings = {key: value for key, value in group.items() if key != "params" and key not in scheduled}
    if "momentum" in scheduled and "betas" in settings:
        settings["betas"] = settings["betas"][1:]  # MMEngine schedules the first
    return settings


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping) and all(isinstance(each, int) for each in [*value, *value.values()]):
        value = sorted(Counter(value).elements())  # milestones, each with how often it is one
    return str(value)


def _rates(groups: Sequence[Mapping[str, Any]]) -> str:
    rates = sorted({float(group["lr"]) for group in groups if "lr" in group})
    return " to ".join(f"{rate:.6g}" for rate in rates[:: max(1, len(rates) - 1)][:2])


def _replay(runner: Runner, parts: Sequence[Part], epochs: int, iterations: int, length: int) -> None:
    """Step the config's schedulers as a run to this point does."""
    hook, run = ParamSchedulerHook(), SimpleNamespace(param_schedulers=runner.param_schedulers)
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    done = 0
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(_few_groups(part))
            part.wrapper._global_step = 0  # else the first step warns that the optimizer made none
        for iteration in range(1, iterations + 1):
            hook.after_train_iter(run, 0)
            if by_epoch and iteration % length == 0 and done < epochs:
                hook.after_train_epoch(run)
                done += 1
        for _ in range(done, epochs if by_epoch else 0):
            hook.after_train_epoch(run)
    for part in parts:
        part.wrapper._global_step = -1
        for scheduler in part.schedulers:
            if isinstance(scheduler, ReduceOnPlateauParamScheduler):
                runner.logger.warning(f"{type(scheduler).__name__} starts over: it knows no metrics of before")


@contextmanager
def _few_groups(part: Part) -> Iterator[None]:
    """Within it, parameter groups of equal settings are one group: MMEngine makes a group of each parameter, and
    160,000 steps of 400 groups take minutes."""
    optimizer, schedulers = part.wrapper.optimizer, part.schedulers
    groups = optimizer.param_groups
    known = all(type(each).__module__.startswith("mmengine.") for each in schedulers)
    plateau = any(isinstance(each, ReduceOnPlateauParamScheduler) for each in schedulers)
    if not known or plateau or any(torch.is_tensor(value) for group in groups for value in group.values()):
        yield
        return
    keys = [repr(sorted((key, value) for key, value in group.items() if key != "params")) for group in groups]
    first = {key: index for index, key in reversed([*enumerate(keys)])}
    kept = sorted(first.values())
    place = [kept.index(first[key]) for key in keys]
    base = [each.base_values for each in schedulers]
    rest = len(groups)  # after the groups, MMEngine has one for the common rate
    for scheduler in schedulers:
        scheduler.base_values = [scheduler.base_values[i] for i in kept] + scheduler.base_values[rest:]
        scheduler._last_value = [scheduler._last_value[i] for i in kept] + scheduler._last_value[rest:]
    optimizer.param_groups = [groups[i] for i in kept]
    try:
        yield
    finally:
        for group, index in zip(groups, place, strict=True):
            group.update({key: value for key, value in groups[kept[index]].items() if key != "params"})
        optimizer.param_groups = groups
        for scheduler, values in zip(schedulers, base, strict=True):
            scheduler.base_values = values
            last = scheduler._last_value
            scheduler._last_value = [last[i] for i in place] + last[len(kept) :]
