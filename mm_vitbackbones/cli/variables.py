"""Variables of a config file, such as ``train_pipeline``. MMEngine copies their values where the file uses them.

So a value that is changed later, by ``--cfg-options`` or by a config that inherits, does not reach its copies.
"""

from __future__ import annotations

import ast
import copy
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from mm_vitbackbones import recipes
from mm_vitbackbones.cli.classes import THINGS, set_num_classes
from mm_vitbackbones.cli.keys import READ, is_used, same
from mm_vitbackbones.errors import UserError, did_you_mean, shorten
from mm_vitbackbones.nodes import heads, nodes, type_name

PIPELINES = ("train_pipeline", "val_pipeline", "test_pipeline")
"""Variables that are of no use unless a data set has them."""

BACKENDS = "vis_backends"


def follow_options(cfg: Config, before: Mapping[str, Any], options: Mapping[str, Any], path: Path) -> None:
    """Give the copies of variables the values of ``--cfg-options``.

    Args:
        cfg: with the options.
        before: the top of the config without them.

    Raises:
        UserError: for an option that nothing reads; the message names the right key.
    """
    for name in dict.fromkeys(option.partition(".")[0] for option in options):
        if name in READ or name == "num_classes":
            continue
        if name not in before:
            near = did_you_mean(name, {*READ, *before})
            raise UserError(f"--cfg-options {name}: {path} has no such entry, and nothing reads one{near}")
        old, new = before[name], cfg[name]
        if same(old, new):
            continue
        copies = copies_of(old, name, before)
        if name == BACKENDS:
            copies = [*dict.fromkeys([*copies, "visualizer.vis_backends"])]
        if not copies:
            if cfg.get("custom_imports"):  # the user's own code may read it
                continue
            raise UserError(
                f"--cfg-options {name}: it is a variable of {path}, and nothing reads it: change what you mean"
                + (f", such as {_dataset_key(name)}" if name in PIPELINES else "")
            )
        if not is_structured(old):
            raise UserError(
                f"--cfg-options {name}: it is a variable of {path}, whose value MMEngine has copied; change "
                f"{shorten(copies, 6)} instead"
            )
        if not replace(cfg, copies, old, new, name) and not any(same(value_at(cfg, where), new) for where in copies):
            raise UserError(f"--cfg-options {name} and {copies[0]} are contrary: give {copies[0]} alone")


def follow_file(cfg: Config, path: Path) -> None:
    """Give the copies of a base's variables the values that a config file has for these.

    Raises:
        UserError: for a pipeline that no data set has; the message names the right key.
    """
    whole = {key: cfg.get(key) for key in cfg}
    names = sorted((assigned(path) & whole.keys()) - READ)
    changed = [name for name in names if not is_used(whole[name], whole, name)]
    before = [*ancestors(path)] if changed else []
    for name in changed:
        new = whole[name]
        for base in before:
            old = base.get(name)
            if name not in base or same(old, new):
                continue
            copies = [where for where in copies_of(old, name, base) if same(value_at(cfg, where), old)]
            if copies and is_structured(old):
                replace(cfg, copies, old, new, name)
                break
            if copies and not isinstance(new, Mapping):
                print_log(
                    f"{path}: {name}={new!r} changes nothing, as MMEngine copied {old!r} of the base; set "
                    f"{shorten(copies, 4)}",
                    logger="current",
                    level=logging.WARNING,
                )
                break
        else:
            if name in PIPELINES and new and any(name in base and not same(base[name], new) for base in bases(path)):
                raise UserError(
                    f"{path}: no data set has this {name}: write {_dataset_key(name).partition('.')[0]}="
                    f"dict(dataset=dict(pipeline={name}))"
                )


def _dataset_key(name: str) -> str:
    return f"{name.partition('_')[0]}_dataloader.dataset.pipeline"


def keep_backends(cfg: Config) -> None:
    """Keep the log as JSON (``LocalVisBackend``) next to the ``vis_backends`` of a config. A list that stands in
    ``visualizer`` is taken as it is."""
    given, visualizer = cfg.get(BACKENDS), cfg.get("visualizer")
    if not given or not isinstance(visualizer, Mapping) or not same(visualizer.get(BACKENDS), given):
        return
    if not any(type_name(each) == "LocalVisBackend" for each in given):
        cfg.visualizer.vis_backends = [dict(type="LocalVisBackend"), *given]


def keep_hooks(cfg: Config) -> None:
    """Leave out default hooks that a config sets to None, and those that its ``custom_hooks`` have, too.

    MMEngine takes None for its own hooks only.
    """
    named = cfg.get("default_hooks")
    if not isinstance(named, Mapping):
        return
    own = {type_name(hook) for hook in cfg.get("custom_hooks") or () if isinstance(hook, Mapping)}
    for name in [*named]:
        hook = named[name]
        ours = name in ("epoch_seed", "curves", "plain_checkpoint", "same_classes")
        if ours and (hook is None or type_name(hook) in own):
            del cfg.default_hooks[name]


