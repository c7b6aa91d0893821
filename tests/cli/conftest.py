from pathlib import Path

import pytest

from helpers.runs import write_config
from helpers.weights import random_checkpoint


@pytest.fixture(scope="session")
def detector(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The config of a tiny detector on ``mini``, and a checkpoint with random weights."""
    path = write_config("tiny_detector", data, tmp_path_factory.mktemp("detector"))
    return path, random_checkpoint(path)


@pytest.fixture(scope="session")
def segmentor(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same of a tiny segmentor."""
    path = write_config("tiny_segmentor", data, tmp_path_factory.mktemp("segmentor"))
    return path, random_checkpoint(path)
