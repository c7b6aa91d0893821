"""Reading checkpoint files without ever running what is in them.

A ``.pth`` file is a pickle: a program that may name any function and have it called. It is read by PyTorch's restricted
unpickler (``weights_only=True``), which knows tensors and plain data. Official files also hold other objects, such
as an ``argparse.Namespace`` or a config node, which that unpickler refuses. So the names that a file uses are listed
first, without importing anything, and each is replaced by a stand-in of ours: an object of an unknown class becomes a
plain dict, and a call becomes an error. Pickles of NumPy arrays, which ``torch.save`` did not write, have a reader of
their own (see ``arrays``).
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import logging
import mmap
import os
import pickle
import re
import tarfile
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
from mmengine.logging import print_log

from mm_vitbackbones import limits
from mm_vitbackbones.checkpoints import addresses, arrays, downloading, published, scanning
from mm_vitbackbones.checkpoints.record import file_name_of
from mm_vitbackbones.checkpoints.scanning import Scan
from mm_vitbackbones.errors import CheckpointError, DownloadError, UnsafeCheckpointError, UserError, printable, shorten
from mm_vitbackbones.files import sha256

SAFE_TORCH = (2, 6)
"""The first release whose restricted unpickler runs no code of a file."""

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # what torch.save wrote first before PyTorch 1.6
_MAGIC_BYTES = _MAGIC_NUMBER.to_bytes(10, "little")
_LOCAL_HEADER = 30  # bytes before each part of a zip archive, at least
_CONVERT = "If you trust its source, load it once where it was made and save model.state_dict() alone."
_JOIN = (
    "make one file of all shards, for example by transformers' "
    "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER, max_shard_size='1TB')"
)


def read_checkpoint(checkpoint: str | os.PathLike[str]) -> Any:
    """What is in a checkpoint: a path, an https URL, or an address that MMEngine knows (``open-mmlab://...``,
    ``torchvision://...``, ``s3://...``).

    Tensors are put on the CPU. What is neither a tensor nor plain data (numbers, strings, lists, dicts) is replaced
    by an object without code.

    Raises:
        UnsafeCheckpointError: if the file asks for a function to be called.
        CheckpointError: if it is missing, damaged, or no checkpoint; if it cannot be fetched.
    """
    published.check_is_address(checkpoint)
    name = os.fspath(checkpoint)
    if "://" in name and (load := addresses.loader_of_user(name)):
        return load(name, "cpu")
    with local_copy(name) as (path, source):
        return _read_file(path, source)


@contextlib.contextmanager
def local_copy(checkpoint: str) -> Iterator[tuple[Path, str]]:
    """The file of a path or an address, on this machine, and its name at its source.

    Raises:
        CheckpointError: it cannot be fetched.
    """
    name = addresses.resolved(checkpoint)
    if "://" not in name:
        path = Path(name).expanduser()
        yield path, path.name
        return
    _check_is_whole(name)
    source = file_name_of(name)
    if not addresses.STORAGE.match(name):
        yield _fetch(name), source
        return
    from mmengine.fileio import get_local_path

    with contextlib.ExitStack() as stack:
        try:
            path = Path(stack.enter_context(get_local_path(name)))
        except Exception as error:  # each storage client has its own
            raise CheckpointError(f"cannot fetch {name}: {error}; fetch it by hand and give the path") from error
        yield path, source


def load_from_anywhere(checkpoint: str, map_location: Any = None) -> Any:
    """``read_checkpoint`` in the form of MMEngine's own loaders, of which this one takes the place.

    Args:
        map_location: not used. Weights are on the CPU, and go where the network is.
    """
    content = read_checkpoint(checkpoint)
    if checkpoint.startswith("mmcls://") and isinstance(content, dict):  # MMEngine takes the backbone of these
        state, prefix = content.get("state_dict", content), "backbone."
        return {"state_dict": {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}}
    return content


def _read_file(path: Path, name: str = "") -> Any:
    """What is in a file; ``name`` is its name at its source, if that is another one."""
    _check_is_file(path)
    _check_is_whole(path)
    _check_digest(path, name or path.name)
    with _opened(path) as file:
        kind = _kind(path, file)
        with _named(path):
            if kind == "safetensors":
                return _read_safetensors(path)
            if kind == "arrays":
                return _read_arrays(file)
            _check_torch()
            stand_ins = [_stand_in(*name) for name in sorted(_scanned(file, zipped=kind == "zip").names)]
            file.seek(0)
            with _only_safe_globals(stand_ins), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on the pickle protocol; a file that needs more than it has fails
                return torch.load(file, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the file's name before what is wrong with its content, whatever the library raised."""
    try:
        yield
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(f"{path} is refused: {printable(error)}. {_CONVERT}") from None
    except CheckpointError as error:
        text = printable(error)
        raise CheckpointError(text if text.startswith(str(path)) else f"{path} {text}") from None
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        # PyTorch's own message recommends an unsafe load; the error that it wraps has only the reason.
        reason = printable(" ".join(str(error.__context__ or error).split("\n", 1)[0].split())[:300])
        raise UnsafeCheckpointError(
            f"{path} is refused, as it holds more than tensors and data: {reason}. {_CONVERT}"
        ) from None
    except Exception as error:  # a damaged pickle can fail in any way
        reason = printable(" ".join(str(error).split())[:300])
        raise CheckpointError(
            f"{path} is damaged or truncated ({type(error).__name__}: {reason}): download or copy it again"
        ) from error


def _check_is_file(path: Path) -> None:
    try:
        path.exists()
    except OSError as error:  # such as a name that is too long
        raise CheckpointError(f"there is no checkpoint {str(path)[:60]}: {error.strerror}") from None
    if path.is_dir():
        files = sorted(p.name for p in path.iterdir() if p.suffix in {".pth", ".pt", ".bin", ".pkl", ".safetensors"})
        holds = f"it holds {shorten(files)}" if files else "it holds no checkpoint"
        raise CheckpointError(f"{path} is a folder: give the path of a checkpoint file; {holds}")
    if not path.is_file():
        folder = next(parent for parent in path.absolute().parents if parent.is_dir())
        if folder != path.absolute().parent:
            raise CheckpointError(f"there is no checkpoint {path}: its folder does not exist, only {folder} does")
        near = difflib.get_close_matches(path.name, [p.name for p in folder.iterdir()])
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise CheckpointError(f"there is no checkpoint {path}{hint}")


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from None


def _check_is_whole(name: str | Path) -> None:
    """Checks by its name that a file is not one of several that hold a network's weights together."""
    shard = re.search(r"-0*(\d+)-of-0*(\d+)\.\w+$", str(name))
    if shard and int(shard[2]) > 1:
        raise CheckpointError(f"{name} is shard {shard[1]} of {shard[2]} and holds a part of the weights: {_JOIN}")


_SUMS: dict[tuple[int, ...], str] = {}
"""The SHA-256 of files that were read, by what identifies their content, so that it is computed once."""


def _check_digest(path: Path, name: str) -> None:
    """Checks that the content is what the name says, if the name carries digits of the SHA-256.

    Raises:
        CheckpointError: if it is not.
    """
    if not (expected := digest_in(name)):
        return
    status = path.stat()
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if key not in _SUMS:
        _SUMS[key] = sha256(path)
    if not (found := _SUMS[key]).startswith(expected):
        raise CheckpointError(
            f"{path} is damaged or another file: {name} says by its name that its SHA-256 begins with {expected}, and "
            f"it begins with {found[: len(expected)]}; download or copy it again, or rename it if the digits are of "
            "something else"
        )


def digest_in(name: str) -> str:
    """The first digits of a file's SHA-256 that its name carries, as PyTorch's hub and OpenMMLab have them: a dash and
    at least 8 hexadecimal digits at its end (``mit_b0_20220624-7e0fe6dd.pth``); empty if it carries none.

    Decimal digits alone may be a date or a number of iterations: they are taken for a SHA-256 only after
    OpenMMLab's date. 32 and 40 digits are those of other checksums, and a UUID is no checksum.
    """
    if record := published.by_address(name):
        return record.sha256
    stem = Path(name).stem
    found = re.search(r"-([0-9a-f]{8,64})$", stem)
    if not found or len(found[1]) in (32, 40) or re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", stem):
        return ""
    return "" if found[1].isdecimal() and not re.search(r"_\d{8}-\d{8}$", stem) else found[1]


def _kind(path: Path, file: IO[bytes]) -> str:
    """'zip', 'pickle', 'arrays' or 'safetensors', by content; CheckpointError for anything else."""
    head = file.read(1024)
    text = head.lstrip().lower()
    reason = None
    if not head:
        reason = "is empty: download or copy it again"
    elif text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")) or (text[:1] == b"<" and b"<html" in text):
        reason = "is an HTML page, not a checkpoint: the download was answered by a web page, so fetch it by hand"
    elif head.startswith(b"version https://git-lfs"):
        reason = "is a Git LFS pointer, not the checkpoint itself: run `git lfs pull` in its repository"
    elif head.startswith(b"PK"):
        return _zip_kind(path)
    elif head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "safetensors"
    elif _is_tar(head):
        reason = "is a tar archive: unpack it and give the checkpoint in it"
    elif head.startswith(b"\x80") and _MAGIC_BYTES in head[:32]:
        return "pickle"
    elif arrays.is_pickle(head):
        return "arrays"
    elif path.suffix == ".safetensors":
        reason = "is damaged or truncated: it does not begin with the header of a safetensors file; download it again"
    elif head.startswith(b"\x1f\x8b"):
        reason = "is compressed with gzip: run gunzip on it first"
    elif head.startswith(b"\x89HDF"):
        reason = "is an HDF5 file (Keras), which is not read: give a PyTorch checkpoint"
    elif text.startswith(b"{") and (b'"weight_map"' in text or path.name.endswith(".index.json")):
        reason = f"is the JSON index of weights in several shards, and holds none itself: {_JOIN}"
    elif text.startswith((b"{", b"[")):
        reason = "is a JSON file (an index or a config?): give the file with the weights"
    elif text and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        words = " ".join(head.decode("ascii").split())
        reason = f"is a text file and no checkpoint ({words[:60]!r}): download or copy it again"
    if reason is None:
        reason = "is not a PyTorch checkpoint (TensorFlow, ONNX and other formats are not read)"
    raise CheckpointError(f"{path} {reason}")


def _is_tar(head: bytes) -> bool:
    """PyTorch reads what it takes for a tar archive in another way."""
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except Exception:  # whatever is wrong with it, it is none
        return head[257:262] == b"ustar"
    return True


def _zip_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except Exception as error:  # a damaged archive can fail in any way
        raise CheckpointError(f"{path} is truncated ({error}): download or copy it again") from None
    names = [part.filename for part in parts]
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(f"{path} is a TorchScript archive, which holds code: save model.state_dict() instead")
    if not any(name.endswith("/data.pkl") for name in names):
        what = "NumPy arrays" if any(name.endswith(".npy") for name in names) else f"{shorten(names, 3)}"
        raise CheckpointError(f"{path} is a zip archive but no PyTorch checkpoint: it holds {what or 'nothing'}")
    _check_parts(path, parts)
    _check_sums(path)
    return "zip"


def _check_parts(path: Path, parts: list[zipfile.ZipInfo]) -> None:
    """Check, before anything is inflated, that the parts of an archive are apart, and not larger than the limits."""
    size = path.stat().st_size
    if why := limits.ENTRIES.exceeded(len(parts)):
        raise CheckpointError(f"{path} has {why}")
    twice = [name for name, count in Counter(part.filename for part in parts).items() if count > 1]
    if twice:
        raise CheckpointError(f"{path} is damaged: it has the part {twice[0]} twice; download or copy it again")
    end, before = 0, ""
    for part in sorted(parts, key=lambda part: part.header_offset):
        if part.header_offset < end:
            raise CheckpointError(
                f"{path} is damaged: its parts {before} and {part.filename} overlap; download or copy it again"
            )
        end, before = part.header_offset + _LOCAL_HEADER + part.compress_size, part.filename
        if part.compress_type == zipfile.ZIP_STORED and part.compress_size != part.file_size:
            raise CheckpointError(f"{path} is damaged: its part {before} has two sizes; download or copy it again")
    inflated = sum(part.file_size for part in parts)
    if why := limits.INFLATED.exceeded(inflated, 4 * size):
        raise CheckpointError(f"{path} has {size:,} bytes and asks for {why}")
    if end > size:
        raise CheckpointError(f"{path} is truncated: its part {before} ends after the file; download or copy it again")


def _check_sums(path: Path) -> None:
    """Checks that the parts of a zip archive have the checksums (CRC-32) that it gives; PyTorch does not check.

    ``torch.serialization.set_crc32_options(False)`` makes files with zeros for all checksums: those pass.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip() if any(part.CRC for part in archive.infolist()) else None
    except Exception as error:  # a damaged archive can fail in any way
        damaged = f"({type(error).__name__}: {error})"
    if damaged:
        raise CheckpointError(
            f"{path} is damaged: its part {damaged} does not have the checksum that was written with it; download or "
            "copy it again"
        )


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise CheckpointError("needs the safetensors library: pip install safetensors") from None
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if why := limits.HEADER.exceeded(header):
        raise CheckpointError(f"has {why}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"is damaged or truncated ({error}): download or copy it again") from error
    except Exception as error:
        if type(error).__name__ == "KeyError":
            raise CheckpointError(f"has a tensor of type {error}, which is not read: save it as float32") from error
        raise


def _read_arrays(file: IO[bytes]) -> Any:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        content = arrays.read(data)
    if not arrays.holds_arrays(content):
        raise CheckpointError(
            "is a pickle that torch.save did not write, and holds no arrays of NumPy: save model.state_dict() with "
            "torch.save"
        )
    return content


# ---- what a pickle would do, and stand-ins for the names in it


def check_pickle(path: str | os.PathLike[str]) -> None:
    """Check that a file can be given to PyTorch's restricted unpickler, with the classes that the process allows.

    Raises:
        CheckpointError: it is no checkpoint, damaged, or asks for more than the limits allow.
    """
    path = Path(path).expanduser()
    _check_is_file(path)
    with _opened(path) as file, _named(path):
        kind = _kind(path, file)
        if kind == "safetensors":
            raise CheckpointError("is a safetensors file, which holds weights alone")
        if kind == "arrays":
            raise CheckpointError("is a pickle that torch.save did not write: start from its weights with load_from")
        _check_torch()
        _scanned(file, zipped=kind == "zip", strict=False)


def _check_torch() -> None:
    """Before PyTorch 2.6 a pickle could run code also with ``weights_only=True`` (CVE-2025-32434)."""
    release = tuple(int(digits) for digits in re.findall(r"\d+", torch.__version__)[:2])
    if release < SAFE_TORCH:
        raise CheckpointError(
            f"is a pickle, which torch {torch.__version__} cannot read safely (CVE-2025-32434): install torch "
            f"{'.'.join(map(str, SAFE_TORCH))} or newer, or give a .safetensors file"
        )


def _scanned(file: IO[bytes], zipped: bool, strict: bool = True) -> Scan:
    """The pickles of a checkpoint, followed without doing anything; see ``Scan``."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    if zipped:
        reader = torch._C.PyTorchFileReader(file)
        with zipfile.ZipFile(file) as archive:
            parts = {part.filename: part.file_size for part in archive.infolist()}
        prefix = next(name for name in parts if name.endswith("/data.pkl")).removesuffix("data.pkl")
        names = {name.removeprefix(prefix) for name in parts}
        if {*reader.get_all_records()} != names:
            raise CheckpointError("is damaged: it has two tables of contents; download or copy it again")
        storages = f"{prefix}data/"
        records = {n.removeprefix(storages): size for n, size in parts.items() if n.startswith(storages)}
        scan = Scan(size, _KINDS, strict, records)
        scan.pickle(reader.get_record("data.pkl"))
        return scan
    # The form before PyTorch 1.6: a magic number, a version, the machine, the object and the storages' keys, one
    # pickle each, and then the raw storages.
    scan = Scan(size, _KINDS, strict)
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            magic, end = scan.pickle(data)
        except UnsafeCheckpointError:
            magic, end = None, 0
        if magic != _MAGIC_NUMBER:
            raise CheckpointError("is a pickle that torch.save did not write: save model.state_dict() with torch.save")
        for _ in range(4):
            _, end = scan.pickle(data, end)
    return scan


def _as_dict() -> Any:
    return OrderedDict()


def _as_list() -> Any:
    return []


class Opaque:
    """An empty object, in place of a value that a call would make and that is not needed."""

    def __setstate__(self, state: Any) -> None:
        pass


_VALUES: dict[str, Callable[[], Any]] = {
    "collections.defaultdict": _as_dict,
    "mmengine.config.config.ConfigDict": _as_dict,
    "collections.deque": _as_list,
    **dict.fromkeys(
        [
            "builtins.frozenset",
            "builtins.getattr",  # MMEngine's log buffers refer to their own methods by it
            "builtins.range",
            "builtins.slice",
            "datetime.date",
            "datetime.datetime",
            "datetime.time",
            "datetime.timedelta",
            "decimal.Decimal",
            "numpy._core.multiarray._reconstruct",
            "numpy._core.multiarray.scalar",
            "numpy.core.multiarray._reconstruct",
            "numpy.core.multiarray.scalar",
            "numpy.dtype",
            "pathlib.Path",
            "pathlib.PosixPath",
            "pathlib.PurePosixPath",
            "pathlib.PureWindowsPath",
            "pathlib.WindowsPath",
            "pathlib._local.PosixPath",
            "pathlib._local.WindowsPath",
            "types.SimpleNamespace",
        ],
        Opaque,
    ),
}
"""Common values that a pickle makes by a call, and what replaces them; none of their code is called."""


_KINDS = {
    name: {_as_dict: scanning.DICT, _as_list: scanning.LIST}.get(make, scanning.OPAQUE)
    for name, make in _VALUES.items()
}
"""The same, as the scan knows them."""


class _StandInType(type):
    """The type of all stand-ins: calling one is what a pickle's REDUCE does."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        name = f"{cls.__module__}.{cls.__qualname__}"
        if name not in _VALUES:
            raise UnsafeCheckpointError(f"it asks for a call of {name}, which a checkpoint has no need of")
        return _VALUES[name]()


def _stand_in(module: str, name: str) -> type:
    """A class with this name that holds no code of the real one.

    Its objects, which a pickle makes by ``__new__``, are plain dicts: that is what the restricted unpickler fills in
    with items (a config node) and attributes (a namespace) alike.
    """
    body = {"__module__": module, "__qualname__": name, "__new__": lambda cls, *args, **kwargs: OrderedDict()}
    return _StandInType(name, (), body)


@contextlib.contextmanager
def _only_safe_globals(stand_ins: list[type]) -> Iterator[None]:
    """Within it, the restricted unpickler knows its own classes and these, and no others.

    What the process has allowed before, for files that it trusts, is removed meanwhile: otherwise a real function of
    that name would be called for this file too.
    """
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        torch.serialization.add_safe_globals([*stand_ins, Opaque])
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


# ---- downloads


def _fetch(url: str) -> Path:
    """The file of a URL, downloaded once into PyTorch's cache of checkpoints."""
    from mmengine.dist import barrier, broadcast_object_list, get_dist_info

    # The URL's hash separates files of the same name: many repositories have a pytorch_model.bin. It comes first: at
    # the end of a name it would be taken for the hash of the content.
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    path = Path(torch.hub.get_dir(), "checkpoints", f"{digest}-{file_name_of(url) or 'checkpoint'}")
    rank, world_size = get_dist_info()
    failure: list[CheckpointError | None] = [None]
    if rank == 0:
        try:
            if not _is_good(path, url):
                _download(url, path)
        except CheckpointError as error:
            failure = [error]
    if world_size > 1:
        broadcast_object_list(failure)  # a rank that waited for a failed download would wait forever
        barrier()
    if failure[0] is not None:
        raise failure[0]
    return path


def _is_good(path: Path, url: str) -> bool:
    """Whether a file is in the cache. One that is there and damaged is reported, and fetched again."""
    if not path.exists():
        return False
    try:
        _check_digest(path, file_name_of(url))
        with _opened(path) as file, _named(path):
            kind = _kind(path, file)
            if kind == "safetensors":
                _read_safetensors(path)  # a memory map
            elif kind == "arrays":
                _read_arrays(file)
            else:
                _scanned(file, zipped=kind == "zip")
    except UnsafeCheckpointError:
        return True  # it is what the address holds; it is refused when it is read
    except CheckpointError as error:
        print_log(f"{error}; the file is fetched again from {printable(url)}", "current", logging.WARNING)
        return False
    return True


def _download(url: str, path: Path) -> None:
    """Downloads to a file next to ``path`` and renames it once it can be read: no incomplete download is left."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    by_hand = f"download {url} by hand and give the path of the file, or put it at {path}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        downloading.download(url, partial)
        _read_file(partial, file_name_of(url))
        partial.replace(path)
    except DownloadError as error:
        raise DownloadError(f"{error}: {by_hand}") from error.__cause__
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(str(error).replace(str(partial), url)) from None
    except CheckpointError as error:
        raise CheckpointError(f"{str(error).replace(str(partial), url)}; or {by_hand}") from None
    except OSError as error:
        raise DownloadError(f"cannot download {url} ({error}): {by_hand}") from error
    finally:
        partial.unlink(missing_ok=True)
