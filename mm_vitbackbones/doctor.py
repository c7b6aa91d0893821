"""What is installed, what is wrong with it, and the line that fixes it.

Everything is judged by importing modules and looking at what happens, never by the names of distributions: forks
of mmengine, mmcv, mmdet and mmseg keep the names of the modules, but not those of the distributions.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Literal

from mm_vitbackbones.mmcv_ops import lite
from mm_vitbackbones.mmcv_ops.lite import State
from mm_vitbackbones.printing import print

BUILD = (
    "CFLAGS='-O3 -DNDEBUG -g0 -w' MMCV_WITH_OPS=1 "
    "pip install --no-build-isolation --no-cache-dir --no-deps --force-reinstall mmcv==2.1.0"
)
FIX_COMPILED = f"pip uninstall -y mmcv-lite && pip install 'setuptools<81' ninja && {BUILD}"
FIX_OPERATORS = "python -m mm_vitbackbones ops --install"
FIX_LITE = f"pip uninstall -y mmcv mmcv-lite && pip install --no-deps mmcv-lite==2.1.0 && {FIX_OPERATORS}"
FIX_MMCV = f"{FIX_LITE} (operators in plain PyTorch); or, compiled: {FIX_COMPILED}"
"""mmcv and mmcv-lite write the same folder: the one has to go before the other comes."""
FIX_SETUPTOOLS = "pip install 'setuptools<81'"
FIX_OPENCV = (
    "pip uninstall -y opencv-python && pip install --no-deps --force-reinstall opencv-python-headless "
    "(or, on Debian: apt-get install libgl1 libglib2.0-0)"
)

SAFE_TORCH = (2, 6)
"""The first release of torch whose ``weights_only=True`` is not known to run code from a file."""

IMPORTS = {
    "torch": ("torch",),
    "numpy": ("numpy",),
    "mmengine": ("mmengine", "mmengine.runner"),
    "cv2": ("cv2",),
    "mmcv": ("mmcv",),
    "mmcv.ops": ("mmcv.ops",),
    "mmdet": ("mmdet", "mmdet.models", "mmdet.evaluation"),
    "mmseg": ("mmseg", "mmseg.models", "mmseg.evaluation"),
    "mm_vitbackbones": ("mm_vitbackbones", "mm_vitbackbones.backbones"),
}
"""What is imported to see whether a package works, in the order in which they need each other. A package's parts
follow it, because mmdet and mmseg import most of what they need, compiled or undeclared, only there."""

OPTIONAL = {"mmcv", "mmcv.ops", "mmdet", "mmseg"}
"""Without these the backbones still work on their own."""

DISTRIBUTIONS = {"cv2": "opencv-python-headless", "PIL": "pillow", "mmseg": "mmsegmentation", "yaml": "pyyaml"}
"""What to install for a module of another name. For advice alone: nothing is judged by it."""


@dataclass(frozen=True)
class Finding:
    """One thing to know: ``what`` is the case, and in ``fix`` the line that fixes it, if there is one.

    A blocker keeps something installed from working, a note does not.
    """

    level: Literal["blocker", "note"]
    what: str
    fix: str = ""


@dataclass(frozen=True)
class Package:
    """What importing a package gave: the module, and the error of the package or of the first part that failed."""

    name: str
    module: ModuleType | None = None
    error: Exception | None = None

    @property
    def absent(self) -> bool:
        """Whether there is no such package, as opposed to one that fails."""
        root = self.name.partition(".")[0]
        return isinstance(self.error, ModuleNotFoundError) and self.error.name == root

    @property
    def works(self) -> bool:
        return self.error is None

    @property
    def version(self) -> str:
        return str(getattr(self.module, "__version__", "unknown"))


@dataclass
class Installation:
    """The packages that Python finds, each imported at the first look at it. ``load`` does the importing; ``operators``
    says which of mmcv's are there, and ``writers`` which distributions have written into its folder."""

    load: Callable[[str], ModuleType] = importlib.import_module
    operators: State = field(default_factory=lambda: lite.find().state)
    writers: tuple[str, ...] = field(default_factory=lambda: writers("mmcv"))
    _packages: dict[str, Package] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Package:
        if name not in self._packages:
            self._packages[name] = self._import(name)
        return self._packages[name]

    def _import(self, name: str) -> Package:
        module = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for part in IMPORTS.get(name, (name,)):
                try:
                    loaded = self.load(part)
                except Exception as error:  # whatever a broken package raises is what we are looking for
                    return Package(name, module, error)
                module = module or loaded
        return Package(name, module)


