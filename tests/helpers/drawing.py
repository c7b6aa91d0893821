"""What the tests of drawings need of a data set and of its samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any


class Sample(SimpleNamespace):
    """A data sample of mmdet or mmseg."""

    def __contains__(self, name: str) -> bool:
        return name in vars(self)


class Images:
    """A data set of images, which one step loads."""

    def __init__(self, paths: Sequence[str], load: Callable[[Any], Any], metainfo: Mapping[str, Any]) -> None:
        self.paths, self.metainfo = paths, metainfo
        self.pipeline = SimpleNamespace(transforms=[load])

    def __len__(self) -> int:
        return len(self.paths)

    def get_data_info(self, index: int) -> dict[str, Any]:
        return {"img_path": self.paths[index]}
