import argparse
import collections
import functools
import gzip
import hashlib
import io
import json
import os
import pathlib
import pickle
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS

from helpers.toys import SPEC, TOYS
from mm_vitbackbones.checkpoints import (
    CheckpointError,
    UnsafeCheckpointError,
    downloading,
    load_pretrained,
    read_checkpoint,
    reading,
)
from mm_vitbackbones.checkpoints.unwrapping import unwrap
from mm_vitbackbones.errors import DownloadError

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}


@pytest.fixture(params=["zip", "legacy"])
def save(request, tmp_path):
    def save(content, name="file.pth"):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=request.param == "zip")
        return tmp_path / name

    return save


class CfgNode(dict):
    """A config node as yacs makes it: a dict with attributes."""


class Settings:
    pass


@pytest.fixture
def vanished_module():
    """A module that is there while a file is written, and gone when it is read."""
    module = types.ModuleType("somebodys_project")
    for cls in (CfgNode, Settings):
        copy = type(cls.__name__, cls.__bases__, {"__module__": module.__name__})
        setattr(module, cls.__name__, copy)
    sys.modules[module.__name__] = module
    yield module
    sys.modules.pop(module.__name__, None)


def check_weights(content):
    assert content["model"].keys() == WEIGHTS.keys()
    assert all(torch.equal(content["model"][key], WEIGHTS[key]) for key in WEIGHTS)


def test_plain_weights_are_read(save):
    check_weights(read_checkpoint(save({"model": WEIGHTS, "epoch": 3})))


def test_other_contents_of_official_files_are_read_as_plain_containers(save, vanished_module):
    node = vanished_module.CfgNode(LR=0.1, NAMES=["a"])
    node.__dict__["__immutable__"] = True
    node["INNER"] = vanished_module.CfgNode(SIZE=(1, 2), TAGS={"x"})
    settings = vanished_module.Settings()
    settings.node = node
    content = {
        "args": argparse.Namespace(lr=0.1, output_dir="out", node=node),
        "config": node,
        "settings": settings,
        "class": vanished_module.Settings,
        "simple": types.SimpleNamespace(a=1),
        "path": pathlib.Path("a/b"),
        "counts": collections.defaultdict(list, a=[1]),
        "queue": collections.deque([1, 2]),
        "ordered": collections.OrderedDict(a=1),
        "scalar": np.float64(3.5),
        "array": np.arange(4.0),
        "frozen": frozenset({1}),
        "model": collections.OrderedDict(WEIGHTS),
    }
    path = save(content)
    del sys.modules[vanished_module.__name__]
    read = read_checkpoint(path)
    check_weights(read)
    assert vanished_module.__name__ not in sys.modules
    assert read["config"]["INNER"]["SIZE"] == (1, 2)
    assert type(read["config"]) is collections.OrderedDict
    assert vars(read["args"])["output_dir"] == "out"
    assert type(read["args"]) is not argparse.Namespace
    assert read["counts"] == {"a": [1]}
    assert read["queue"] == [1, 2]
    assert not isinstance(read["array"], np.ndarray)


def test_mmengine_log_buffers_are_read(save):
    from mmengine.logging import HistoryBuffer

    check_weights(read_checkpoint(save({"model": WEIGHTS, "message_hub": {"loss": HistoryBuffer([1.0], [1])}})))


# ---- files that want something to be run

RAN = []


def tripwire(*args, **kwargs):
    """What every payload calls. Nothing may."""
    RAN.append(args)
    return {}


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


class WithSetState:
    def __setstate__(self, state):
        RAN.append(state)


class WithNew:
    def __new__(cls, *args):
        if args:
            RAN.append(args)
        return super().__new__(cls)

    def __getnewargs__(self):
        return ("payload",)


class DictWithSetItem(dict):
    def __setitem__(self, key, value):
        RAN.append(key)


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path, monkeypatch):
    RAN.clear()
    monkeypatch.chdir(tmp_path)
    yield
    assert not RAN
    assert not (tmp_path / "ran").exists()