def writers(module: str) -> tuple[str, ...]:
    """The distributions of a module, whatever their names are: fewer or more than one is a mistake."""
    return tuple(sorted({*importlib.metadata.packages_distributions().get(module, ())}))


# Explanations: what an import error means, whichever import raised it. Each knows one cause.


def explain_missing_ops(error: str, package: Package, installation: Installation) -> Finding | None:
    if re.search(r"No module named 'mmcv\._ext", error):
        fix = f"{FIX_OPERATORS} (in plain PyTorch); or, compiled: {FIX_COMPILED}"
        return Finding("blocker", "mmcv has no operators: it is mmcv-lite, or was built without them", fix)
    if re.search(r"No module named 'mmcv\.ops", error):
        return Finding("blocker", "mmcv has no folder ops: it is too old, or incomplete", FIX_MMCV)
    if re.search(r"mmcv/_ext\S*\.so|lib(cudart|torch|c10)\S*: cannot open shared object file", error):
        return Finding("blocker", "mmcv's compiled ops were built for another torch", FIX_MMCV)
    return None


def explain_version_gate(error: str, package: Package, installation: Installation) -> Finding | None:
    gate = re.search(r"(MMCV|MMEngine)==(\S+) is used but incompatible", error)
    if gate is None or not isinstance(package.error, AssertionError):
        return None
    name, version = gate.groups()
    fix = FIX_MMCV if name == "MMCV" else "pip install mmengine==0.10.7"
    return Finding("blocker", f"{package.name} refuses to work with {name.lower()} {version}", fix)


def explain_opencv(error: str, package: Package, installation: Installation) -> Finding | None:
    library = re.search(r"(lib(GL|gthread|glib|SM|Xext|Xrender|xcb)\S*): cannot open shared object file", error)
    if library is None:
        return None
    return Finding("blocker", f"OpenCV needs a system library for windows, {library[1]}, that is not here", FIX_OPENCV)


def explain_numpy(error: str, package: Package, installation: Installation) -> Finding | None:
    signs = r"numpy\.\w+ size changed|_ARRAY_API|numpy\S*multiarray failed to import|compiled using NumPy"
    if not re.search(signs, error):
        return None
    return Finding(
        "blocker",
        f"{package.name} meets a module that was compiled for another numpy than {installation['numpy'].version}",
        "pip install 'numpy<2', or reinstall the module that was compiled for an older numpy",
    )


def explain_torchvision(error: str, package: Package, installation: Installation) -> Finding | None:
    if "torchvision::" not in error and "torchvision/" not in error:
        return None
    return Finding(
        "blocker",
        "torchvision was built for another torch, and fails wherever it is imported",
        "pip uninstall -y torchvision (nothing here needs it), or install the one that belongs to your torch",
    )


def explain_missing_module(error: str, package: Package, installation: Installation) -> Finding | None:
    missing = getattr(package.error, "name", None)
    if not isinstance(package.error, ModuleNotFoundError) or missing is None:
        return None
    if missing == "pkg_resources":
        return Finding("blocker", "setuptools is missing or too new: it has no pkg_resources", FIX_SETUPTOOLS)
    root = missing.partition(".")[0]
    if root in IMPORTS and missing != root:
        return Finding("blocker", f"{package.name} does not find {missing}", f"reinstall {root}: it is incomplete")
    if root == package.name:
        return Finding("blocker", f"{root} is not installed", f"pip install {DISTRIBUTIONS.get(root, root)}")
    fix = FIX_MMCV if root == "mmcv" else f"pip install {DISTRIBUTIONS.get(root, root)}"
    return Finding("blocker", f"{root} is missing; {package.name} needs it", fix)


EXPLANATIONS = (
    explain_missing_ops,
    explain_version_gate,
    explain_opencv,
    explain_numpy,
    explain_torchvision,
    explain_missing_module,
)


# Checks: each looks at one thing of the installation.


def check_imports(installation: Installation) -> Iterator[Finding]:
    """Every package imports, or the reason why not. Optional ones may be absent."""
    for name in IMPORTS:
        package = installation[name]
        if package.works or (package.absent and name in OPTIONAL):
            continue
        error = _chain(package.error)
        findings = (explain(error, package, installation) for explain in EXPLANATIONS)
        known = next((finding for finding in findings if finding), None)
        yield known or Finding(
            "blocker",
            f"{name} cannot be imported: {_first_line(error)}",
            f"python -c 'import {', '.join(IMPORTS[name])}' shows where",
        )


