import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope

from helpers.formatting import format_once
from helpers.runs import log_to_stdout

# Many small operators: one thread is as fast as two, and leaves the other cores to the other processes of a parallel
# run. The programs that tests start inherit the variable.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without a card, Triton's interpreter runs the kernels. Triton asks for it when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

format_once()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Modules and tests stay to the end: the searches for garbage, thousands in a run, leave them out."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests fill the memory or all cores: in a parallel run, one process takes them one by one."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.xdist_group("slow"))


@pytest.fixture(autouse=True)
def default_scope() -> Iterator[None]:
    """Each test begins without a default scope, whatever tests and fixtures before it have made one."""
    DefaultScope._instance_dict.clear()
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(autouse=True)
def open_streams() -> None:
    """Those of the loggers. A test with a stdout of its own calls the same again."""
    log_to_stdout()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke split of ``mini``: 16 scenes with boxes, masks and label maps."""
    from mm_vitbackbones.data import mini

    root = tmp_path_factory.mktemp("data") / "mini"
    mini.prepare(root, ["smoke"])
    return root


@pytest.fixture(scope="session")
def detector(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The config of a tiny detector on ``mini``, and a checkpoint with its random weights."""
    return _tiny("tiny_detector", data, tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="session")
def segmentor(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same of a tiny segmentor."""
    return _tiny("tiny_segmentor", data, tmp_path_factory.mktemp("segmentor"))


def _tiny(name: str, data: Path, folder: Path) -> tuple[Path, Path]:
    from helpers.runs import write_config
    from helpers.weights import random_checkpoint

    path = write_config(name, data, folder)
    return path, random_checkpoint(path)
