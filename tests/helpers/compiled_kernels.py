"""Compiles our Triton kernels for cards that are not there: a program, since Triton's interpreter has to be off.

    PYTHONPATH=tests python -m helpers.compiled_kernels 80 90 --launches each

It runs networks of published widths in their forms for CUDA on a CPU, where nothing is multiplied, and notes how they
start their kernels. Each kernel is then compiled for compute capabilities such as 8.0 and 9.0, by Triton's own code for
a launch, which specialises it for its arguments. A line of JSON for each has what it needs of a card.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import pkgutil
import re
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from helpers.toys import BY_FAMILY
from mm_vitbackbones.backbones import Backbone
from tools.benchmarks.host.as_on_gpu import kernels_on_cpu

TRITON = "mm_vitbackbones.ops.kernels.triton"
DTYPES = (None, torch.bfloat16, torch.float16)
"""Of autocast."""
LARGE = 2**33
"""In the place of a number that 32 bits do not hold."""
SIZE = (70, 96)


class Launch(NamedTuple):
    """How a kernel is started, as far as a compiler can see it."""

    module: str
    name: str
    tensors: tuple[tuple[torch.dtype, bool], ...]
    """The type of each, and whether it begins at a multiple of 16 bytes."""
    numbers: tuple[float, ...]
    constants: tuple[Any, ...]
    warps: int
    registers: int | None

    @property
    def kernel(self) -> str:
        return f"{self.module}.{self.name}"

    def with_large_numbers(self) -> Launch:
        """Where the numbers that may grow with an image need 64 bits."""
        return self._replace(numbers=tuple(LARGE if isinstance(n, int) else n for n in self.numbers))


# ---- how networks start kernels


@contextmanager
def recording(found: dict[Launch, str], where: list[str]) -> Iterator[None]:
    """Within it, networks on a CPU start our kernels as on CUDA, which are noted and not run."""
    from mm_vitbackbones.ops.kernels.triton import launch

    def note(
        self: Any, grid: Any, tensors: Any, numbers: Any, constants: Any, num_warps: int = 4, maxnreg: int | None = None
    ) -> None:
        function = self.function.fn
        kinds = tuple((x.dtype, x.data_ptr() % 16 == 0) for x in tensors)
        kept = tuple(0.5 if isinstance(n, float) else 100 for n in numbers)
        module = function.__module__.rpartition(".")[2]
        found.setdefault(Launch(module, function.__name__, kinds, kept, constants, num_warps, maxnreg), where[-1])

    with kernels_on_cpu((launch.Launcher, "__call__", note)):
        yield


def multiply_nothing() -> torch.library.Library:
    """Matrices are not multiplied any more, and parameters not drawn: wide networks take as long as narrow ones."""
    library = torch.library.Library("aten", "IMPL", "CPU")
    kernels: dict[str, Callable[..., Tensor]] = {
        "mm": lambda a, b: a.new_empty(a.shape[0], b.shape[1]),
        "addmm": lambda bias, a, b, beta=1, alpha=1: a.new_empty(a.shape[0], b.shape[1]),
        "bmm": lambda a, b: a.new_empty(*a.shape[:2], b.shape[2]),
        "baddbmm": lambda bias, a, b, beta=1, alpha=1: a.new_empty(*a.shape[:2], b.shape[2]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, kernel in kernels.items():
            library.impl(name, kernel)
    for name in ("trunc_normal_", "normal_", "kaiming_uniform_", "kaiming_normal_", "uniform_", "xavier_uniform_"):
        setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
    return library


def networks(every: bool) -> Iterator[tuple[str, Callable[..., Backbone]]]:
    """Of published widths, with two blocks of each: those of the tests on a GPU, or one for each width."""
    for known in BY_FAMILY.values():
        family, seen = known.network, set()
        for arch, spec in family.archs.items():
            depths = (2,) * len(getattr(spec, "depths", ()))
            short = dataclasses.replace(spec, **({"depths": depths} if depths else {"depth": 2}))
            if short in seen or not (every or arch == known.on_gpu):
                continue
            seen.add(short)
            yield f"{family.__name__} {arch}", lambda short=short, family=family, **kw: family(arch=short, **kw)


def launches(every: bool, dtypes: Sequence[torch.dtype | None] = DTYPES) -> dict[Launch, str]:
    """How kernels are started in autocast to each type, and by which network first."""
    found: dict[Launch, str] = {}
    where: list[str] = []
    with recording(found, where):
        for name, build in networks(every):
            for options in ({"drop_path_rate": 0.1}, {"drop_path_rate": 0.0, "with_cp": "all_but_attention"}):
                network = build(**options)
                for dtype in dtypes:
                    where.append(f"{name}, {options}, {dtype}")
                    run(network, dtype)
    return found


def run(network: nn.Module, dtype: torch.dtype | None) -> None:
    """A step of training and inference with fp32 weights, and inference with those of the type."""
    image = torch.randn(2, 3, *SIZE)
    with nullcontext() if dtype is None else torch.autocast("cpu", dtype):
        sum(x.float().sum() for x in network.train()(image)).backward()
        with torch.no_grad():
            network.eval()(image)
    if dtype is not None:
        with torch.no_grad():
            network.to(dtype)(image.to(dtype))
        network.float()
    network.zero_grad()


def few(found: dict[Launch, str]) -> dict[Launch, str]:
    """Of each kernel one launch for fp32 and one for bf16, with the most options, and one with 64-bit numbers."""

    def size(launch: Launch) -> tuple[int, list[int]]:
        numbers = [constant for constant in launch.constants if isinstance(constant, (bool, int))]
        return sum(constant is True for constant in numbers), numbers

    chosen: dict[tuple[str, torch.dtype], Launch] = {}
    for launch in sorted(found, key=size):
        chosen[launch.kernel, launch.tensors[0][0]] = launch
    large = {kernel: launch.with_large_numbers() for (kernel, _), launch in chosen.items()}
    where = {launch: found[launch] for launch in chosen.values()}
    return where | dict.fromkeys(large.values(), "numbers of 64 bits")


def launchers() -> set[str]:
    """The names of all kernels that there are."""
    from mm_vitbackbones.ops.kernels import triton as package
    from mm_vitbackbones.ops.kernels.triton.launch import Launcher

    modules = [importlib.import_module(f"{TRITON}.{found.name}") for found in pkgutil.iter_modules(package.__path__)]
    starts = [value for module in modules for value in vars(module).values() if isinstance(value, Launcher)]
    return {_name_of(start.function.fn) for start in starts}


def _name_of(function: Any) -> str:
    return f"{function.__module__.rpartition('.')[2]}.{function.__name__}"


# ---- compiling


class _NoCard:
    """In place of Triton's driver."""

    capability = 0

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


