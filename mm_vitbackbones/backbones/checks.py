"""What a network is asked for: the arguments of a backbone and the fields of its spec, checked by their types.

Every error is one line (``ArgumentError``) that names the argument or field, what was given and what it takes.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from types import UnionType
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from mm_vitbackbones.errors import ArgumentError, did_you_mean
from mm_vitbackbones.nodes import is_pretrained

Init = TypeVar("Init", bound=Callable[..., None])


class Minimum(NamedTuple):
    """The smallest value of a number, as part of its type: ``Annotated[int, Minimum(8)]``."""

    bound: float

    def holds(self, value: Any) -> bool:
        return bool(value >= self.bound)

    def __str__(self) -> str:
        return f"of at least {self.bound}"


class Above(NamedTuple):
    """What a number is larger than."""

    bound: float

    def holds(self, value: Any) -> bool:
        return bool(value > self.bound)

    def __str__(self) -> str:
        return f"above {self.bound}"


class Below(NamedTuple):
    """What a number is smaller than."""

    bound: float

    def holds(self, value: Any) -> bool:
        return bool(value < self.bound)

    def __str__(self) -> str:
        return f"below {self.bound}"


Count = Annotated[int, Minimum(1)]
Rate = Annotated[float, Minimum(0), Below(1)]
Epsilon = Annotated[float, Above(0)]

ELSEWHERE = {
    "embed_dim": "dims",
    "embed_dims": "dims",
    "num_layers": "depths",
    "num_stages": "depths",
    "mlp_ratio": "mlp_ratios",
    "sr_ratios": "reductions",
    "use_checkpoint": "with_cp",
    "use_checkpointing": "with_cp",
    "drop_path": "drop_path_rate",
    "in_chans": "in_channels",
    "frozen_stage": "frozen_stages",
}
"""Arguments of other implementations, and what is called so here."""

NOT_NEEDED = {
    "convert_weights": "the layout of a file is recognised",
    "num_classes": "there is no classifier",
    "img_size": "images have any size",
    "pretrain_img_size": "images have any size",
    "patch_norm": "norms are those of the paper",
    "norm_cfg": "norms are those of the paper",
    "act_cfg": "activations are those of the paper",
    "qkv_bias": "biases are those of the paper",
    "qk_scale": "the scale is that of the paper",
    "style": "it is an argument of ResNet",
}
"""Arguments of other implementations that have nothing to say here, and why."""


PRETRAINED_TAKES = ("type", "checkpoint", "prefix", "map_location")
"""The arguments of an initialisation from a file."""


# ---- one value


def takes(hint: Any) -> str:
    """What a type takes, in words; empty for a type that is not checked here. Strings are names of choices, which are
    checked where the choices are known."""
    if get_origin(hint) is Annotated:
        kind, *bounds = get_args(hint)
        return f"{takes(kind)} {' and '.join(map(str, bounds))}"
    if get_origin(hint) in (Union, UnionType):
        words = [takes(each) for each in get_args(hint)]
        return " or ".join(words) if all(words) else ""
    if get_origin(hint) in (tuple, Sequence):
        return "a list of integers" if get_args(hint)[0] is int else ""
    named = {int: "an integer", float: "a finite number", bool: "True or False", type(None): "None"}
    return named.get(hint, "") if isinstance(hint, type) else ""


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type that ``takes`` has words for. A bool is no number, and 2.0 is no integer."""
    if get_origin(hint) is Annotated:
        kind, *bounds = get_args(hint)
        return fits(value, kind) and all(bound.holds(value) for bound in bounds)
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, each) for each in get_args(hint))
    if get_origin(hint) in (tuple, Sequence):
        return is_list(value) and all(fits(each, get_args(hint)[0]) for each in value)
    if isinstance(value, bool) or hint not in (int, float):
        return type(value) is hint
    return isinstance(value, Integral if hint is int else Real) and math.isfinite(value)


