"""What users attach to a network counts, in every family and in every mode: adapters, pruning, parametrisations, hooks,
quantised or own modules in place of ours; and what is made of a network from outside: traces, files, other weights."""

from __future__ import annotations

import copy
import importlib
import json
import math
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import register_parametrization
from torch.utils._pytree import tree_leaves

from helpers.attachments import (
    MODES,
    Mode,
    check_linears,
    difference,
    names_of,
    put,
    random_image,
    random_network,
    run,
    run_plain,
)
from helpers.paths import ROOT
from helpers.toys import TOYS, different_toys, only
from mm_vitbackbones.backbones import Backbone
from mm_vitbackbones.measuring import OperatorCount
from mm_vitbackbones.ops import context
from mm_vitbackbones.registry import BACKBONES

toys = pytest.mark.parametrize("toy", TOYS)
few_toys = only("coat", "pvt_v2", "swin", "vit")
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
one_process = pytest.mark.xdist_group("attachments_in_new_processes")
inferences = pytest.mark.parametrize("inference", [torch.no_grad, torch.inference_mode])


def test_every_registered_family_has_a_toy():
    BACKBONES.import_from_location()
    families = {x for x in BACKBONES.module_dict.values() if isinstance(x, type) and issubclass(x, Backbone)}
    assert families <= {type(random_network(toy)) for toy in TOYS}