def payloads():
    yield "os.system", Call(os.system, "touch ran")
    yield "eval", Call(eval, "open('ran', 'w')")
    yield "exec", Call(exec, "open('ran', 'w')")
    yield "subprocess", Call(subprocess.Popen, ["touch", "ran"])
    yield "own function", Call(tripwire, 1)
    yield "import", Call(__import__, "antigravity")
    yield "torch.load", Call(torch.load, "other.pth")
    yield "open", Call(open, "ran", "w")
    yield "a class", Call(WithNew, 1)
    yield "partial", Call(functools.partial, tripwire)


def places(payload):
    yield {"model": WEIGHTS, "args": payload}
    yield payload
    yield {"model": WEIGHTS | {"a.weight": payload}}
    yield {"args": argparse.Namespace(deep=[{"x": (payload,)}]), "model": WEIGHTS}
    yield {"path": pathlib.Path("a"), "args": np.float64(1), "model": WEIGHTS, "z": payload}


@pytest.mark.parametrize("payload", [pytest.param(payload, id=name) for name, payload in payloads()])
def test_calls_are_refused(save, payload):
    for content in places(payload):
        path = save(content)
        with pytest.raises(UnsafeCheckpointError, match=r"file\.pth is refused") as caught:
            read_checkpoint(path)
        assert "weights_only=False" not in str(caught.value)


def test_the_refusal_names_the_function(save):
    with pytest.raises(UnsafeCheckpointError, match=r"builtins\.eval"):
        read_checkpoint(save({"args": Call(eval, "1")}))


def test_payloads_in_setstate_new_or_items_do_not_run(save):
    state = WithSetState()
    state.payload = 1
    content = {"model": WEIGHTS, "x": state, "y": WithNew(), "z": DictWithSetItem({"a": 1})}
    path = save(content)
    RAN.clear()
    read = read_checkpoint(path)
    check_weights(read)
    assert {type(read[key]) for key in "xyz"} == {collections.OrderedDict}


def test_calls_through_inert_values_are_refused(save):
    # getattr is answered with an inert value; what it "returns" is not to be called either
    check_weights(read_checkpoint(save({"args": Call(getattr, "a", "upper"), "model": WEIGHTS})))
    program = (  # getattr(object, 'name')('touch ran')
        b"\x80\x02c__builtin__\ngetattr\nc__builtin__\nobject\nX\x04\x00\x00\x00nameq\x00\x86R"
        b"X\x09\x00\x00\x00touch ran\x85R."
    )
    with pytest.raises(UnsafeCheckpointError):
        read_checkpoint(zip_with(program))


def zip_with(program):
    buffer = io.BytesIO()
    torch.save({}, buffer)
    path = pathlib.Path("by_hand.pth")
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, program if name.endswith("data.pkl") else source.read(name))
    return path


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cos\nsystem\nX\x09\x00\x00\x00touch ran\x85R.",
        b"\x80\x02cposix\nsystem\nX\x09\x00\x00\x00touch ran\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch ran\x85R.",  # STACK_GLOBAL
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x01\x31\x85R.",
        b"(S'touch ran'\nios\nsystem\n.",  # INST
        b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.",
        # BUILD on a stand-in itself, to give it other methods
        b"\x80\x02cargparse\nNamespace\n}X\x08\x00\x00\x00__call__c__builtin__\neval\nsb.",
        # BUILD that hangs a function on a dict's methods
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsc__builtin__\neval\nsbX\x01\x00\x00\x00x\x85R.",
        b"\x80\x02cmm_vitbackbones.checkpoints.reading\n_read_file\nX\x01\x00\x00\x00x\x85R.",
    ],
)
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_handmade_programs_are_refused(program, container):
    if container == "zip":
        path = zip_with(program)
    else:
        path = pathlib.Path("legacy.pth")
        head = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {}))
        path.write_bytes(head + program + pickle.dumps([], 2))
    with pytest.raises(CheckpointError, match=r"refused|damaged|not a PyTorch"):
        read_checkpoint(path)


