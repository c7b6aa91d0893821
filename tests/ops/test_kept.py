"""Constants that are kept for the latest sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mm_vitbackbones.ops import kept
from mm_vitbackbones.ops.kept import Kept

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def ones(count: int, device: torch.device) -> Tensor:
    """On the CPU whatever the device, so that no card is needed."""
    return torch.ones(count)


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """A context in which a CUDA graph is captured, on a stream of its own."""
    monkeypatch.setattr(kept, "is_capturing", lambda: False)
    monkeypatch.setattr(kept, "stream_of", lambda index: 1)

    @contextmanager
    def capture() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(kept, "is_capturing", lambda: True)
            patch.setattr(kept, "stream_of", lambda index: 2)
            yield

    return capture


def test_a_constant_is_made_once_and_the_oldest_is_forgotten() -> None:
    constants = Kept(ones, count=2)
    one, two = constants(1, CPU), constants(2, CPU)
    assert constants(1, CPU) is one
    constants(3, CPU)
    assert constants(2, CPU) is two
    assert constants(1, CPU) is not one
    assert len(constants.latest) == 2


def test_a_constant_of_inference_serves_training() -> None:
    constants, factor = Kept(ones), torch.randn(3, requires_grad=True)
    with torch.inference_mode():
        constants(3, CPU)
    (factor * constants(3, CPU)).sum().backward()
    assert factor.grad is not None


def test_what_a_cuda_graph_has_taken_is_kept_for_good(capture: Callable[[], AbstractContextManager[None]]) -> None:
    constants = Kept(ones, count=2)
    one = constants(1, CUDA)
    with capture():
        assert constants(1, CUDA) is one
    for count in range(2, 9):
        constants(count, CUDA)
    assert not any(1 in key[1:] for key in constants.latest)
    with capture():
        assert constants(1, CUDA) is one
    assert constants(1, CUDA) is one


def test_what_is_made_while_a_cuda_graph_is_captured_is_not_kept(
    capture: Callable[[], AbstractContextManager[None]],
) -> None:
    constants = Kept(ones)
    with capture():
        first = constants(1, CUDA)
        assert constants(1, CUDA) is not first
        assert constants(1, CPU) is constants(1, CPU)
    assert constants(1, CUDA) is not first
    assert not constants.of_graphs


def test_each_stream_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    constants, found = Kept(ones), {}
    monkeypatch.setattr(kept, "is_capturing", lambda: False)
    for stream in (1, 2):
        monkeypatch.setattr(kept, "stream_of", lambda index, stream=stream: stream)
        found[stream] = constants(3, CUDA), constants(3, CPU)
        assert constants(3, CUDA) is found[stream][0]
    assert found[1][0] is not found[2][0]
    assert found[1][1] is found[2][1]


def test_fake_tensors_are_neither_kept_nor_mixed_with_real_ones() -> None:
    constants = Kept(ones)
    kept_one = constants(1, CPU)
    with FakeTensorMode():
        assert isinstance(constants(1, CPU) + constants(2, CPU), FakeTensor)
    assert constants(1, CPU) is kept_one
    assert type(constants(2, CPU)) is Tensor
    with FlopCounterMode(display=False):  # another mode
        assert constants(1, CPU) is kept_one