class LowRank(nn.Module):
    """A LoRA adapter. Like that of peft, it shows the attributes of what it wraps, which are not the whole truth."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 4, bias=False)
        self.up = nn.Linear(4, base.out_features, bias=False)

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        own = self.__dict__["_modules"]
        return own[name] if name in own else getattr(own["base"], name)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class PlusOne(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def own_class(linear: nn.Linear) -> nn.Linear:
    linear.__class__ = PlusOne
    return linear


def hooked(linear: nn.Linear) -> nn.Linear:
    linear.register_forward_hook(lambda module, inputs, output: output * 2)
    return linear


def pre_hooked(linear: nn.Linear) -> nn.Linear:
    linear.register_forward_pre_hook(lambda module, inputs: inputs[0] * 2)
    return linear


def pruned(module: nn.Module) -> nn.Module:
    with torch.no_grad():  # which leaves tensors that can be copied
        return prune.random_unstructured(module, "weight", amount=0.5)


def weight_normed(module: nn.Module) -> nn.Module:
    parametrizations.weight_norm(module).parametrizations.weight.original0.data.mul_(2)
    return module


def spectral_normed(module: nn.Module) -> nn.Module:
    return parametrizations.spectral_norm(module).eval()


ON_LINEARS = {
    "lora": LowRank,
    "lora_on_attention": LowRank,
    "spectral_norm": spectral_normed,
    "hook": hooked,
    "pre_hook": pre_hooked,
    "own_class": own_class,
}


@different_toys
@modes
@pytest.mark.parametrize("what", ON_LINEARS)
def test_what_is_attached_to_linears_counts(toy, mode, what):
    attached = random_network(toy)
    names = names_of(attached, nn.Linear, within="attn" if what.endswith("attention") else "")
    torch.manual_seed(0)
    for name in names:
        put(attached, name, ON_LINEARS[what](attached.get_submodule(name)))
    check_linears(attached, names, toy, mode)


@toys
@pytest.mark.parametrize("with_cp", ["ffn", "block"])
def test_adapters_count_in_what_the_backward_pass_computes_again(toy, with_cp):
    attached = random_network(toy, with_cp=with_cp)
    names = names_of(attached, nn.Linear)
    torch.manual_seed(0)
    for name in names:
        put(attached, name, LowRank(attached.get_submodule(name)))
    check_linears(attached, names, toy, MODES["training"])


@different_toys
@modes
@pytest.mark.parametrize("change", [pruned, weight_normed])
def test_weights_that_are_made_of_others_count_and_follow_them(toy, mode, change):
    network = random_network(toy)
    torch.manual_seed(0)
    names = names_of(network, (nn.Linear, nn.Conv2d))
    weights = {name: change(network.get_submodule(name)).weight.detach().clone() for name in names}
    for factor in (1.0, 0.3):  # the second as after a step of training, when products of before are out of date
        equal = random_network(toy)
        with torch.no_grad():
            for name in names:
                equal.get_submodule(name).weight.copy_(weights[name])
            for p in (*network.parameters(), *equal.parameters()):
                p.mul_(factor)
        expected = run(equal, mode)
        assert difference(run_plain(toy, mode), expected) > 5 * mode.tolerance
        assert difference(run(network, mode), expected) < mode.tolerance
        assert [name for name, p in network.named_parameters() if mode.training and p.grad is None] == []


class Tripled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * x


@toys
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("mode", [MODES["inference"], MODES["training"]], ids=["inference", "training"])
def test_tables_tokens_and_factors_that_are_made_of_others_count(toy, mode, device):
    network, equal = random_network(toy), random_network(toy)
    names = [x for x, _ in network.named_parameters() if x.rpartition(".")[2] not in ("weight", "bias")]
    if not names:
        pytest.skip("all parameters are weights and biases")
    for name in names:
        module, _, own = name.rpartition(".")
        register_parametrization(network.get_submodule(module), own, Tripled())
        equal.get_parameter(name).data.mul_(3)
    expected = run(equal, mode)
    assert difference(run_plain(toy, mode), expected) > 5 * mode.tolerance
    with context.pretend_device(device):
        assert difference(run(network, mode), expected) < mode.tolerance


class Calls:
    """Counts the calls of every module by hooks, and keeps what the hooks see."""

    def __init__(self, network: nn.Module) -> None:
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.seen: list[tuple[str, Tensor, Tensor]] = []
        for name, module in network.named_modules():
            module.register_forward_pre_hook(lambda _, inputs, name=name: self.see(self.begun, name, inputs))
            module.register_forward_hook(lambda _, inputs, output, name=name: self.see(self.ended, name, output))

    def see(self, counts: Counter[str], name: str, values: object) -> None:
        counts[name] += 1
        self.seen += [(name, x, x.detach().clone()) for x in tree_leaves(values) if isinstance(x, Tensor)]


@cache
def calls_with_gradients(toy: str) -> Counter[str]:
    """How often each module is called in a forward pass, by the hooks of a network in eval mode."""
    network = random_network(toy)
    calls = Calls(network)
    network(random_image())
    return calls.ended


@cache
def run_with_hooks(toy: str, mode: Mode) -> tuple[Calls, list[Tensor]]:
    network = random_network(toy)
    return Calls(network), run(network, mode)


def differing(actual: Counter[str], expected: Counter[str]) -> dict[str, tuple[int, int]]:
    return {name: (actual[name], expected[name]) for name in actual | expected if actual[name] != expected[name]}


@toys
@modes
def test_every_hook_fires_once_per_call(toy, mode):
    calls, maps = run_with_hooks(toy, mode)
    assert differing(calls.begun, calls_with_gradients(toy)) == {}
    assert differing(calls.ended, calls_with_gradients(toy)) == {}
    assert difference(maps, run_plain(toy, mode)) < mode.tolerance


@toys
@modes
def test_hooks_reach_every_module_that_has_weights_and_every_stage_and_block_once(toy, mode):
    calls, network = run_with_hooks(toy, mode)[0], random_network(toy)
    assert [name for name, module in network.named_modules() if module._parameters and not calls.ended[name]] == []
    stages_and_blocks = [name for name, _ in network.named_modules() if re.search(r"(stages|blocks)\.\d+$", name)]
    assert len(stages_and_blocks) >= 4
    assert {name: calls.ended[name] for name in stages_and_blocks} == dict.fromkeys(stages_and_blocks, 1)


@toys
@modes
def test_what_hooks_see_stays_as_it_was(toy, mode):
    calls, _ = run_with_hooks(toy, mode)
    assert {name for name, tensor, before in calls.seen if not torch.equal(tensor, before)} == set()


@toys
@modes
def test_global_hooks_fire_once_per_call(toy, mode):
    network, expected = random_network(toy), calls_with_gradients(toy)
    names = {module: name for name, module in network.named_modules()}
    counts = Counter(), Counter()

    def begin(module: nn.Module, inputs: object) -> None:
        counts[0][names.get(module)] += 1

    def end(module: nn.Module, inputs: object, output: object) -> None:
        counts[1][names.get(module)] += 1

    hooks = nn.modules.module
    with hooks.register_module_forward_pre_hook(begin), hooks.register_module_forward_hook(end):
        run(network, mode)
    assert [differing(count, expected) for count in counts] == [{}, {}]


@toys
def test_backward_hooks_fire_once_per_backward_pass(toy):
    network, watched, fired, expected = random_network(toy), random_network(toy), Counter(), Counter()
    for name in names_of(network, nn.Linear):

        def watch(module: nn.Module, inputs: object, output: Tensor, name: str = name) -> None:
            if output.requires_grad:  # a class token's last map has no effect, and gets no gradient
                output.register_hook(lambda grad: expected.update([name]))

        network.get_submodule(name).register_full_backward_hook(lambda *_, name=name: fired.update([name]))
        watched.get_submodule(name).register_forward_hook(watch)
    results = [run(x, MODES["training"]) for x in (network, watched)]
    assert differing(fired, expected) == {}
    assert fired.keys() == {*names_of(watched, nn.Linear)}
    assert difference(*results) < MODES["training"].tolerance


@different_toys
@modes
@pytest.mark.parametrize("place", ["ffn", "norm"])
def test_an_identity_in_place_of_a_module_is_one(toy, mode, place):
    network = random_network(toy)
    norms = names_of(network, nn.LayerNorm)[::3]  # without any, a network is all rounding errors
    ffns = [name for name, _ in network.named_modules() if name.endswith(".ffn")]
    for name in {"ffn": ffns, "norm": norms}[place]:
        put(network, name, nn.Identity())
    with mode.gradients():
        expected = [x.detach() for x in network(random_image())]
    levels = len(expected)
    assert difference(run_plain(toy, mode)[:levels], expected) > 5 * mode.tolerance
    assert difference(run(network, mode)[:levels], expected) < mode.tolerance


@toys
@pytest.mark.filterwarnings("ignore:.*quantization.*:DeprecationWarning", "ignore:.*quantize.*:UserWarning")
def test_quantised_linears_are_called(toy):
    quantised = torch.ao.quantization.quantize_dynamic(random_network(toy), {nn.Linear}, dtype=torch.qint8)
    assert not [module for module in quantised.modules() if type(module) is nn.Linear]
    expected = [x.detach() for x in quantised(random_image())]
    for mode in ("inference", "inference_in_bands"):
        assert difference(run(quantised, MODES[mode]), expected) < 0.02  # a rounding error may become a step of 1/128
    assert 1e-4 < difference(run_plain(toy, MODES["inference"]), expected) < 0.2


def fast_forms(network: nn.Module) -> dict[str, int]:
    """How often each fused operator runs in inference."""
    with torch.no_grad(), OperatorCount() as count:
        network(random_image())
    return {name: n for name, n in count.by_name.items() if name.startswith("mkldnn")}


def multiply_adds(network: nn.Module) -> int:
    """Of all linear maps and convolutions that the network calls."""
    total = 0

    def add(module: nn.Linear | nn.Conv2d, inputs: object, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * math.prod(module.weight.shape[1:])

    for name in names_of(network, (nn.Linear, nn.Conv2d)):
        network.get_submodule(name).register_forward_hook(add)
    network(random_image()[:1])
    return total


def trace(toy: str, after_an_inference: bool) -> dict[str, int]:
    """Traces a network, and compares. Gives what ``fast_forms`` gives afterwards."""
    network, image = random_network(toy), random_image()
    with torch.no_grad(), torch.jit.optimized_execution(False):
        if after_an_inference:
            network(image)
        traced = torch.jit.trace(network, image, check_trace=False)
        for x in (image, image.flip(0)):
            assert difference(traced(x), network(x)) < 1e-5
    return fast_forms(network)


def complexity(toy: str) -> None:
    from mmengine.analysis import get_model_complexity_info

    network, shape = random_network(toy), tuple(random_image().shape[1:])
    # Without its tables, which take as long again.
    info = get_model_complexity_info(network, input_shape=shape, show_table=False, show_arch=False)
    assert info["flops"] >= multiply_adds(network) > 0
    assert info["params"] == sum(p.numel() for p in network.parameters())


IN_NEW_PROCESSES = {
    "trace": lambda toy: trace(toy, after_an_inference=False),
    "trace_after_an_inference": lambda toy: trace(toy, after_an_inference=True),
    "complexity": complexity,
}


def answer(what: str, toy: str) -> None:
    """Prints what a function of ``IN_NEW_PROCESSES`` gives, or how it fails, on a line of its own."""
    try:
        result = IN_NEW_PROCESSES[what](toy)
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    print("\n" + json.dumps([what, toy, result]), flush=True)


def in_new_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, which finds this package and the tests' helpers."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def answers(request: pytest.FixtureRequest) -> dict[tuple[str, str], object]:
    """What ``IN_NEW_PROCESSES`` give for each toy that is asked for: every call is the first use of PyTorch in its
    process."""
    asking = [item for item in request.session.items if "answers" in getattr(item, "fixturenames", ())]
    run = in_new_process(__file__, *sorted({item.callspec.params["toy"] for item in asking}))
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('["')]
    return {(what, toy): result for what, toy, result in lines}


@one_process
@few_toys
@pytest.mark.parametrize("what", ["trace", "trace_after_an_inference"])
def test_a_trace_works_in_a_new_process_and_leaves_the_fast_forms_on(toy, what, answers):
    result = answers[what, toy]
    assert isinstance(result, dict), result
    assert result == fast_forms(random_network(toy))


@toys
def test_the_fast_forms_are_back_when_what_was_attached_is_gone(toy):
    network = random_network(toy)
    expected = fast_forms(network)
    handles = [module.register_forward_hook(lambda *_: None) for module in network.modules()]
    assert fast_forms(network) == {}
    for handle in handles:
        handle.remove()
    assert fast_forms(network) == expected


@one_process
@few_toys
def test_mmengine_counts_the_operations_in_a_new_process(toy, answers):
    assert answers["complexity", toy] is None


@toys
def test_safetensors_takes_the_weights(toy, tmp_path):
    from safetensors.torch import load_file, save_file

    network = TOYS[toy]()
    state = network.state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    loaded = load_file(tmp_path / "weights.safetensors")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@toys
def test_weights_go_to_a_vector_and_back(toy):
    network, other = random_network(toy), random_network(toy, seed=1)
    run(network, MODES["inference"])
    vector = nn.utils.parameters_to_vector(other.parameters())
    nn.utils.vector_to_parameters(vector.detach(), network.parameters())
    assert torch.equal(nn.utils.parameters_to_vector(network.parameters()), vector)
    assert difference(run(network, MODES["inference"]), run(other, MODES["inference"])) < 1e-5


def multiply(p: Tensor, other: Tensor) -> None:
    p.data.mul_(0.5)


def average(p: Tensor, other: Tensor) -> None:
    p.data.lerp_(other.data, 0.5)


def write_by_numpy(p: Tensor, other: Tensor) -> None:
    p.detach().numpy()[...] = other.detach().numpy()


def replace(p: Tensor, other: Tensor) -> None:
    p.data = other.detach().clone()


@different_toys
@inferences
@pytest.mark.parametrize("write", [multiply, average, write_by_numpy, replace])
def test_inference_sees_weights_that_leave_no_trace_of_a_change(toy, inference, write):
    network, other, equal = random_network(toy), random_network(toy, seed=1), random_network(toy, seed=2)
    image = random_image()
    with inference():
        before = network(image)
    with torch.no_grad():
        for p, q in zip(network.parameters(), other.parameters(), strict=True):
            write(p, q)
    equal.load_state_dict(network.state_dict())
    with inference():
        after, expected = network(image), equal(image)
    assert difference(before, expected) > 0.1
    assert difference(after, expected) < 1e-6


@toys
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_copies_after_an_inference_are_equal_and_independent(toy, duplicate):
    network, other, image = random_network(toy), random_network(toy, seed=1), random_image()
    with torch.no_grad():
        expected = network(image)
        twin = duplicate(network)
        assert all(torch.equal(a, b) for a, b in zip(twin(image), expected, strict=True))
        twin.load_state_dict(other.state_dict())
        assert difference(twin(image), other(image)) < 1e-6
        assert all(torch.equal(a, b) for a, b in zip(network(image), expected, strict=True))


@toys
@inferences
def test_functional_calls_take_the_weights_that_they_are_given(toy, inference):
    network, other, image = random_network(toy), random_network(toy, seed=1), random_image()
    with inference():
        before = network(image)
        given = torch.func.functional_call(network, dict(other.named_parameters()), (image,))
        assert difference(given, other(image)) < 1e-6
        assert difference(network(image), before) < 1e-6


PEFT = """
import sys

