from pathlib import Path

import pytest
import torch

# Many small operators: one thread is as fast as two, and does not suffer from what else the machine does.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke split of ``mini``: 16 scenes with boxes, masks and label maps."""
    from mm_vitbackbones.data import mini

    root = tmp_path_factory.mktemp("data") / "mini"
    mini.prepare(root, ["smoke"])
    return root
