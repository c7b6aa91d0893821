"""Checkpoints by hand: programs for the unpickler, in the forms of file that PyTorch reads."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

MAGIC = 0x1950A86A20F9469CFC6C


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(numel: int = 4, key: str = "0", kind: str = "FloatStorage", view: bytes = b"") -> bytes:
    parts = text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(numel)
    return b"(" + parts + view + b"tQ"


def tensor(numel: int, offset: int, size: bytes, stride: bytes, legacy: bool = False, **kind: str) -> bytes:
    """A call of ``_rebuild_tensor_v2``."""
    arguments = storage(numel, view=b"N" * legacy, **kind) + number(offset) + size + stride
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"\x89ccollections\nOrderedDict\n)RtR"


def zipped(
    path: Path, program: bytes, parts: Mapping[str, bytes] | None = None, whole: bytes = b"", **options: int
) -> Path:
    """A zip archive as ``torch.save`` makes it, with another pickle.

    Args:
        parts: other content of parts, by the last part of their names.
        whole: the archive; by default one with a storage of 16 bytes, "0".
    """
    if not whole:
        buffer = io.BytesIO()
        torch.save({"a": torch.zeros(4)}, buffer)
        whole = buffer.getvalue()
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(path, "w", **options) as target:
        for name in source.namelist():
            part = program if name.endswith("data.pkl") else source.read(name)
            target.writestr(name, (parts or {}).get(name.rpartition("/")[2], part))
    return path


def legacy(path: Path, program: bytes, rest: bytes = pickle.dumps([], 2)) -> Path:
    """A file as ``torch.save`` made it before PyTorch 1.6."""
    head = b"".join(pickle.dumps(x, 2) for x in (MAGIC, 1001, {"little_endian": True}))
    path.write_bytes(head + program + rest)
    return path
