"""Large images are looked at and drawn on in parts: no whole copy of them in numbers of eight bytes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mm_vitbackbones.data import image_parts
from mm_vitbackbones.data.image_parts import parts, rows
from mm_vitbackbones.data.statistics import Statistics
from mm_vitbackbones.data.values import strange_values
from mm_vitbackbones.engine.drawing import displayable, draw_labels, draw_masks

SIDE = 400


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_parts, "MOST", 2**12)


def memory_of(function: Callable[[], Any]) -> float:
    """Bytes that are held at most, by those of an image (SIDE, SIDE, 3) of 8 bits."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1] / (3 * SIDE**2)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [(7, 5), (1, 1), (9000, 3, 2), (2, 20_000), (0, 4)])
def test_parts_are_the_image(shape: tuple[int, ...]) -> None:
    image = np.arange(np.prod(shape)).reshape(shape)
    assert np.array_equal(np.concatenate([*parts(image), image[:0]]), image)
    assert all(part.size <= max(2**12, image[:1].size) for part in parts(image))
    assert len([*rows(image)]) == len([*parts(image)])


def test_statistics_of_parts_are_those_of_the_whole() -> None:
    image = np.random.default_rng(0).normal(5, 2, (SIDE, 40, 3))
    image[3, 4] = np.nan
    found = Statistics()
    found.add(image)
    found.add(image[:10])
    every = np.concatenate([image.reshape(-1, 3), image[:10].reshape(-1, 3)])
    np.testing.assert_allclose(found.mean, np.nanmean(every, 0))
    np.testing.assert_allclose(found.std, np.nanstd(every, 0))
    assert found.left_out == 6


def test_large_images_take_no_many_times_their_size() -> None:
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    labels, mask = np.zeros((SIDE, SIDE), np.uint8), np.ones((SIDE, SIDE), bool)
    assert memory_of(lambda: Statistics().add(image)) < 0.5
    assert memory_of(lambda: displayable(image.view(np.int8))) < 1.5
    assert memory_of(lambda: draw_masks(image, [mask], np.zeros(1, int), None)) < 2
    assert memory_of(lambda: draw_labels(image, labels, None, None)) < 6


def test_images_are_not_kept_until_all_are_seen() -> None:
    def images() -> Iterator[np.ndarray]:
        for value in range(6):
            yield np.full((SIDE, SIDE, 3), 100 + value, np.uint8)

    assert memory_of(lambda: strange_values(images(), [100], [50])) < 2.5
