"""Files that ask for a crash, for memory or for time: each ends in one line, in a process with little of both."""

import collections
import io
import json
import os
import re
import resource
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.attacks import legacy, number, numbers, storage, tensor, text, zipped
from mm_vitbackbones import limits
from mm_vitbackbones.checkpoints import CheckpointError, UnsafeCheckpointError, read_checkpoint, reading
from mm_vitbackbones.errors import UserError

ROOM = 600 * limits.MIB
"""Address space that a reading process may have more than at its start."""


def in_child(work):
    """What ``work()`` returns in a fork with little memory and ten seconds; its last line, if it raises."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
        try:
            answer = ["read", str(work())]
        except BaseException as error:
            answer = [type(error).__name__, str(error)]
        os.write(write, json.dumps(answer).encode()[:60_000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    assert os.WIFEXITED(status), f"the process was ended by signal {os.WTERMSIG(status)}"
    return json.loads(answer)


def nested(opcode, count):
    return b"\x80\x02" + b")" + opcode * count + b"."


def doubled_key():
    return b"\x80\x02})" + b"q\x00h\x00\x86" * 40 + b"Ns."


def many_names():
    return b"\x80\x02" + b"".join(f"csome.module\nname{i}\n".encode() for i in range(2500)) + b"."


def hang(count=30_000):
    """Numbers that have the same hash, as keys."""
    return b"\x80\x02}(" + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(count)) + b"u."


def copied_sets():
    filled = b"](" + b"".join(b"J" + i.to_bytes(4, "little") for i in range(20_000)) + b"e\x85q\x01"
    return b"\x80\x02c__builtin__\nset\nq\x00" + filled + b"(" + b"h\x00h\x01R" * 20_000 + b"t."


def called(name, *arguments):
    return b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n(" + b"".join(arguments) + b"tR."


HUGE = 2**32
ATTACKS = {
    "300,000 nested tuples": (nested(b"\x85", 300_000), "containers within each other"),
    "20,000 nested lists": (b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".", "containers within each other"),
    "300,000 marks": (b"\x80\x02" + b"(" * 300_000 + b"t" * 300_000 + b".", "containers within each other"),
    "lists nested from outside": (
        b"\x80\x02(]q\x00" + b"]q\x01ah\x01" * 20_000 + b"th\x00.",
        "containers within each other",
    ),
    "a doubled list": (b"\x80\x02]" + b"q\x00](h\x00h\x00e" * 40 + b".", "objects, each as often as it is referred to"),
    "a doubled tuple as a key": (doubled_key(), "bytes of copies"),
    "thousands of classes": (many_names(), "different classes"),
    "equal hashes": (hang(), "keys that are neither text nor numbers"),
    "sets of a long list": (copied_sets(), "bytes of copies"),
    "bytearray of a number": (called("__builtin__ bytearray", number(HUGE)), "bytes of copies"),
    "empty tensor class": (called("torch FloatTensor", number(HUGE)), "call of torch.FloatTensor"),
    "empty storage": (called("torch.storage UntypedStorage", number(HUGE)), "call of torch.storage.UntypedStorage"),
    "a text that is longer than the file": (b"\x80\x02X\xff\xff\xff\xff.", "asks for 4,294,967,295 bytes"),
    "a slow encoding": (called("_codecs encode", text("a" * 9000), text("punycode")), "encodes something"),
    "a tensor larger than its storage": (
        b"\x80\x02" + tensor(4, 0, numbers(2**30), numbers(1)) + b".",
        "reaches to the value 1,073,741,823 of a storage that has 4",
    ),
    "a tensor that begins after its storage": (
        b"\x80\x02" + tensor(4, 100, numbers(1), numbers(1)) + b".",
        "reaches to the value 100",
    ),
    "a negative stride": (b"\x80\x02" + tensor(4, 3, numbers(2), numbers(-3)) + b".", "negative size"),
    "one value as a huge tensor": (
        b"\x80\x02" + tensor(4, 0, numbers(2**31), numbers(0)) + b".",
        "8,589,934,592 bytes of tensors",
    ),
    "a huge tensor through its type": (
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nctorch\nTensor\n("
        + storage() + number(0) + numbers(2**30) + numbers(1) + b"\x89NtNtR.",
        "reaches to the value",
    ),
    "a huge array through a tensor's type": (
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(c__builtin__\nbytearray\nctorch\nTensor\n"
        + number(HUGE) + b"\x85NtR.",
        "asks for a tensor made by 'builtins.bytearray'",
    ),
    "a storage larger than its part": (
        b"\x80\x02" + tensor(2**30, 0, numbers(2**30), numbers(1)) + b".",
        "said to have 4,294,967,296 bytes",
    ),
    "a tensor that is set again": (
        b"\x80\x02" + tensor(4, 0, numbers(4), numbers(1)) + b"(" + storage() + number(0) + numbers(9) + numbers(1)
        + b"tb.",
        "sets the state of something",
    ),
    "a length in a function's place": (b"\x80\x02K\x01)R.", "call of something that is no name"),
    "a tensor in a function's place": (
        b"\x80\x02" + tensor(4, 0, numbers(4), numbers(1)) + b")R.",
        "call of something that is no name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_pickle_that_asks_for_too_much_ends_in_one_line(tmp_path, name, form):
    program, message = ATTACKS[name]
    if form == "legacy":
        program = program.replace(b"tQ", b"NtQ")  # a storage has a view there, or None
    path = (zipped if form == "zip" else legacy)(tmp_path / "file.pth", program)
    if form == "legacy" and b"storage" in program:
        with path.open("ab") as file:
            file.write(bytes(64))
    kind, line = in_child(lambda: read_checkpoint(path))
    assert kind in ("CheckpointError", "UnsafeCheckpointError")
    assert "\n" not in line
    assert str(path) in line
    assert re.search(message, line), line


def test_the_attacks_that_pytorch_itself_meets(tmp_path):
    """These three are the reason for the scan; without it they end the process or take gigabytes."""
    for name in ("a storage larger than its part", "bytearray of a number", "a tensor larger than its storage"):
        path = zipped(tmp_path / "file.pth", ATTACKS[name][0])
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


# ---- what is right


def test_a_checkpoint_that_holds_itself_is_read(tmp_path):
    content = {"model": {"a": torch.ones(2)}}
    content["self"] = content["model"]["list"] = [content]
    torch.save(content, tmp_path / "file.pth")
    read = read_checkpoint(tmp_path / "file.pth")
    assert read["self"][0] is read


def real_contents():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3, 2))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3, 2)
    optimizer.step()
    weight = torch.arange(24.0).reshape(4, 6)
    yield "views", {"whole": weight, "part": weight[1:, ::2], "transposed": weight.t(), "one": weight[0, 0]}
    yield "expanded", {"mask": torch.zeros(1).expand(64, 64), "ids": torch.arange(3).expand(1, -1)}
    yield "optimizer", optimizer.state_dict()
    yield "parameters", torch.nn.Linear(2, 2)._parameters
    yield "empty tensors", {"a": torch.zeros(0), "b": torch.zeros(3, 0, 2)}
    yield (
        "types",
        {str(t): torch.ones(2).to(t) for t in (torch.half, torch.bfloat16, torch.long, torch.bool, torch.cfloat)},
    )
    yield "new types", {"a": torch.ones(2, dtype=torch.uint16), "b": torch.ones(2).to(torch.float8_e4m3fn)}
    yield "bytes", {"a": b"bytes", "b": bytearray(b"array"), "size": torch.Size([1, 2]), "device": torch.device("cpu")}
    yield "keys", {1: "a", (1, "b"): {2.5}, None: set("ab"), 2**70: collections.Counter(a=1), False: 1j}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are deprecated
        yield "quantized", {"a": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)}
    yield "sparse", {"a": torch.eye(3).to_sparse()}
    yield "without data", {"a": torch.ones(3, device="meta")}


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_what_torch_saves_is_read(tmp_path, form):
    for name, content in real_contents():
        if (name, form) == ("new types", "legacy"):
            continue  # PyTorch itself cannot read these
        path = tmp_path / f"{name}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
        assert_same(read_checkpoint(path), content)


def assert_same(read, content):
    if isinstance(content, dict):
        assert read.keys() == content.keys()
        for key in content:
            assert_same(read[key], content[key])
    elif isinstance(content, torch.Tensor) and content.device.type == "meta":
        assert read.shape == content.shape
    elif isinstance(content, torch.Tensor):
        assert read.dtype == content.dtype
        dense = [t.to_dense() if t.is_sparse else t.dequantize() if t.is_quantized else t for t in (read, content)]
        assert torch.equal(*(t.float() if t.dtype == torch.float8_e4m3fn else t for t in dense))
    elif isinstance(content, (list, tuple)):
        assert all(map(assert_same, read, content)) or len(read) == len(content)
    else:
        assert read == content


def test_counts_of_a_large_training_are_far_below_the_limits(tmp_path):
    """2,000 parameters with the averages of AdamW and of EMA, with histories: a tenth of each limit at most."""
    names = [f"backbone.layers.{i}.weight" for i in range(2000)]
    weight = torch.zeros(1)
    state = {i: {"step": weight.clone(), "exp_avg": weight.clone(), "exp_avg_sq": weight.clone()} for i in range(2000)}
    content = {
        "state_dict": {name: weight.clone() for name in names},
        "ema_state_dict": {name: weight.clone() for name in names},
        "optimizer": {"state": state, "param_groups": [{"lr": 1.0, "params": [i]} for i in range(2000)]},
        "message_hub": {"log_scalars": {f"loss_{i}": [1.0] * 1000 for i in range(20)}},
    }
    torch.save(content, tmp_path / "file.pth")
    with (tmp_path / "file.pth").open("rb") as file:
        scan = reading._scanned(file, zipped=True)
    assert 0 < scan._opcodes < limits.OPCODES.most / 10
    assert 0 < scan._calls < limits.CALLS.most / 10
    assert scan._copied < limits.COPIES.most / 10


# ---- archives, and headers


def test_an_archive_that_inflates_far_is_refused(tmp_path):
    parts = {"0": bytes(600 * limits.MIB)}
    path = zipped(tmp_path / "file.pth", b"\x80\x02N.", parts, compression=zipfile.ZIP_DEFLATED, compresslevel=1)
    kind, line = in_child(lambda: read_checkpoint(path))
    assert kind == "CheckpointError"
    assert re.search(r"asks for 629,14\d,\d{3} bytes when its parts are inflated.*MM_VITBACKBONES_LIMITS=10", line)


def test_a_compressed_checkpoint_is_read(tmp_path):
    program = b"\x80\x02" + tensor(4, 0, numbers(4), numbers(1)) + b"."
    assert read_checkpoint(zipped(tmp_path / "a.pth", program, compression=zipfile.ZIP_DEFLATED)).shape == (4,)


def test_a_part_that_says_a_wrong_size_is_refused(tmp_path):
    """The size in the table of contents is small, and what is inflated is large."""
    path = zipped(tmp_path / "a.pth", b"\x80\x02N.", {"0": bytes(2**20)}, compression=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path, "a") as archive:
        next(part for part in archive.infolist() if part.file_size == 2**20).file_size = 16
        archive.writestr("other", b"")
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_parts_that_repeat_or_overlap_are_refused(tmp_path):
    path = zipped(tmp_path / "a.pth", b"\x80\x02N.")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(next(name for name in archive.namelist() if name.endswith("data.pkl")), b"\x80\x02K\x01.")
    with pytest.raises(CheckpointError, match=r"it has the part \S+/data\.pkl twice"):
        read_checkpoint(path)
    path = zipped(tmp_path / "b.pth", b"\x80\x02N.")
    with zipfile.ZipFile(path, "a") as archive:
        first, second = archive.infolist()[:2]
        second.header_offset = first.header_offset
        archive.writestr("other", b"")
    with pytest.raises(CheckpointError, match=r"overlap"):
        read_checkpoint(path)


def test_a_tar_archive_is_never_unpacked(tmp_path):
    for name in ("storages", "\x80\x02l"):  # the second begins like a pickle
        with tarfile.open(tmp_path / "file.pth", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        with pytest.raises(CheckpointError, match="is a tar archive"):
            read_checkpoint(tmp_path / "file.pth")


def safetensors_file(path, header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a":' * 100_000, "damaged"),
        (b'{"a":' + b"[" * 100_000, "damaged"),
        ({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 4]}}, "damaged"),
        ({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, "damaged"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, "damaged"),
        ({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, "damaged"),
        ({"a": {"dtype": "F32", "shape": [0, 2**40], "data_offsets": [0, 0]}}, None),
        (b'{"' + b" " * (33 * limits.MIB) + b'":1}', "34,603,014 bytes of header, and the limit is 33,554,432"),
    ],
    ids=["objects", "lists", "overflow", "large", "backwards", "type", "empty", "header"],
)
def test_a_safetensors_header_that_is_absurd_ends_in_one_line(tmp_path, header, message):
    path = safetensors_file(tmp_path / "file.safetensors", header, bytes(4))
    kind, line = in_child(lambda: read_checkpoint(path))
    assert kind in ("CheckpointError", "read")
    assert "\n" not in line
    assert message is None or re.search(message, line), line


# ---- switches


def test_the_switch_raises_the_limits(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.pth", called("__builtin__ bytearray", number(300 * limits.MIB)))
    with pytest.raises(CheckpointError, match=r"314,57\d,\d{3} bytes of copies.*MM_VITBACKBONES_LIMITS=10"):
        read_checkpoint(path)
    monkeypatch.setenv(limits.SWITCH, "2")
    assert len(read_checkpoint(path)) == 300 * limits.MIB
    for wrong in ("many", "0", "nan", "-1"):
        monkeypatch.setenv(limits.SWITCH, wrong)
        with pytest.raises(UserError, match=r"MM_VITBACKBONES_LIMITS is .*: give a factor"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("release", "read"), [("2.5.1+cu124", False), ("2.1.0", False), ("2.6.0", True), ("3.0.0", True)]
)
def test_a_torch_whose_unpickler_is_unsafe_reads_no_pickle(tmp_path, monkeypatch, release, read):
    from safetensors.torch import save_file

    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    monkeypatch.setattr(torch, "__version__", release)
    assert read_checkpoint(tmp_path / "a.safetensors")["a"] == 1
    if read:
        assert read_checkpoint(tmp_path / "a.pth")["a"] == 1
    else:
        with pytest.raises(
            CheckpointError, match=r"a\.pth is a pickle, which torch 2\.\S+ cannot read safely"
        ) as caught:
            read_checkpoint(tmp_path / "a.pth")
        assert "install torch 2.6 or newer" in str(caught.value)


def test_a_file_that_is_resumed_is_followed_as_well(tmp_path):
    """MMEngine reads it with classes that it allows; an array is made empty first, and then filled."""
    content = {"state_dict": {}, "message_hub": {"loss": np.arange(3.0)}}
    torch.save(content, tmp_path / "good.pth")
    reading.check_pickle(tmp_path / "good.pth")
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + number(HUGE) + b"\x85" + text("b") + b"tR."
    with pytest.raises(UnsafeCheckpointError, match="array that is not empty"):
        reading.check_pickle(zipped(tmp_path / "bad.pth", b"\x80\x02" + empty))
