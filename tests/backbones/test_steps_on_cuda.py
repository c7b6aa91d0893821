"""What a training step in the forms for CUDA does besides its arithmetic, in every family: no hooks, each cast of a
parameter once, each norm once and that of a feed-forward network once more, and no copy of what is in order already."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import as_on_cuda
from helpers.agreement import image
from helpers.toys import TOYS
from mm_vitbackbones.backbones.swin import PatchMerging
from mm_vitbackbones.layers import ResidualBlock
from mm_vitbackbones.ops import context
from mm_vitbackbones.ops.kernels import registration

APART = {"mvit_v2": 3}
"""Blocks whose sum and the norm after it are two passes: those that change the width."""


class Watch(TorchDispatchMode):
    """Counts norms, casts of parameters, and copies that change neither type nor order."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.names = {p.data_ptr(): name for name, p in network.named_parameters()}
        self.norms = self.norms_of_sums = self.passes_of_casts = 0
        self.casts: Counter[str] = Counter()
        self.needless: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operator(*args, **(kwargs or {}))
        name = operator.overloadpacket.__name__
        self.norms += "layer_norm" in name and "backward" not in name
        self.norms_of_sums += name in ("add_layer_norm", "add_layer_norm_by_level")
        self.passes_of_casts += name == "_foreach_copy_"
        if name in ("_to_copy", "clone"):
            source = args[0]
            if source.dtype != out.dtype and source.data_ptr() in self.names:
                self.casts[self.names[source.data_ptr()]] += 1
            alike = source.dtype == out.dtype and source.shape == out.shape and source.stride() == out.stride()
            if alike and source.numel() > 1:
                self.needless.append((name, tuple(source.shape)))
        return out


def loss_of(network: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return torch.stack([level.float().mean() for level in network(x)]).sum()


def linear_parameters_of_blocks(network: nn.Module) -> set[str]:
    blocks = [(name, module) for name, module in network.named_modules() if isinstance(module, ResidualBlock)]
    maps = {
        f"{block}.{name}" for block, inner in blocks for name, m in inner.named_modules() if isinstance(m, nn.Linear)
    }
    return {name for name, _ in network.named_parameters() if name.rpartition(".")[0] in maps}


def refuse_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those on saved tensors, also of PyTorch's checkpoints, on gradients, and on modules."""

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a hook in Python costs more than it saves on a GPU")

    monkeypatch.setattr(torch._C._autograd, "_push_saved_tensors_default_hooks", refuse)
    monkeypatch.setattr(Tensor, "register_hook", refuse)
    for name in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"):
        monkeypatch.setattr(nn.Module, f"register_{name}", refuse)


@pytest.mark.parametrize("toy", TOYS)
def test_a_step_without_kernels_takes_no_hook_either(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = TOYS[toy]().train(), image()
    refuse_hooks(monkeypatch)
    with context.pretend_device("cuda"), registration.forced(False):
        loss_of(network, x).backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("toy", TOYS)
def test_a_step_takes_no_hook_no_needless_copy_and_few_norms_and_casts(
    toy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_cuda.use(monkeypatch)
    network, x = TOYS[toy]().train(), image()
    with Watch(network) as modules:
        loss_of(network, x)
    refuse_hooks(monkeypatch)
    with context.pretend_device("cuda"):
        with torch.no_grad():
            loss_of(network, x)  # what is made at the first call
        with Watch(network) as forward:
            loss = loss_of(network, x)
        with Watch(network) as backward:
            loss.backward()
    assert 0 < forward.norms <= modules.norms
    blocks = sum(isinstance(module, ResidualBlock) for module in network.modules())
    assert forward.norms_of_sums >= blocks - APART.get(toy, 0)
    # A plain feed-forward network and a map of merged patches keep what their norm was made of, see ``memory.made``.
    kinds = ResidualBlock, PatchMerging
    assert backward.norms <= sum(isinstance(module, kinds) for module in network.modules())
    casts = forward.casts + backward.casts
    assert max(casts.values(), default=0) <= 1
    assert forward.passes_of_casts == 1  # of all linear maps
    assert not casts.keys() & linear_parameters_of_blocks(network)
    assert forward.needless == backward.needless == []
