"""The graphs that PyTorch's compiler makes of operators, without code."""

from __future__ import annotations

from typing import Any

import pytest
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from mm_vitbackbones.ops import context

needs_graphs_that_run = pytest.mark.skipif(not context.KEEPS_GRAPHS_WHOLE, reason="this PyTorch splits our graphs")


def noting(graphs: list[list[Any]]) -> Any:
    """A backend of ``torch.compile`` that runs graphs as they are, and adds the nodes of each to a list: those of a
    forward pass, then those of its backward pass."""

    def compiler(graph: Any, _: Any) -> Any:
        graphs.append([*graph.graph.nodes])
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=compiler, bw_compiler=compiler, inference_compiler=compiler)
