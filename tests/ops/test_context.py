"""What is asked before a fast form runs: is the module plain, does anybody watch, what is PyTorch doing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, prune

from helpers.graphs import needs_graphs_that_run
from mm_vitbackbones.layers import ChannelsLastConv2d, FeedForward, LayerNorm
from mm_vitbackbones.ops import context

MODULES = {
    "linear": lambda: nn.Linear(4, 4),
    "conv": lambda: ChannelsLastConv2d(4, 4, 3, padding=1),
    "norm": lambda: LayerNorm(4),
}
modules = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())


class Shifted(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


ATTACHMENTS = {
    "forward hook": lambda module: module.register_forward_hook(lambda *_: None),
    "forward pre-hook": lambda module: module.register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda module: module.register_full_backward_hook(lambda *_: None),
    "backward pre-hook": lambda module: module.register_full_backward_pre_hook(lambda *_: None),
    "pruning": lambda module: prune.random_unstructured(module, "weight", 0.5),
    "another forward": lambda module: setattr(module, "forward", lambda x: x),
    "a weight of another class": lambda module: setattr(module, "weight", OtherParameter(module.weight.detach())),
    "a weight that is no parameter": lambda module: module.__dict__.update(weight=module._parameters.pop("weight")),
    "a bias that is no parameter": lambda module: module.__dict__.update(bias=module._parameters.pop("bias")),
}


class OtherParameter(nn.Parameter):
    pass


@modules
def test_a_module_with_nothing_attached_is_plain(make):
    assert context.is_plain(make())


@modules
@pytest.mark.parametrize("attach", ATTACHMENTS.values(), ids=ATTACHMENTS.keys())
def test_a_module_with_something_attached_is_not_plain(make, attach):
    module = make()
    attach(module)
    assert not context.is_plain(module)


@pytest.mark.parametrize("parametrize", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_parametrised_module_is_not_plain(parametrize):
    assert not context.is_plain(parametrize(nn.Linear(4, 4)))


def test_a_subclass_of_a_known_class_is_not_plain():
    assert not context.is_plain(Shifted(4, 4))


@pytest.mark.parametrize(
    "register", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_with_a_global_hook_nothing_is_plain(register):
    module = nn.Linear(4, 4)
    handle = getattr(torch.nn.modules.module, f"register_module_{register}")(lambda *_: None)
    try:
        assert not context.is_plain(module)
    finally:
        handle.remove()
    assert context.is_plain(module)


def test_a_tree_is_plain_if_all_its_parts_are():
    ffn = FeedForward(4, 8)
    assert context.is_plain_tree(ffn)
    handle = ffn.fc1.register_forward_hook(lambda *_: None)
    assert context.is_plain(ffn)
    assert not context.is_plain_tree(ffn)
    handle.remove()
    ffn.fc2 = Shifted(8, 4)
    assert not context.is_plain_tree(ffn)


def test_only_what_was_computed_while_nobody_watches_may_be_overwritten():
    x, computed = torch.zeros(3), torch.zeros(3)
    assert not context.may_overwrite(computed)
    with context.unobserved(x):
        assert context.may_overwrite(computed)
        assert not context.may_overwrite(x)
        assert not context.may_overwrite(x[1:])
    assert not context.may_overwrite(computed)


def test_another_device_is_pretended_in_one_place():
    x = torch.zeros(1)
    assert context.device_type(x) == "cpu"
    with context.pretend_device("cuda"):
        assert context.device_type(x) == "cuda"
    assert context.device_type(x) == "cpu"


class AddsWhatItIs(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + context.is_exporting() + 2 * context.is_compiling_to_run()


@needs_graphs_that_run
def test_a_graph_that_runs_is_no_export():
    module, x = AddsWhatItIs(), torch.zeros(1)
    assert torch.compile(module, backend="eager", fullgraph=True)(x) == 2
    for strict in (True, False):
        assert torch.export.export(module, (x,), strict=strict).module()(x) == 1
    assert module(x) == 0


@needs_graphs_that_run
def test_another_device_is_pretended_in_graphs():
    function = torch.compile(lambda x: x + (context.device_type(x) == "cuda"), backend="eager", fullgraph=True)
    x = torch.zeros(1)
    assert function(x) == 0
    with context.pretend_device("cuda"):
        assert function(x) == 1
    assert function(x) == 0


def test_tracing_and_transformed_functions_are_not_eager():
    seen = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(context.is_eager())
        return x * 2

    function(torch.ones(2))
    torch.jit.trace(function, torch.ones(2), check_trace=False)
    torch.func.vmap(function)(torch.ones(2))
    with forward_ad.dual_level():
        function(torch.ones(2))
    function(torch.ones(2))
    assert seen == [True, False, False, False, True]


class Torch21:
    """PyTorch without what came after 2.1."""

    compiler = SimpleNamespace()

    def __getattr__(self, name):
        if name == "get_autocast_dtype":
            raise AttributeError(name)
        return getattr(torch, name)


@pytest.fixture(params=["as it is", "PyTorch 2.1"])
def version(request, monkeypatch):
    if request.param == "PyTorch 2.1":
        monkeypatch.setattr(context, "torch", Torch21())
        monkeypatch.setattr(context, "_HAS_AUTOCAST_BY_KIND", False)


@pytest.mark.usefixtures("version")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_autocast_is_seen_and_turned():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert context.autocast_dtype(cpu) is None
    assert context.autocast_dtype(torch.device("meta")) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert context.autocast_dtype(cpu) == torch.bfloat16
        assert context.autocast_dtype(cuda) is None
        with context.autocast_to(cpu, None):
            assert context.autocast_dtype(cpu) is None
            assert F.linear(torch.ones(1, 2), torch.ones(1, 2)).dtype == torch.float32
        with pytest.raises(ZeroDivisionError), context.autocast_to(cpu, None):
            raise ZeroDivisionError
        assert context.autocast_dtype(cpu) == torch.bfloat16
        with context.autocast_to(cpu, torch.float16):
            assert context.autocast_dtype(cpu) == torch.float16
    with context.autocast_to(cpu, torch.bfloat16):
        assert F.linear(torch.ones(1, 2), torch.ones(1, 2)).dtype == torch.bfloat16


@pytest.mark.usefixtures("version")
def test_compilation_is_seen():
    def function(x):
        return x + context.is_compiling()

    assert function(torch.zeros(1)) == 0
    assert torch.compile(function, backend="eager", fullgraph=True)(torch.zeros(1)) == 1
