"""What pyproject.toml cannot say: the wheel holds the configs where OpenMMLab's packages have theirs.

``configs/`` becomes ``mm_vitbackbones/.mim/configs/``, and ``model-index.yml``, whose paths are relative to its own
folder, goes next to it. An editable installation reads them from the source tree. A file of a user's own in
``configs/`` stays out of the wheel, where git tells it from the project's.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


def load_files() -> ModuleType:
    """``mm_vitbackbones.files``, which needs nothing but Python. The package may not be on the path yet."""
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module("mm_vitbackbones.files")
    finally:
        sys.path.remove(str(ROOT))


class BuildWithConfigs(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self.configs().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target, preserve_mode=False)

    def configs(self) -> dict[str, str]:
        """The files of the source tree, and where each goes."""
        configs = [file for file in load_files().tracked(ROOT / "configs") if file.suffix in (".py", ".yml")]
        files = [*configs, ROOT / "model-index.yml"]
        mim = Path(self.build_lib, "mm_vitbackbones", ".mim")
        return {str(file): str(mim / file.relative_to(ROOT)) for file in sorted(files)}

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        outputs: list[str] = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else [*outputs, *self.configs().values()]

    def get_source_files(self) -> list[str]:
        """What a source distribution holds."""
        return [*super().get_source_files(), *(str(Path(file).relative_to(ROOT)) for file in self.configs())]


setup(cmdclass={"build_py": BuildWithConfigs})