def test_programs_around_the_object_are_refused():
    program = b"\x80\x02c__builtin__\neval\nX\x12\x00\x00\x00open('ran', 'w') #\x85R."
    pieces = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {}, {}, [])]
    for i in (1, 2, 4):
        path = pathlib.Path("legacy.pth")
        path.write_bytes(b"".join([*pieces[:i], program, *pieces[i + 1 :]]))
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


def test_methods_of_a_dict_from_a_file_are_not_called():
    # the state dict itself, with an 'items' of the file's own
    program = b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsc__builtin__\neval\nsb."
    with pytest.raises(CheckpointError, match="no state dict"):
        unwrap(read_checkpoint(zip_with(program)))


def test_globals_that_the_process_allows_are_neither_used_nor_lost(save):
    allowed = [(tripwire, f"{tripwire.__module__}.{tripwire.__qualname__}"), tripwire]
    torch.serialization.add_safe_globals(allowed)
    try:
        with pytest.raises(UnsafeCheckpointError, match="tripwire"):
            read_checkpoint(save({"args": Call(tripwire, 1), "model": WEIGHTS}))
        assert set(torch.serialization.get_safe_globals()) >= set(allowed)
        assert not any(isinstance(f, reading._StandInType) for f in torch.serialization.get_safe_globals())
    finally:
        torch.serialization.clear_safe_globals()


# ---- files that are no checkpoints


def write(name, data):
    path = pathlib.Path(name)
    path.write_bytes(data)
    return path


def npz():
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    return buffer.getvalue()


