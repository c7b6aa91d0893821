"""Low-rank adapters (LoRA) in the weights of a model: their names in files, and plain weights made of them.

Hu et al., ICLR 2022, arXiv:2106.09685. An adapter is two maps next to a linear one, whose own weight stays as it is:

    W x + b + alpha / rank * B (A x)

In a file, the weights of a linear map have the names that they have without an adapter. Next to them are
``lora_A.weight`` (rank, in) and ``lora_B.weight`` (out, rank), and once for a backbone ``lora_alpha``, a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from mm_vitbackbones.errors import CheckpointError

State = dict[str, Tensor]

DOWN, UP, ALPHA = "lora_A.weight", "lora_B.weight", "lora_alpha"

_OWN = re.compile(r"(^|\.)(lora_[AB]\.weight|lora_alpha)$")
_INSIDE = re.compile(r"\.(?:base_layer|(lora_[AB])\.default)\.")
"""What peft puts into the names of parameters."""


def name_in_file(parameter: str) -> str:
    """The name in a state dict of a parameter that ``named_parameters`` gives."""
    return _INSIDE.sub(lambda found: f".{found[1]}." if found[1] else ".", parameter)


def is_adapter(name: str) -> bool:
    """Whether a tensor is of an adapter, by its name in a file or in a network."""
    return bool(_OWN.search(name_in_file(name)))


def split(state: Mapping[str, Tensor]) -> tuple[State, State]:
    """The tensors without those of adapters, and those of adapters."""
    own = {key: tensor for key, tensor in state.items() if _OWN.search(key)}
    return {key: tensor for key, tensor in state.items() if key not in own}, own


def summary(state: Mapping[str, Tensor]) -> dict[str, float]:
    """The rank and the alpha of the adapters of a state, and how many linear maps have one; empty without adapters."""
    _, own = split(state)
    ranks = [len(tensor) for key, tensor in own.items() if key.endswith(DOWN)]
    if not ranks:
        return {}
    alphas = [float(tensor) for key, tensor in own.items() if key.endswith(ALPHA) and tensor.numel() == 1]
    return {"rank": max(ranks), **({"alpha": alphas[0]} if alphas else {}), "linear_maps": len(ranks)}


def described(state: Mapping[str, Tensor]) -> str:
    """Such as ``adapters of rank 8 and alpha 16 in 48 linear maps``."""
    found = summary(state)
    alpha = f" and alpha {found['alpha']:g}" if "alpha" in found else ""
    return f"adapters of rank {found['rank']}{alpha} in {found['linear_maps']} linear maps" if found else "no adapters"


def misfit(given: Mapping[str, Tensor], needed: Mapping[str, Tensor], required: bool = True) -> str | None:
    """What is wrong with the adapters of weights for a network, in one line; None if they are the network's.

    Args:
        given: the weights of a file. Other weights than those of adapters do not matter.
        needed: the network's.
        required: whether a file without adapters is wrong for a network with them.
    """
    (_, theirs), (_, ours) = split(given), split(needed)
    if not theirs and (not ours or not required):
        return None
    if not ours:
        found = summary(given)
        options = ", ".join(f"{name}={found[name]:g}" for name in ("rank", "alpha") if name in found)
        return (
            f"the weights have {described(given)}, and the network has none: give its backbone "
            f"adapters=dict({options}, ...) as in the training, or merge them: convert_checkpoint --merge IN OUT"
        )
    if not theirs:
        return f"the network has {described(needed)}, and the weights have none: leave the backbone's adapters out"
    same_names = theirs.keys() == ours.keys() and all(theirs[key].shape == ours[key].shape for key in ours)
    if same_names and all(torch.isclose(theirs[key].float(), ours[key].float()).all() for key in ours if _alpha(key)):
        return None
    return (
        f"the weights have {described(given)}, and the network has {described(needed)}: give its backbone the "
        "adapters of the training: the same rank, alpha and targets"
    )


def _alpha(key: str) -> bool:
    return key.rpartition(".")[2] == ALPHA


def merged(state: Mapping[str, Tensor]) -> State:
    """The plain weights that give what these give with their adapters: W + alpha / rank * B A. The sums are made in
    fp32 or wider, the results have the type of W.

    Raises:
        CheckpointError: without adapters, or if a part of one is missing or of another shape.
    """
    plain, own = split(state)
    if not own:
        raise CheckpointError("holds no adapters: there is nothing to merge")
    used = set()
    for name in [key.removesuffix(DOWN) for key in own if key.endswith(DOWN)]:
        weight, down, up = plain.get(f"{name}weight"), own[name + DOWN], own.get(name + UP)
        alpha = next((own[key] for key in _places(name) if key in own), None)
        if weight is None or up is None or alpha is None:
            lacks = f"{name}weight" if weight is None else name + UP if up is None else ALPHA
            raise CheckpointError(f"the adapter {name}* lacks {lacks}: give the whole checkpoint of the training")
        fits = down.dim() == up.dim() == 2 and len(down) == up.shape[1] and alpha.numel() == 1
        if not fits or weight.shape != (len(up), down.shape[1]):
            raise CheckpointError(f"the adapter {name}* is of other shapes than {name}weight {tuple(weight.shape)}")
        wide = torch.promote_types(weight.dtype, torch.float32)
        product = up.to(wide) @ down.to(wide) * (float(alpha) / len(down))
        plain[f"{name}weight"] = (weight.to(wide) + product).to(weight.dtype)
        used |= {name + DOWN, name + UP}
    if rest := [key for key in own if key not in used and not _alpha(key)]:
        raise CheckpointError(f"{rest[0]} is half an adapter: give the whole checkpoint of the training")
    return plain


def _places(name: str) -> Iterable[str]:
    """Where the alpha of an adapter may stand: in the backbone that the linear map is a part of."""
    parts = name.split(".")
    return (".".join([*parts[:count], ALPHA]) for count in range(len(parts) - 1, -1, -1))