def compile_for(capability: int, launch: Launch) -> dict[str, Any]:
    """What a kernel needs of a card: registers, bytes on the stack (of spilled registers and arrays), shared memory and
    other scratch memory in bytes. And its accesses to global memory, by their bytes.

    Raises:
        Exception: of Triton, where it does not compile.
    """
    from triton.runtime import driver

    _NoCard.capability = capability
    driver.set_active(_NoCard())
    function = getattr(importlib.import_module(f"{TRITON}.{launch.module}"), launch.name)
    tensors = [SimpleNamespace(dtype=dtype, data_ptr=lambda at=0 if even else 2: at) for dtype, even in launch.tensors]
    options = dict(grid=(1, 1, 1), warmup=True, num_warps=launch.warps, maxnreg=launch.registers)
    compiled = function.run(*tensors, *launch.numbers, *launch.constants, **options)
    metadata = compiled.metadata
    return {
        **resources(compiled.asm["cubin"]),
        "shared": metadata.shared,
        "scratch": metadata.global_scratch_size + getattr(metadata, "profile_scratch_size", 0),
        "accesses": accesses(compiled.asm["ptx"]),
    }


def resources(binary: bytes) -> dict[str, int]:
    import triton

    program = Path(triton.__file__).with_name("backends") / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(program), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert found, text
    return dict(zip(("registers", "stack", "local"), map(int, found.groups()), strict=True))


def accesses(text: str) -> dict[str, int]:
    """How many loads and stores of so many bytes the text in PTX has: ``{"ld 16": 3, "st 4": 1}``."""
    count: dict[str, int] = {}
    for kind, many, bits in re.findall(r"\b(ld|st)\.global\S*?(?:\.v(\d))?\.b(\d+)", text):
        name = f"{kind} {int(many or 1) * int(bits) // 8}"
        count[name] = count.get(name, 0) + 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capabilities", type=int, nargs="+")
    parser.add_argument(
        "--launches", choices=("few", "each", "all"), default="few", help="all: of all published widths"
    )
    parser.add_argument("--kernels", default="", help="those whose name has this in it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    library = multiply_nothing()
    if options.launches == "few":
        found = few(launches(False, [dtype for dtype in DTYPES if dtype != torch.float16]))
    else:
        found = launches(options.launches == "all")
    del library
    print(json.dumps(sorted(launchers())))
    for launch, where in sorted(found.items(), key=str):
        if options.kernels not in launch.kernel:
            continue
        what = dict(kernel=launch.kernel, warps=launch.warps, constants=[*map(str, launch.constants)], where=where)
        what["tensors"] = [str(dtype).removeprefix("torch.") + ("" if even else "?") for dtype, even in launch.tensors]
        for capability in options.capabilities:
            try:
                result = compile_for(capability, launch)
            except Exception as error:
                result = {"error": f"{type(error).__name__}: {error}"[:2000]}
            print(json.dumps({**what, "capability": capability, **result}), flush=True)


if __name__ == "__main__":
    main()