def is_list(value: Any) -> bool:
    """A list, a tuple or a range, and no string."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


# ---- the fields of a spec


def check_spec(spec: Any, stages: int = 4) -> None:
    """Checks each field of a spec by its type, and that the heads, if there are any, divide the channels.

    Integers are at least 1, if their type does not say otherwise. A tuple has one entry per stage; a list becomes a
    tuple, as specs are compared and hashed.

    Raises:
        ArgumentError: for a field that does not fit.
    """
    hints = _hints(spec.__class__)
    for field in dataclasses.fields(spec):
        value, hint = getattr(spec, field.name), hints[field.name]
        if get_origin(hint) is tuple:
            if not is_list(value) or len(value) != stages or not all(fits(each, Count) for each in value):
                raise ArgumentError(f"{field.name}={value!r}: give positive integers, one for each of {stages} stages")
            object.__setattr__(spec, field.name, tuple(value))
            continue
        hint = Count if hint is int else hint
        if not fits(value, hint):
            raise ArgumentError(f"{field.name}={value!r}: give {takes(hint)}")
    for dim, heads in zip(spec.dims, spec.num_heads, strict=True) if {"dims", "num_heads"} <= {*hints} else ():
        if dim % heads:
            raise ArgumentError(f"dims={spec.dims} and num_heads={spec.num_heads}: {dim} is not divisible by {heads}")


def check_heads(dim: int, num_heads: int, multiple: int = 1) -> None:
    """Checks that the heads of a network of one width divide it into channels in multiples of ``multiple``.

    Raises:
        ArgumentError: if they do not.
    """
    if dim % (num_heads * multiple):
        times = f"{multiple} times " if multiple > 1 else ""
        raise ArgumentError(f"dim={dim} and num_heads={num_heads}: {dim} is not divisible by {times}{num_heads}")


def make_spec(kind: type, fields: Mapping[str, Any], family: str) -> Any:
    """A spec of a dict of its fields.

    Raises:
        ArgumentError: for a field that it does not have, or that is missing, and as ``check_spec``.
    """
    known = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := [name for name in fields if name not in known]:
        near = did_you_mean(str(unknown[0]), known, count=1)
        raise ArgumentError(f"arch of {family}: no field {sorted(map(str, unknown))}{near}; there are {sorted(known)}")
    missing = [
        name
        for name, field in known.items()
        if name not in fields and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ArgumentError(f"arch of {family}: give {' and '.join(missing)}, one number for each stage")
    return kind(**fields)


@functools.cache
def _hints(owner: Any) -> dict[str, Any]:
    return get_type_hints(owner, include_extras=True)


# ---- the arguments of a backbone


def checked(init: Init) -> Init:
    """A constructor that checks its arguments, by the types in its signature, before it is called."""

    @functools.wraps(init)
    def checking(self: Any, *args: Any, **kwargs: Any) -> None:
        check_arguments(type(self), init, (self, *args), kwargs)
        init(self, *args, **kwargs)

    return checking  # type: ignore[return-value]


def check_arguments(family: Any, init: Callable[..., None], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Checks the arguments of a constructor, ``self`` included, by its signature.

    Raises:
        ArgumentError: for an argument that it does not have, or that is not of its type.
    """
    signature = inspect.signature(init)
    parameters = signature.parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = [] if takes_all else [name for name in kwargs if name not in parameters]
    if unknown:
        names = [name for name in parameters if name != "self"]
        said = "; ".join(f"{name!r}: {_advice(family, name, kwargs[name], names)}" for name in unknown)
        raise ArgumentError(f"{family.__name__} has no argument {said}")
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise ArgumentError(f"{family.__name__}: {error}") from None
    for name, hint in _hints_of_arguments(init).items():
        if name in given and takes(hint) and not fits(given[name], hint):
            raise ArgumentError(f"{name}={given[name]!r}: give {takes(hint)}")


def check_init_cfg(init_cfg: Any) -> None:
    """Checks that an ``init_cfg`` is None, a dict with a type, or a list of those.

    Raises:
        ArgumentError: if it is not.
    """
    for each in init_cfg if is_list(init_cfg) else [init_cfg]:
        if each is None or (isinstance(each, Mapping) and each.get("type")):
            others = [name for name in each or () if name not in PRETRAINED_TAKES] if is_pretrained(each) else []
            if others:
                near = did_you_mean(str(others[0]), PRETRAINED_TAKES, count=1)
                takes = near or f"; it takes {', '.join(PRETRAINED_TAKES[1:])}"
                raise ArgumentError(f"init_cfg of type 'Pretrained' has no argument {others[0]!r}{takes}")
            continue
        checkpoint = each if isinstance(each, str) else "FILE, URL OR NAME"
        raise ArgumentError(
            f"init_cfg={init_cfg!r}: give None, or dict(type='Pretrained', checkpoint={checkpoint!r}) for weights"
        )


def _advice(family: Any, name: str, value: Any, names: list[str]) -> str:
    """What to write instead of an argument that a backbone does not have."""
    fields = [field.name for field in dataclasses.fields(family.spec_type)]
    other = ELSEWHERE.get(name, name)
    if name == "pretrained":
        if value is None:
            return "leave it out"
        return f"use init_cfg=dict(type='Pretrained', checkpoint={value!r})"
    if other in names:
        return f"it is called {other} here"
    if other in fields:
        return f"it is given by arch: one of {', '.join(family.archs)}, or dict({other}=...) with the other fields"
    if name in NOT_NEEDED:
        return f"leave it out, as {NOT_NEEDED[name]}"
    return (did_you_mean(name, names, count=1) or f"; it takes {', '.join(names)}").removeprefix("; ")


def _hints_of_arguments(init: Callable[..., None]) -> dict[str, Any]:
    try:
        return _hints(init)
    except (NameError, TypeError):  # of a class of the user's own, whose types are not known here
        return {}