def check_extras(installation: Installation) -> Iterator[Finding]:
    """mmdet and mmseg are extras, which need not be there. They bring mmcv-lite, where it would not be written into a
    compiled mmcv, or into a fork."""
    own = "-without-mmcv" if installation.operators in (State.COMPILED, State.FOREIGN) else ""
    for name, extra, task in (("mmdet", "det", "detection"), ("mmseg", "seg", "segmentation")):
        if installation[name].absent:
            yield Finding(
                "note",
                f"{name} is not installed: the backbones work without it, {task} configs do not",
                f"pip install 'mm-vitbackbones[{extra}{own}]'",
            )


def check_undeclared(installation: Installation) -> Iterator[Finding]:
    """All that mmseg imports without having declared it, at once: its import error names only the first."""
    if installation["mmseg"].works or installation["mmseg"].absent:
        return
    for module in ("ftfy", "prettytable", "regex"):
        if installation[module].absent:
            yield Finding("blocker", f"{module} is missing; mmseg needs it", f"pip install {module}")


def check_setuptools(installation: Installation) -> Iterator[Finding]:
    if installation["pkg_resources"].absent:
        yield Finding(
            "note",
            "setuptools is missing or too new (81 has no pkg_resources): mmcv cannot be built, and configs cannot "
            "inherit from another package's ('mmdet::...')",
            FIX_SETUPTOOLS,
        )


def check_numpy_bridge(installation: Installation) -> Iterator[Finding]:
    """A torch that was built for numpy 1 can be imported with numpy 2, but fails when an array is asked for."""
    torch, numpy = installation["torch"], installation["numpy"]
    if torch.module is None or not numpy.works:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.module.zeros(1).numpy()
    except RuntimeError as error:
        what = f"torch {torch.version} does not work with numpy {numpy.version}: {error}"
        yield Finding("blocker", what, "pip install 'numpy<2'")


def check_unpickler(installation: Installation) -> Iterator[Finding]:
    """Before torch 2.6 a file could run code through ``weights_only=True`` (CVE-2025-32434)."""
    torch = installation["torch"]
    if torch.module is not None and _release(torch.version) < SAFE_TORCH:
        yield Finding(
            "note",
            f"torch {torch.version} can be made to run code by a checkpoint, even with weights_only=True: use .pth "
            "files that you made yourself, or .safetensors",
            "pip install 'torch>=2.6'"
            + (f", and mmcv's ops again: {FIX_COMPILED}" if installation.operators is State.COMPILED else ""),
        )


def check_writers(installation: Installation) -> Iterator[Finding]:
    """mmcv and mmcv-lite do not know of each other, and pip installs both."""
    others = " ".join(name for name in installation.writers if name not in ("mmcv", "mmcv-lite"))
    if len(installation.writers) > 1:
        yield Finding(
            "note",
            f"{' and '.join(installation.writers)} have written into one folder, mmcv: without one, the other breaks",
            (f"pip uninstall -y {others}, and then: " if others else "") + FIX_MMCV,
        )


def check_operators(installation: Installation) -> Iterator[Finding]:
    if installation.operators is State.MISSING and installation["mmcv.ops"].works:
        yield Finding(
            "note",
            "mmcv is mmcv-lite: the commands of this package bring its operators, in plain PyTorch; other programs "
            "stop at \"No module named 'mmcv._ext'\"",
            FIX_OPERATORS,
        )


def check_cuda_ops(installation: Installation) -> Iterator[Finding]:
    torch, ops = installation["torch"].module, installation["mmcv.ops"].module
    if installation.operators is not State.COMPILED or torch is None or ops is None or not torch.cuda.is_available():
        return
    if _compiled_for_cuda(ops) == "not available":
        yield Finding(
            "note",
            "torch sees a GPU, but mmcv's ops were compiled without CUDA: detectors stop at NMS on the GPU",
            f"FORCE_CUDA=1 {BUILD}; or, in plain PyTorch: {FIX_LITE}",
        )


