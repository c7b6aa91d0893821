"""Mixed precision: which one a device supports, and the optimizer wrapper for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from mm_vitbackbones.errors import UserError
from mm_vitbackbones.nodes import type_name


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Forward passes under bf16 autocast, on CUDA and, which MMEngine's own wrapper refuses, on CPU.

    bf16 has the exponent range of fp32, so that losses need no scaling. Proposals and the maps that they are cropped
    from stay in fp32.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16), fp32_proposals(model):
            yield


@contextmanager
def fp32_proposals(model: nn.Module) -> Iterator[None]:
    """Within it, the maps and the proposals that a detector of two stages hands to its RoI heads are fp32.

    mmcv's NMS and RoIAlign know no bf16, and in bf16 the side of a box 500 pixels away would be exact to 2 pixels only.
    """
    detector = getattr(model, "module", model)
    parts = [getattr(detector, name, None) for name in ("neck", "rpn_head")] if hasattr(detector, "rpn_head") else []
    hooks = [part.register_forward_hook(lambda _, __, outputs: _fp32(outputs)) for part in parts if part is not None]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _fp32(outputs: Any) -> Any:
    """The tensors of nested tuples and lists as fp32."""
    if isinstance(outputs, torch.Tensor):
        return outputs.float()
    return type(outputs)(_fp32(output) for output in outputs)


def use_amp(cfg: Config, choice: str) -> None:
    """Set a config's optimizer wrapper to mixed precision: ``choice`` is auto, bf16 or fp16.

    Raises:
        UserError: this device does not support it, or gains nothing from it.
    """
    on_cuda = torch.cuda.is_available()
    if choice == "auto":
        if not on_cuda and not cpu_computes_bf16():
            raise UserError("--amp: this CPU has no bf16 instructions (AMX, AVX512-BF16), fp32 is faster: leave it out")
        # Older GPUs emulate bf16, which is slow.
        choice = "bf16" if not on_cuda or torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    if choice == "fp16" and not on_cuda:
        raise UserError("--amp fp16 needs a CUDA device; on a CPU use --amp bf16, or leave --amp out")
    if choice == "bf16" and not on_cuda and not cpu_computes_bf16():
        print_log("--amp bf16: this CPU has no bf16 instructions; expect this to be slower than fp32", "current", 30)
    current = type_name(cfg.optim_wrapper) or "OptimWrapper"
    if current not in ("OptimWrapper", "AmpOptimWrapper"):
        raise UserError(
            f"--amp cannot replace optim_wrapper.type={current!r}; leave --amp out and set it in the config"
        )
    options: dict[str, Any] = {"type": "BFloat16OptimWrapper"}
    if choice == "fp16":
        options = {"type": "AmpOptimWrapper", "dtype": "float16", "loss_scale": "dynamic"}
    for key in ("dtype", "loss_scale"):  # options of an AmpOptimWrapper in the config
        cfg.optim_wrapper.pop(key, None)
    cfg.optim_wrapper.update(options)


def cpu_computes_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices in hardware, as Linux reports it; False on other systems."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.is_file() else []
    return "amx_bf16" in flags or "avx512_bf16" in flags
