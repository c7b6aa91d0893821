"""The argument ``adapters`` of a backbone: low-rank adapters (LoRA) in its linear maps, by the peft library.

Hu et al., ICLR 2022, arXiv:2106.09685. Which linear maps: those of attention, as in the paper, of the feed-forward
networks, all, or those of given names. Linear maps alone are adapted: a layer that is none is refused by name.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import importlib.util
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import nn

from mm_vitbackbones.adapters import ALPHA, UP, State, is_adapter, name_in_file
from mm_vitbackbones.backbones.checks import Above, Count, Rate, fits, is_list, takes
from mm_vitbackbones.errors import ArgumentError, did_you_mean, shorten

KINDS = {"attention": "attn", "feed_forward": "ffn"}
"""Names of ``targets``, and what the parts of a block are called that they stand for."""
ALL = "all"


@dataclasses.dataclass(frozen=True)
class Adapters:
    """What ``adapters=dict(...)`` may say. Biases, and all other parameters of the network, stay as they are."""

    rank: Count = 8
    """Of the two maps of an adapter."""
    alpha: Annotated[float, Above(0)] = 16.0
    """The result of an adapter is multiplied by alpha / rank."""
    dropout: Rate = 0.0
    """Of an adapter's input, in training."""
    targets: str | tuple[str, ...] = "attention"
    """``"attention"``, ``"feed_forward"`` (those parts of all blocks), ``"all"`` linear maps, or names of linear maps:
    their ends (``"qkv"``, ``"ffn.fc1"``), or patterns with ``*`` of whole names (``"blocks.1*.attn.proj"``)."""


HINTS: dict[str, Any] = {
    "rank": Count,
    "alpha": Annotated[float, Above(0)],
    "dropout": Rate,
}


