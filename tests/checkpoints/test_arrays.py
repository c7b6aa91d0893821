"""Pickles of NumPy arrays: what Python writes of them is read, and nothing in them is ever called."""

from __future__ import annotations

import os
import pickle
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mm_vitbackbones.checkpoints import CheckpointError, UnsafeCheckpointError, read_checkpoint
from mm_vitbackbones.checkpoints.reading import check_pickle
from mm_vitbackbones.limits import MIB, VALUES


def write(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


ARRAYS = {
    **{
        kind: np.arange(6).reshape(2, 3).astype(kind) for kind in ("f2", "f4", "f8", "i8", "i4", "i2", "i1", "u1", "c8")
    },
    "bool": np.array([True, False]),
    "big endian": np.arange(4, dtype=">f4"),
    "big endian, complex": np.array([1 + 2j, 3], dtype=">c16"),
    "by columns": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "a view": np.arange(10)[::2],
    "no dimension": np.array(2.5, dtype="f4"),
    "empty": np.zeros((0, 3), dtype="f4"),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_every_protocol_are_the_tensors_of_their_values(tmp_path: Path, protocol: int) -> None:
    content = {
        "model": OrderedDict(ARRAYS),
        "__author__": "somebody",
        "iteration": np.int64(7),
        "lr": np.float32(0.5),
        "more": [1, -2.5, None, True, (), (1,), (1, 2), 2**40, 70000, "ä" * 300, {"a": b"x" * 300}, list(range(2000))],
    }
    found = read_checkpoint(write(tmp_path / "model_final.pkl", content, protocol))
    for name, array in ARRAYS.items():
        wanted = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
        assert found["model"][name].dtype == wanted.dtype, name
        assert found["model"][name].is_contiguous()
        assert torch.equal(found["model"][name], wanted), name
    assert {key: found[key] for key in found if key != "model"} == {
        key: content[key] for key in content if key != "model"
    }


def test_text_of_python_2_are_names_and_values(tmp_path: Path) -> None:
    kind = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    program = b"\x80\x02}(U\x04conv" + made + b"(K\x01K\x01\x85" + kind + b"\x89U\x04\x00\x00\x80?tbu."
    assert read_checkpoint(write(tmp_path / "a.pkl", program)) == {"conv": torch.ones(1)}


class Command:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


class Filled(dict):
    """A class of somebody's own."""


@pytest.mark.parametrize(
    "content",
    [
        {"a": np.ones(1), "b": Command()},
        {"a": np.ones(1), "b": Filled()},
        {"a": np.ones(1), "b": {1, 2}},
        {"a": np.ones(1), "b": Path("x")},
        {"a": np.ones(1), (1, 2): 3},
        {"a": torch.ones(1)},
    ],
    ids=["command", "class", "set", "path", "key", "tensor"],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_is_no_array_and_no_plain_data_is_refused_and_never_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "a.pkl", content, protocol)
    with pytest.raises(UnsafeCheckpointError, match=r"a\.pkl is refused") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": np.array(["text"])}, "NumPy's type 'U4', which PyTorch lacks"),
        ({"a": np.array([{}], dtype=object)}, "not made of numbers|type 'O8'"),
        ({"a": np.zeros(2, dtype="u2")}, "NumPy's type 'u2', which PyTorch lacks"),
        ({"a": {"b": 1}}, "holds no arrays of NumPy"),
        ([np.ones(1)], "holds no arrays of NumPy"),
    ],
)
def test_what_holds_no_weights_ends_in_one_line(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(write(tmp_path / "a.pkl", content))


class Shared:
    """An array that refers to bytes which other arrays have, too."""

    values = bytes(MIB)

    def __reduce__(self) -> Any:
        from_buffer = np.zeros(1).__reduce_ex__(5)[0]
        return from_buffer, (self.values, np.dtype("u1"), (MIB,), "C")


def test_many_arrays_of_the_same_bytes_do_not_take_more_than_the_limit(tmp_path: Path) -> None:
    few = read_checkpoint(write(tmp_path / "few.pkl", {"a": Shared(), "b": Shared()}))
    assert few["b"].shape == (MIB,)
    path = write(tmp_path / "many.pkl", {"model": {str(i): Shared() for i in range(300)}})
    with pytest.raises(
        CheckpointError, match=rf"bytes of tensors.*limit is {VALUES.value + 2 * path.stat().st_size:,}"
    ):
        read_checkpoint(path)


def test_a_deep_file_and_one_without_an_end_are_no_crash(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no arrays"):
        read_checkpoint(write(tmp_path / "deep.pkl", b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b"."))
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        read_checkpoint(write(tmp_path / "endless.pkl", b"\x80\x04" + b"\x8e" + b"\xff" * 8 + b"x"))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_damaged_files_end_in_one_line(tmp_path: Path, protocol: int) -> None:
    whole = pickle.dumps({"model": {"a": np.ones((2, 3), dtype="f4"), "b": np.zeros(2)}, "iteration": 3}, protocol)
    draw = random.Random(protocol)
    errors = []
    for turn in range(400):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(2, len(data))] = draw.randrange(256)
        if turn % 4 == 0:
            del data[draw.randrange(2, len(data)) :]
        try:
            read_checkpoint(write(tmp_path / "a.pkl", bytes(data)))
        except CheckpointError as error:
            errors.append(str(error))
    assert len(errors) > 200
    assert not any("\n" in error for error in errors)


def test_a_training_is_not_resumed_from_a_pickle_of_arrays(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.pkl is a pickle that torch\.save did not write: start .* load_from"):
        check_pickle(write(tmp_path / "a.pkl", {"model": {"a": np.ones(1)}}))