sys.path.append(sys.argv[1])
from tools.benchmarks.contenders import declare_torchvision_operators

declare_torchvision_operators()
import torch
from peft import LoraConfig, inject_adapter_in_model
from helpers.attachments import MODES, TOYS, check_linears, names_of, random_network

for toy in TOYS:
    for within in ("attn", ""):
        for title, mode in MODES.items():
            network = random_network(toy)
            names = names_of(network, torch.nn.Linear, within)
            torch.manual_seed(0)
            config = LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=names)
            try:
                check_linears(inject_adapter_in_model(config, network), names, toy, mode)
            except Exception as error:
                print(toy, within or "all", title, type(error).__name__, error)
print("all compared")
"""


@pytest.mark.parity
@pytest.mark.slow
def test_adapters_of_peft_count():
    peers = Path(sys.prefix, "peers")
    if not (peers / "peft").is_dir():
        pytest.skip("peft is not installed: `make test-all` installs it next to the environment")
    run = in_new_process("-c", PEFT, str(peers))
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.splitlines() == ["all compared"]


if __name__ == "__main__":
    for what in IN_NEW_PROCESSES:
        if what != "trace":  # which shows that a trace can be the first to import what it needs, half of its time
            for name in ("mmengine.analysis", "torch._dynamo", "torch.onnx"):
                importlib.import_module(name)
        for toy in TOYS:
            if toy not in sys.argv[1:]:
                continue
            process = multiprocessing.get_context("fork").Process(target=answer, args=(what, toy))
            process.start()
            process.join()