def check_kernels(installation: Installation) -> Iterator[Finding]:
    """By default the kernels of this package run on the cards alone where they were measured."""
    torch = installation["torch"].module
    if torch is None or not torch.cuda.is_available() or not installation["mm_vitbackbones"].works:
        return
    from mm_vitbackbones.errors import UserError
    from mm_vitbackbones.ops.kernels import registration

    try:
        asked = registration.asked()
    except UserError as error:
        yield Finding("blocker", str(error))
        return
    capability, is_amd = torch.cuda.get_device_capability(), torch.version.hip is not None
    if is_amd and asked:
        yield Finding(
            "note",
            f"{torch.cuda.get_device_name()} runs PyTorch's operators: the Triton kernels of this package are for "
            "NVIDIA's GPUs",
            f"unset {registration.SWITCH}",
        )
    if is_amd or asked is not None:
        return
    if capability >= registration.AMPERE and capability not in registration.MEASURED:
        yield Finding(
            "note",
            f"{torch.cuda.get_device_name()} runs PyTorch's operators: the Triton kernels of this package were "
            "measured on other GPUs (docs/benchmarks_gpu.md)",
            f"export {registration.SWITCH}=1 runs the kernels: compare the time of a step with both",
        )


def check_resume(installation: Installation) -> Iterator[Finding]:
    """Since torch 2.6 ``torch.load`` refuses the histories that MMEngine keeps in a checkpoint."""
    torch, mmengine = installation["torch"], installation["mmengine"]
    if torch.module is None or not mmengine.works or _release(torch.version) < (2, 6):
        return
    safe = {getattr(entry, "__name__", "") for entry in torch.module.serialization.get_safe_globals()}
    if "HistoryBuffer" not in safe:
        yield Finding(
            "note",
            f"mmengine {mmengine.version} alone cannot resume a training with torch {torch.version}; "
            "tools/train.py and tools/test.py of this package can: handled by this package",
        )


CHECKS: tuple[Callable[[Installation], Iterator[Finding]], ...] = (
    check_imports,
    check_undeclared,
    check_setuptools,
    check_numpy_bridge,
    check_unpickler,
    check_writers,
    check_operators,
    check_cuda_ops,
    check_kernels,
    check_resume,
    check_extras,
)


def examine(installation: Installation) -> list[Finding]:
    """All findings, each once, blockers first."""
    findings = dict.fromkeys(finding for check in CHECKS for finding in check(installation))
    blocked = {finding.fix for finding in findings if finding.level == "blocker"}
    shown = [finding for finding in findings if finding.level == "blocker" or finding.fix not in blocked]
    return sorted(shown, key=lambda finding: finding.level)


PLAIN = {
    State.PLAIN: "plain PyTorch, in every program",
    State.MISSING: "plain PyTorch, in the commands of this package",
    State.FOREIGN: "neither compiled nor of this package",
}
"""What there is of mmcv's operators where they are not compiled."""


def versions(installation: Installation) -> Iterator[tuple[str, str]]:
    """Pairs of a name and a version, or a text in place of the version."""
    yield "Python", sys.version.split()[0]
    for name in IMPORTS:
        package = installation[name]
        if name == "mmcv.ops" and package.module is not None:
            yield name, PLAIN.get(installation.operators) or f"compiled, CUDA {_compiled_for_cuda(package.module)}"
        elif package.absent:
            yield name, "not installed"
        elif package.works:
            yield name, package.version
        elif package.module is None:
            yield name, "cannot be imported"
        else:
            yield name, f"{package.version} (fails)"


def report(installation: Installation, findings: Iterable[Finding]) -> Iterator[str]:
    """The lines that the command prints."""
    for name, version in versions(installation):
        yield f"{name:<16} {version}"
    yield ""
    findings = list(findings)
    for finding in findings:
        yield f"{finding.level}: {finding.what}"
        if finding.fix:
            yield f"    fix: {finding.fix}"
    blockers = sum(finding.level == "blocker" for finding in findings)
    yield f"{blockers} blocker{'s' * (blockers != 1)}." if blockers else "Ready: no blockers."


def main() -> int:
    """Print the report; 1 if something keeps the installation from working, else 0."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # an error may name a file in letters that the terminal has not
        sys.stdout.reconfigure(errors="backslashreplace")
    installation = Installation()
    if installation.operators is State.MISSING and installation["torch"].works:
        from mm_vitbackbones.mmcv_ops import extension  # as all commands do

        extension.install()
    findings = examine(installation)
    print(*report(installation, findings), sep="\n")
    return int(any(finding.level == "blocker" for finding in findings))


def _chain(error: BaseException | None) -> str:
    """The messages of an exception and of all that led to it, the first cause last."""
    messages = []
    while error is not None:
        messages.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(messages)


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "no message"


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _compiled_for_cuda(ops: ModuleType) -> str:
    return str(ops.get_compiling_cuda_version())
