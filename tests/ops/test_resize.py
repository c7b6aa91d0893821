"""Grids of other sizes in graphs, which serve all of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from mm_vitbackbones.ops.resize import pooled_to


@pytest.fixture(autouse=True)
def no_graphs() -> None:
    torch._dynamo.reset()


def test_one_graph_pools_grids_of_all_sizes_as_pytorch_does() -> None:
    counter = CompileCounter()
    pool = torch.compile(lambda grid: pooled_to(grid, 7), backend=counter, fullgraph=True, dynamic=True)
    for height, width in ((8, 9), (3, 11), (20, 13), (7, 14), (50, 34)):
        grid = torch.randn(2, height, width, 5, dtype=torch.float64)
        expected = F.adaptive_avg_pool2d(grid.permute(0, 3, 1, 2), 7).permute(0, 2, 3, 1)
        torch.testing.assert_close(pool(grid), expected)
        torch.testing.assert_close(pooled_to(grid, 7), expected)
    assert counter.frame_count == 1