def zip_of(name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")  # without the time, which would be in the test's name
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><html>Sign in</html>", "HTML page"),
        (b"<html><body>404</body></html>", "HTML page"),
        (b"<!-- page -->\n<html>Sign in</html>", "HTML page"),
        (b"Repository not found", "is a text file and no checkpoint .'Repository not found'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "git lfs pull"),
        (b'{"weight_map": {}}', "JSON"),
        (gzip.compress(b"x", mtime=0), "gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x0a\x05model", "TensorFlow"),
        (npz(), "NumPy arrays"),
        (zip_of("photo.jpg"), r"zip archive but no PyTorch checkpoint.*photo\.jpg"),
        (zip_of("m/constants.pkl"), "TorchScript"),
        (pickle.dumps({"a": 1}, 2), "torch.save did not write"),
        (pickle.dumps({"a": 1}, 4), "torch.save did not write"),
        (b"\x80\x02}q\x00(X", "damaged or truncated"),
    ],
)
def test_other_files_are_refused_by_their_kind(data, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(write("file.pth", data))
    assert "file.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_truncated_file_is_refused(save, share):
    whole = save({"model": {"w": torch.randn(100, 100)}}).read_bytes()
    with pytest.raises(CheckpointError, match="truncated"):
        read_checkpoint(write("cut.pth", whole[: int(len(whole) * share)]))


def parts_of(path):
    with zipfile.ZipFile(path) as archive:
        return [part.filename for part in archive.infolist()]


def flip_a_byte_of(path, part):
    """Change the last byte of one part of a zip archive."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(part)
    whole = bytearray(path.read_bytes())
    names = slice(info.header_offset + 26, info.header_offset + 30)
    start = info.header_offset + 30 + sum(int.from_bytes(whole[names][i : i + 2], "little") for i in (0, 2))
    whole[start + info.file_size - 1] ^= 1
    path.write_bytes(whole)


def test_every_part_of_a_file_whose_bytes_changed_is_noticed(tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"model": WEIGHTS}, path)
    whole = path.read_bytes()
    parts = parts_of(path)
    assert any(part.endswith("/data/1") for part in parts)
    for part in parts:
        path.write_bytes(whole)
        read_checkpoint(path)
        flip_a_byte_of(path, part)
        with pytest.raises(CheckpointError, match=rf"file\.pth is damaged: its part {part} ") as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="torch always writes checksums")
def test_a_file_that_was_written_without_checksums_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": WEIGHTS}, tmp_path / "file.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    check_weights(read_checkpoint(tmp_path / "file.pth"))


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("form", ["net-{}.pth", "mit_b0_20220624-{}.pth", "a.b-{}.bin"])
@pytest.mark.parametrize("digits", [8, 12, 64])
def test_a_file_has_the_sha256_that_its_name_carries(save, tmp_path, form, digits):
    path = save({"model": WEIGHTS})
    name = form.format(sha256_of(path)[:digits])
    check_weights(read_checkpoint(path.rename(tmp_path / name)))
    wrong = "".join("ab"[digit == "a"] for digit in sha256_of(tmp_path / name))[:digits]
    name, old = form.format(wrong), name
    with pytest.raises(CheckpointError, match=rf"damaged or another file: {name} .*begins with {wrong}") as caught:
        read_checkpoint((tmp_path / old).rename(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "swin_tiny-20240101.pth",  # a date
        "net-00080000.pth",  # iterations
        "net-12345678.pth",
        "net_7e0fe6dd.pth",  # no dash
        "net-7e0fe6d.pth",  # too short
        "net-7e0fe6dd-best.pth",  # not at the end
        "net-deadbeefs.pth",
        "7e0fe6dd.pth",
        "net-d41d8cd98f00b204e9800998ecf8427e.pth",  # MD5
        "net-da39a3ee5e6b4b0d3255bfef95601890afd80709.pth",  # SHA-1, or a commit
        "net-550e8400-e29b-41d4-a716-4466554400ab.pth",  # a UUID
    ],
)
def test_other_digits_in_a_name_are_no_sha256(tmp_path, name):
    torch.save({"model": WEIGHTS}, tmp_path / name)
    check_weights(read_checkpoint(tmp_path / name))


def test_decimal_digits_behind_openmmlabs_date_are_a_sha256(tmp_path):
    torch.save({"model": WEIGHTS}, tmp_path / "pvt_20220607-12345678.pth")
    with pytest.raises(CheckpointError, match="its SHA-256 begins with 12345678"):
        read_checkpoint(tmp_path / "pvt_20220607-12345678.pth")


def test_a_published_name_carries_what_its_record_says(tmp_path):
    torch.save({"model": WEIGHTS}, tmp_path / "coat_mini_40667eec.pth")
    with pytest.raises(CheckpointError, match="its SHA-256 begins with 40667eec"):
        read_checkpoint(tmp_path / "coat_mini_40667eec.pth")


def test_a_sum_is_computed_once_and_again_for_a_file_that_changed(tmp_path, monkeypatch):
    torch.save({"model": WEIGHTS}, tmp_path / "net.pth")
    path = (tmp_path / "net.pth").rename(tmp_path / f"net-{sha256_of(tmp_path / 'net.pth')[:8]}.pth")
    computed = []
    monkeypatch.setattr(reading, "sha256", lambda path: computed.append(path) or sha256_of(path))
    for _ in range(3):
        read_checkpoint(path)
    assert len(computed) == 1
    torch.save({"model": WEIGHTS, "epoch": 1}, path)
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("pytorch_model-00001-of-00003.bin", "shard 1 of 3"),
        ("model-00002-of-00002.safetensors", "shard 2 of 2"),
        ("model-00010-of-00120.pth", "shard 10 of 120"),
    ],
)
def test_one_of_several_shards_says_so(tmp_path, name, which):
    torch.save(WEIGHTS, tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"{name} is {which} and holds a part.*make one file") as caught:
        read_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=rf"https://example\.org/{name} is {which}"):
        read_checkpoint(f"https://example.org/{name}")


def test_the_only_shard_is_the_whole_file(tmp_path):
    torch.save({"model": WEIGHTS}, tmp_path / "model-00001-of-00001.bin")
    check_weights(read_checkpoint(tmp_path / "model-00001-of-00001.bin"))


def test_the_index_of_shards_says_so(tmp_path):
    index = {"metadata": {"total_size": 1}, "weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}
    with pytest.raises(CheckpointError, match=r"index of weights in several shards.*make one file"):
        read_checkpoint(write("pytorch_model.bin.index.json", json.dumps(index).encode()))


NO_ADDRESS = [["a.pth"], ("a", "b"), 3, True, 1.5, b"a.pth", "", "a\0.pth", torch.zeros(1), pathlib.Path, {"a"}]


@pytest.mark.parametrize("value", NO_ADDRESS, ids=lambda value: repr(value)[:20].replace("\0", ""))
@pytest.mark.parametrize("load", [read_checkpoint, lambda value: load_pretrained(TOYS["pvt"](), value)])
def test_what_is_no_path_is_refused(value, load):
    with pytest.raises(CheckpointError, match=r"checkpoint is .*: give a path, a URL or the name") as caught:
        load(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"content is of type list of 2"),
        ([torch.zeros(2)], r"content is of type list of 1"),
        (torch.zeros(2), r"content is of type tensor"),
        (3, r"content is of type int"),
        ({}, r"content is of type dict of 0"),
        ({"epoch": 3, "state_dict": {}}, r"it holds epoch, state_dict"),
        ({"state_dict": [torch.zeros(2)]}, r"it holds state_dict"),
    ],
    ids=repr,
)
def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path, content, message):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=rf"file\.pth: holds no state dict \(.*{message}\)"):
        load_pretrained(TOYS["pvt"](), tmp_path / "file.pth")


def test_a_folder_a_name_too_long_and_a_locked_file_are_refused(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="is a folder: give the path of a checkpoint file"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"there is no checkpoint x+: File name too long"):
        read_checkpoint("x" * 5000 + ".pth")
    torch.save({}, tmp_path / "locked.pth")

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "open", denied)
    with pytest.raises(CheckpointError, match=r"locked\.pth cannot be opened: Permission denied"):
        read_checkpoint(tmp_path / "locked.pth")


def test_missing_file_is_refused_with_the_nearest_names(tmp_path):
    write("pvt_small.pth", b"x")
    with pytest.raises(CheckpointError, match=r"did you mean pvt_small\.pth"):
        read_checkpoint(tmp_path / "pvt_smal.pth")
    with pytest.raises(CheckpointError, match="folder does not exist"):
        read_checkpoint(tmp_path / "no" / "such" / "file.pth")
    with pytest.raises(CheckpointError, match=r"is a folder.*pvt_small\.pth"):
        read_checkpoint(tmp_path)


def test_safetensors_are_recognised_by_content(tmp_path):
    from safetensors.torch import save_file

    for name in ("a.safetensors", "a.bin"):
        save_file(WEIGHTS, tmp_path / name)
        assert torch.equal(read_checkpoint(tmp_path / name)["a.weight"], WEIGHTS["a.weight"])
    whole = (tmp_path / "a.bin").read_bytes()
    for cut in (b"", whole[:5], whole[:-4]):
        with pytest.raises(CheckpointError, match=r"empty|truncated"):
            read_checkpoint(write("cut.safetensors", cut))


def test_safetensors_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    path = write("a.safetensors", len(header).to_bytes(8, "little") + header + b"\x01")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(CheckpointError, match="pip install safetensors"):
        read_checkpoint(path)


# ---- downloads


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Serves ``tmp_path / 'served'`` in place of the internet, and keeps torch's cache in ``tmp_path``."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "served"
    folder.mkdir()
    calls = []

    def download(url, destination):
        calls.append(url)
        source = folder / url.rsplit("/", 1)[1]
        if not source.exists():
            raise DownloadError(f"cannot download {url} (HTTP Error 404: Not Found)")
        destination.write_bytes(source.read_bytes())

    monkeypatch.setattr(downloading, "download", download)
    return folder, calls


def cached(tmp_path):
    return [p.name for p in (tmp_path / "home").rglob("*") if p.is_file()]


def test_url_is_downloaded_once(served, tmp_path):
    folder, calls = served
    torch.save({"model": WEIGHTS}, folder / "net.pth")
    for _ in range(2):
        check_weights(read_checkpoint("https://example.org/a/net.pth"))
    assert len(calls) == 1
    check_weights(read_checkpoint("https://example.org/b/net.pth"))
    assert len(cached(tmp_path)) == 2  # one name at two addresses is two files


def test_a_failing_download_says_what_to_do(served, tmp_path):
    with pytest.raises(CheckpointError, match=r"https://example\.org/none\.pth.*404.*by hand") as caught:
        read_checkpoint("https://example.org/none.pth")
    assert not cached(tmp_path)
    place = pathlib.Path(str(caught.value).rpartition("put it at ")[2])
    place.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": WEIGHTS}, place)
    check_weights(read_checkpoint("https://example.org/none.pth"))  # the advice works


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        (dict(type="mm_vitbackbones.PVTv2", arch=SPEC), "backbone"),
        pytest.param(
            dict(type="mm_vitbackbones.SegFormerHead", in_channels=[8, 16, 20, 32], channels=16, num_classes=2),
            "decode_head",
            marks=pytest.mark.mmseg,
        ),
    ],
)
def test_without_a_connection_the_keys_of_a_config_are_named(served, kind, part):
    if part == "decode_head":
        pytest.importorskip("mmseg")
    given = dict(kind, init_cfg=dict(type="Pretrained", checkpoint="https://example.org/none.pth"))
    with pytest.raises(CheckpointError) as caught:
        MODELS.build(given).init_weights()
    assert f"--cfg-options model.{part}.init_cfg.checkpoint=FILE" in str(caught.value)
    assert f"--cfg-options model.{part}.init_cfg=None" in str(caught.value)


@pytest.mark.parametrize("data", [b"<html>Too many requests</html>", b""])
def test_a_download_that_is_no_checkpoint_is_not_kept(served, tmp_path, data):
    folder, _ = served
    (folder / "net.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"https://example\.org/net\.pth is .*by hand"):
        read_checkpoint("https://example.org/net.pth")
    assert not cached(tmp_path)


@pytest.mark.parametrize("right", [True, False])
def test_a_download_has_the_sha256_that_its_address_carries(served, tmp_path, right):
    folder, calls = served
    torch.save({"model": WEIGHTS}, folder / "net.pth")
    name = f"net-{sha256_of(folder / 'net.pth')[:8] if right else '0badc0de'}.pth"
    (folder / "net.pth").rename(folder / name)
    if right:
        for _ in range(2):
            check_weights(read_checkpoint(f"https://example.org/{name}"))
        assert len(calls) == 1
        # The copy in the cache can be read by its path, too.
        (copy,) = (tmp_path / "home").rglob("*.pth")
        check_weights(read_checkpoint(copy))
    else:
        with pytest.raises(CheckpointError, match=r"https://example\.org/net-0badc0de\.pth is damaged or another file"):
            read_checkpoint(f"https://example.org/{name}")
        assert not cached(tmp_path)


def test_a_published_download_is_checked_against_its_record(served, tmp_path):
    folder, _ = served
    torch.save({"model": WEIGHTS}, folder / "coat_mini_40667eec.pth")
    with pytest.raises(CheckpointError, match=r"coat_mini_40667eec\.pth is damaged or another file"):
        read_checkpoint("https://vcl.ucsd.edu/coat/pretrained/coat_mini_40667eec.pth")
    assert not cached(tmp_path)
