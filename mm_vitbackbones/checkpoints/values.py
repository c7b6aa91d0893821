"""Weights that no network can use: NaN, infinite values, values of another kind than the network's."""

from __future__ import annotations

from torch import Tensor, nn

from mm_vitbackbones.adapters import name_in_file
from mm_vitbackbones.checkpoints.layout import State
from mm_vitbackbones.errors import CheckpointError, shorten

STATISTICS = ("running_mean", "running_var")
"""Buffers that a normalization divides by or subtracts. Other buffers may be infinite: masks of attention are."""


def check_values(module: nn.Module, given: State, prefix: str = "") -> None:
    """Check the weights that a module takes from a file.

    A parameter is of finite floating-point numbers. A buffer may have infinite values where it is a mask. What the
    module counts in integers (``num_batches_tracked``, an index table) may come as whole numbers of any real type:
    files that were cast as a whole have that.

    Args:
        prefix: of the file's names, before the module's.

    Raises:
        CheckpointError: a tensor is of another kind, or holds NaN or infinite values.
    """
    parameters = {name_in_file(name) for name, _ in module.named_parameters(remove_duplicate=False)}
    broken, too_large = [], []
    for name, own in module.state_dict().items():
        tensor = given.get(f"{prefix}{name}")
        if not isinstance(tensor, Tensor) or not isinstance(own, Tensor):
            continue
        real = not tensor.is_complex()
        if own.is_floating_point() and not tensor.is_floating_point():
            raise CheckpointError(
                f"{prefix}{name} holds values of type {str(tensor.dtype)[6:]}, and the network's are of type "
                f"{str(own.dtype)[6:]}: it holds something else than weights, so give another file"
            )
        if not own.is_floating_point() and not (own.is_complex() or (real and _whole(tensor))):
            raise CheckpointError(
                f"{prefix}{name} holds values of type {str(tensor.dtype)[6:]} that are no whole numbers, and the "
                f"network's are of type {str(own.dtype)[6:]}: give another file"
            )
        if not tensor.is_floating_point():
            continue
        strict = name in parameters or name.rpartition(".")[2] in STATISTICS
        if tensor.isnan().any() or (strict and not tensor.isfinite().all()):
            broken.append(f"{prefix}{name}")
        elif strict and own.is_floating_point() and not tensor.to(own.dtype).isfinite().all():
            too_large.append(f"{prefix}{name}")
    if broken:
        raise CheckpointError(f"the file holds NaN or infinite weights, under {shorten(broken)}: it is of no use")
    if too_large:
        raise CheckpointError(f"weights of the file are too large for the network's type: {shorten(too_large)}")


def _whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool((tensor.isfinite() & (tensor == tensor.round())).all())