def adapters_of(given: Any) -> Adapters | None:
    """The adapters that an argument asks for; None for None.

    Raises:
        ArgumentError: for a field that does not exist or does not fit; without peft.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ArgumentError(f"adapters={given!r}: give None, or a dict such as dict(rank=8, alpha=16)")
    known = [field.name for field in dataclasses.fields(Adapters)]
    if unknown := [str(name) for name in given if name not in known]:
        near = did_you_mean(unknown[0], known, count=1) or f"; it takes {', '.join(known)}"
        raise ArgumentError(f"adapters has no field {unknown[0]!r}{near}")
    for name, hint in HINTS.items():
        if name in given and not fits(given[name], hint):
            raise ArgumentError(f"adapters.{name}={given[name]!r}: give {takes(hint)}")
    targets = given.get("targets", Adapters.targets)
    patterns = is_list(targets) and targets and all(isinstance(each, str) and each for each in targets)
    if not patterns and not (isinstance(targets, str) and targets in (*KINDS, ALL)):
        near = did_you_mean(targets, (*KINDS, ALL), count=1) if isinstance(targets, str) else ""
        names = f"{', '.join(map(repr, KINDS))}, {ALL!r}, or a list of names such as ['qkv', 'proj']"
        raise ArgumentError(f"adapters.targets={targets!r}: give {names}{near}")
    if importlib.util.find_spec("peft") is None:
        raise ArgumentError("adapters need the peft library: pip install 'mm-vitbackbones[adapters]'")
    return Adapters(**{**given, "targets": targets if isinstance(targets, str) else tuple(targets)})


def inject(network: nn.Module, adapters: Adapters, frozen: Sequence[nn.Module], besides: Sequence[nn.Module]) -> None:
    """Gives linear maps of a network adapters, in place. Its state dict has the names of ``mm_vitbackbones.adapters``.

    Args:
        frozen: parts that do not train: they get none.
        besides: parts that train by themselves, such as a pyramid: they get none.

    Raises:
        ArgumentError: for targets that are not there, are no linear maps, or do not train.
    """
    names = _chosen(network, adapters.targets, _names_within(network, frozen), _names_within(network, besides))
    trained = [p for part in besides for p in part.parameters()]
    from peft import LoraConfig, inject_adapter_in_model

    # A text is a pattern of whole names; a list would be one of their ends.
    config = LoraConfig(
        r=adapters.rank,
        lora_alpha=adapters.alpha,
        lora_dropout=adapters.dropout,
        target_modules="|".join(map(re.escape, names)),
        bias="none",
    )
    inject_adapter_in_model(config, network)
    for p in trained:  # peft freezes all but adapters
        p.requires_grad_(True)
    network._register_state_dict_hook(_name_as_in_files)
    # torch.distributed.checkpoint looks for what each name in a state dict belongs to.
    setattr(network, ALPHA, adapters.alpha)
    for name in names:
        _say_which_names_are_left_out(network.get_submodule(name))


def _say_which_names_are_left_out(linear: Any) -> None:
    """Tells ``torch.distributed.checkpoint`` how to find the tensors of an adapted linear map by their names in state
    dicts. It asks this method of a module for the name of a child that is left out, by what follows that name."""
    linear._fqn_modifiers = functools.partial(dict, weight="base_layer", bias="base_layer")
    for adapter in (linear.lora_A, linear.lora_B):
        (name,) = adapter
        adapter._fqn_modifiers = functools.partial(dict, weight=name)


def _chosen(network: nn.Module, targets: str | Sequence[str], frozen: set[str], besides: set[str]) -> list[str]:
    """The names of the linear maps to adapt."""
    trunk = {name: part for name, part in network.named_modules() if name and name not in besides}
    linears = {name: part for name, part in trunk.items() if type(part) is nn.Linear}
    if isinstance(targets, str):
        kind = KINDS.get(targets)
        found = [name for name in linears if kind is None or kind in name.split(".")]
    else:
        found = [name for name in linears if any(_matches(name, pattern) for pattern in targets)]
        for pattern in targets:
            _check_pattern(pattern, trunk, linears)
    names = [name for name in found if name not in frozen]
    for each in [targets] if isinstance(targets, str) else targets:
        if not [name for name in names if isinstance(targets, str) or _matches(name, each)]:
            raise ArgumentError(
                f"adapters.targets: all that {each!r} names is frozen by frozen_stages={network.frozen_stages}, and "
                "would not train: freeze fewer stages (adapters keep the weights as they are), or leave adapters out"
            )
    return names


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}")


def _check_pattern(pattern: str, trunk: Mapping[str, nn.Module], linears: Mapping[str, nn.Module]) -> None:
    matched = [name for name in trunk if _matches(name, pattern)]
    if any(name in linears for name in matched):
        return
    ends = sorted({name.rpartition(".")[2] for name in linears})
    if matched:
        kind = type(trunk[matched[0]]).__name__
        raise ArgumentError(
            f"adapters.targets: {matched[0]} is a {kind}, and adapters are for linear maps: {shorten(ends)}"
        )
    near = did_you_mean(pattern, ends, count=1) or f"; there are {shorten(ends)}"
    raise ArgumentError(f"adapters.targets: no linear map is called {pattern!r}{near}")


def _names_within(network: nn.Module, parts: Sequence[nn.Module]) -> set[str]:
    inside = {id(module) for part in parts for module in part.modules()}
    return {name for name, module in network.named_modules() if id(module) in inside}


def fresh_adapters(network: nn.Module) -> list[nn.Parameter]:
    """Those of the second maps of adapters that are zero, as they begin: such an adapter has no effect yet."""
    second = [p for name, p in network.named_parameters() if name_in_file(name).endswith(UP)]
    return [p for p in second if not p.is_meta and not p.any()]


def hold(part: nn.Module | nn.Parameter) -> None:
    """Keeps a part as it is, except for its adapters: no gradients, and batch norms in eval mode."""
    if isinstance(part, nn.Parameter):
        part.requires_grad_(False)
        return
    for name, p in part.named_parameters():
        if not is_adapter(name):
            p.requires_grad_(False)
    for module in part.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


# ---- names in state dicts


def _name_as_in_files(network: Any, state: State, prefix: str, metadata: Any) -> None:
    """A hook of ``state_dict``: plain names, and the alpha."""
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + name_in_file(key.removeprefix(prefix))] = state.pop(key)
    state[prefix + ALPHA] = torch.tensor(float(network.adapters.alpha))


def take_from_file(network: Any, state: State, prefix: str, missing: list[str], errors: list[str]) -> None:
    """Gives tensors the names that the parameters of an adapted network have, and checks the alpha."""
    inside = {prefix + name_in_file(name): prefix + name for name, _ in network.named_parameters()}
    for key in [key for key in state if key in inside]:
        state[inside[key]] = state.pop(key)
    given, own = state.pop(prefix + ALPHA, None), network.adapters.alpha
    if given is None:
        missing.append(prefix + ALPHA)
    elif abs(float(given) - own) > 0.01 * own:  # a file may have it in a narrow type
        errors.append(f"{prefix}{ALPHA} is {float(given):g}, and that of the network's adapters is {own:g}")