def same_classes(cfg: Config, path: Path, options: Mapping[str, Any]) -> None:
    """See that a ``num_classes`` at the top of a config and those of its heads are one number.

    An option ``num_classes`` sets every head. A head's own number counts if it was given after that at the top: by an
    option, or by a config whose base has the one at the top.

    Raises:
        UserError: if the numbers differ otherwise. MMEngine takes those of the heads.
    """
    top = cfg.get("num_classes")
    if not isinstance(top, int):
        return
    given = [option for option in options if option.endswith(".num_classes")]
    found = {where: head["num_classes"] for where, head in heads(cfg.model)}
    if "num_classes" in options:
        set_num_classes(cfg.model, top)
        counted = (".num_classes", ".class_weight", f".{THINGS}")
        cfg.merge_from_dict({option: value for option, value in options.items() if option.endswith(counted)})
        found = {where: head["num_classes"] for where, head in heads(cfg.model)}
    other = next((where for where, count in found.items() if count != top), None)
    if other is None:
        return
    if "num_classes" not in options:
        later = bool(given)
        for base in ancestors(path):
            if base.get("num_classes") == top:
                inherited = {where: head["num_classes"] for where, head in heads(base.get("model"))}
                later |= inherited.get(other) != found[other]
        if later:
            cfg.pop("num_classes")
            return
    advice = " and ".join(f"{where}.num_classes={top}" for where in found if found[where] != top)
    raise UserError(
        f"{path}: num_classes={top} at the top of the config, but {other}.num_classes={found[other]}: MMEngine reads "
        f"the heads alone, so set {advice}"
    )


def is_structured(value: Any) -> bool:
    """Whether equal values are copies of each other: a dict, or a list of dicts. Texts and numbers may be equal by
    chance."""
    if isinstance(value, Mapping):
        return bool(value)
    return isinstance(value, list) and any(isinstance(each, Mapping) for each in value)


def copies_of(value: Any, name: str, whole: Mapping[str, Any]) -> list[str]:
    """The paths of the entries that something reads and that have the value of a variable."""
    found = []
    for top in whole:
        if top not in READ:
            continue
        for where, node in nodes(whole[top], top):
            part_of = isinstance(value, str) and isinstance(node, str) and len(value) > 3 and node.startswith(value)
            named = where.rpartition(".")[2] == name
            plain = value is None or isinstance(value, (bool, int, float))
            if part_of or (same(node, value) and (named or not plain)):
                found.append(where)
    return [where for where in found if not any(where.startswith(f"{other}.") for other in found)]


def replace(cfg: Config, copies: list[str], old: Any, new: Any, name: str) -> list[str]:
    """Put a new value where the old one still is, and log it."""
    done = []
    for where in copies:
        if same(value_at(cfg, where), old):
            parent, last = _split(where)
            value_at(cfg, parent)[last] = copy.deepcopy(new)
            done.append(where)
    if done:
        print_log(f"{name} of the config is taken for {shorten(done, 4)}", logger="current")
    return done


def _split(where: str) -> tuple[str, Any]:
    if where.endswith("]"):
        parent, _, index = where.rpartition("[")
        return parent, int(index[:-1])
    parent, _, key = where.rpartition(".")
    return parent, key


def value_at(cfg: Mapping[str, Any], where: str) -> Any:
    """The entry of a path as ``nodes`` gives it; None if there is none."""
    node: Any = cfg
    for key in where.replace("[", ".[").split("."):
        try:
            node = node[int(key[1:-1])] if key.startswith("[") else node.get(key)
        except (AttributeError, IndexError, TypeError):
            return None
    return node


def is_recipe(path: Path) -> bool:
    """Whether a file is one of ours. In these, every variable is used where it should be."""
    return path.resolve().is_relative_to(recipes.folder().resolve())


def base_files(path: Path) -> list[Path]:
    """The files from which a config inherits directly."""
    if Config._is_lazy_import(str(path)):
        return []
    return [Path(Config._get_cfg_path(name, str(path))[0]) for name in Config._get_base_files(str(path))]


def bases(path: Path) -> list[Config]:
    """The configs from which a file inherits directly, each with all of its own bases."""
    return [Config.fromfile(file, import_custom_modules=False) for file in base_files(path)]


def ancestors(path: Path) -> Iterator[Config]:
    """The configs from which a file inherits, and those from which these do; the nearest first. Recipes are whole."""
    yield from bases(path)
    for file in base_files(path):
        if not is_recipe(file):
            yield from ancestors(file)


def assigned(path: Path) -> set[str]:
    """The names that a config file and its bases set at their top, except for those of recipes."""
    if is_recipe(path) or path.suffix != ".py" or Config._is_lazy_import(str(path)):
        return set()
    lines = ast.parse(path.read_text(encoding="utf-8")).body
    names = {
        target.id
        for line in lines
        if isinstance(line, ast.Assign)
        for target in line.targets
        if isinstance(target, ast.Name)
    }
    return names.union(*(assigned(file) for file in base_files(path)))
