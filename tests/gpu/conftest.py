from collections.abc import Iterator

import pytest

from mm_vitbackbones.ops.kernels import registration


@pytest.fixture(autouse=True)
def kernels_on_any_card() -> Iterator[None]:
    """By default they run on the cards alone where they were measured."""
    with registration.forced(True):
        yield
