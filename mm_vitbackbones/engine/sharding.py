"""A training whose weights are spread over its processes, by PyTorch's ``fully_shard``.

In a config: ``model_wrapper_cfg = dict(type='mm_vitbackbones.ShardedModel')``. Each process holds its share of the
weights, gradients and states of the optimizer. A block of the backbone has its whole weights while it computes.

All that comes before the first iteration sees a plain model: initial weights, checkpoints, the averages of ``EMAHook``.
All that is saved is whole, as without shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.dist import broadcast, get_world_size, is_main_process
from mmengine.model import BaseAveragedModel
from torch import Tensor, nn
from torch.optim import Optimizer

from mm_vitbackbones.backbones.base import Backbone
from mm_vitbackbones.errors import UserError, shorten
from mm_vitbackbones.registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module()
class ShardedModel(nn.Module):
    """A model of MMEngine's that ``shard`` spreads over the processes of a run.

    Args:
        module: the model. It is changed in place.
        reshard_after_forward: whether blocks give their whole weights up between the forward and the backward pass.
            False keeps them: it saves communication and takes memory.

    Raises:
        UserError: PyTorch is older than 2.6, or a parameter is a number without dimensions, which cannot be spread.
    """

    module: Any

    def __init__(self, module: nn.Module, reshard_after_forward: bool = True) -> None:
        super().__init__()
        try:
            from torch.distributed.fsdp import fully_shard  # noqa: F401
        except ImportError:
            raise UserError(
                f"mm_vitbackbones.ShardedModel needs PyTorch 2.6 or newer, and this is {torch.__version__}: leave "
                "model_wrapper_cfg out"
            ) from None
        if numbers := [name for name, parameter in module.named_parameters() if parameter.dim() == 0]:
            raise UserError(
                f"mm_vitbackbones.ShardedModel cannot spread parameters without dimensions, as {shorten(numbers, 2)}: "
                "leave model_wrapper_cfg out"
            )
        self.module = module
        self.reshard_after_forward = reshard_after_forward
        self.is_sharded = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.train_step(*args, **kwargs)

    def val_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._evaluated(self.module.val_step(*args, **kwargs))

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._evaluated(self.module.test_step(*args, **kwargs))

    def _evaluated(self, found: Any) -> Any:
        """Gives whole weights up that no backward pass does: they would stay as they are when the shards change."""
        if self.is_sharded:
            from torch.distributed.fsdp import FSDPModule

            for each in self.module.modules():
                if isinstance(each, FSDPModule):
                    each.reshard()
        return found

    def shard(self, optimizers: Iterable[Optimizer], averages: Sequence[BaseAveragedModel] = ()) -> None:
        """Spreads the weights, and what belongs to each. All processes call it together.

        Args:
            optimizers: of the weights, with or without a state.
            averages: of the weights.
        """
        new: dict[Tensor, nn.Parameter] = {}
        for model in (self.module, *(average.module for average in averages)):
            for tensor in model.state_dict().values():
                broadcast(tensor)  # each process has drawn its own
            before = dict(model.named_parameters(remove_duplicate=False))
            self._shard(model)
            after = dict(model.named_parameters(remove_duplicate=False))
            new |= {parameter: after[name] for name, parameter in before.items()}
        for average in averages:
            state = average.module.state_dict()
            average.avg_parameters = {name: state[name] for name in average.avg_parameters}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["params"] = [new[parameter] for parameter in group["params"]]
            for parameter in [*optimizer.state]:
                state = optimizer.state.pop(parameter)
                optimizer.state[new[parameter]] = {key: _as(value, new[parameter]) for key, value in state.items()}
        self.is_sharded = True

    def _shard(self, model: nn.Module) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        device = next(model.parameters()).device.type
        mesh = init_device_mesh(device, (get_world_size(),))
        for backbone in model.modules():
            if isinstance(backbone, Backbone):
                for part in backbone.parts():
                    if part.kind == "block" and isinstance(block := part.modules[0], nn.Module):
                        fully_shard(block, mesh=mesh, reshard_after_forward=self.reshard_after_forward)
        fully_shard(model, mesh=mesh)


def _as(value: Any, parameter: Tensor) -> Any:
    """An entry of an optimizer's state: spread as its parameter, if it has an element for each of the parameter's."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape or value.dim() == 0:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


@contextmanager
def whole_states(models: Iterable[nn.Module], optimizers: Iterable[Optimizer]) -> Iterator[None]:
    """Within it, ``state_dict()`` of these has whole tensors, in the first process. All processes enter it together."""
    owners: list[Any] = [*models, *optimizers]
    with ExitStack() as stack:
        for each in owners:
            whole = _whole(each.state_dict())
            handle = each.register_state_dict_post_hook(_given(whole))
            stack.callback(handle.remove)
        yield


def _given(whole: Any) -> Any:
    def hook(_: Any, state: dict[str, Any], *others: Any) -> None:
        if is_main_process():
            state.update(whole)

    return hook


def _whole(node: Any) -> Any:
    """The same with whole tensors, on the CPU, in the place of sharded ones: in the first process alone."""
    from torch.distributed.tensor import DTensor

    if isinstance(node, DTensor):
        found = node.full_tensor().detach()
        return found.cpu() if is_main_process() else None
    if isinstance(node, Mapping):
        return {key: _whole(value) for key, value in node.items()}
    return [_whole(each) for each in node] if isinstance(node, list) else node
