"""Good checkpoints, changed by chance: each is read or refused in one line. No crash, no hang, no gigabytes, no file.

``case(SEED, ...)`` makes the input of a seed again.
"""

import io
import itertools
import json
import pickletools
import random
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch

from helpers.attacks import legacy, number, numbers, storage, tensor, text, zipped
from helpers.fuzzing import READ, REFUSED, campaign, refusal
from mm_vitbackbones.checkpoints import CheckpointError, read_checkpoint
from mm_vitbackbones.checkpoints.unwrapping import unwrap_model
from mm_vitbackbones.errors import UserError

FORMS = (
    "opcodes in a zip",
    "opcodes in a legacy file",
    "bytes of a zip",
    "bytes of a legacy file",
    "a header",
    "bytes of safetensors",
)


def contents():
    weight = torch.arange(12.0).reshape(3, 4)
    state = OrderedDict(a=weight, b=weight[1:, ::2], c=torch.ones(2, dtype=torch.half), d=torch.tensor(3))
    return [
        {"state_dict": state, "meta": {"epoch": 1, "cfg": "x = 1", "seen": {1, 2}}, "optimizer": {"state": {0: {}}}},
        {"model": {"w": torch.nn.Parameter(weight)}, "args": torch.device("cpu"), "size": torch.Size([1]), "b": b"xy"},
    ]


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def opcodes(program):
    """The steps of a pickle, one opcode with its argument each."""
    stream = io.BytesIO(program)
    ends = [at for _, _, at in pickletools.genops(stream)] + [stream.tell()]
    return [program[begin:end] for begin, end in itertools.pairwise(ends)]


def in_zip(content):
    """The steps of a good file's pickle, and the file."""
    whole = saved(content)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        return opcodes(archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))), whole


def in_legacy(content):
    """The steps of a good file's pickle, and what is after it."""
    whole = saved(content, _use_new_zipfile_serialization=False)
    for _ in range(3):
        whole = whole[len(b"".join(opcodes(whole))) :]
    program = opcodes(whole)
    return program, whole[len(b"".join(program)) :]


def good_programs():
    """By form, (steps, the rest of the file) of good files; and pieces to put among the steps."""
    made = {FORMS[0]: list(map(in_zip, contents())), FORMS[1]: list(map(in_legacy, contents()))}
    pieces = [step for several in made.values() for program, _ in several for step in program]
    pieces += [bytes([ord(opcode.code)]) for opcode in pickletools.opcodes]
    pieces += [storage(), tensor(4, 0, numbers(2, 2), numbers(2, 1)), text("storage"), numbers(1, 2), b"(", b"t", b"R"]
    pieces += [f"c{name}\n".encode() for name in ("torch\nFloatTensor", "os\nsystem", "__builtin__\nbytearray", "a\nb")]
    pieces += [f"ctorch._utils\n_rebuild_{name}\n".encode() for name in ("qtensor", "tensor_v3", "nested_tensor")]
    pieces += [number(sign * 2**power) for power in (0, 31, 32, 40, 62, 63, 200) for sign in (1, -1)]
    return made, pieces


def change_opcodes(chance, program, pieces):
    changed = list(program)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        at = chance.randrange(len(changed))
        what = chance.random()
        if what < 0.3:
            changed[at] = chance.choice(pieces)
        elif what < 0.5:
            changed.insert(at, chance.choice(pieces))
        elif what < 0.65:
            del changed[at : at + chance.choice([1, 2, 8])]
        elif what < 0.8:
            begin = chance.randrange(len(changed) or 1)
            changed[at:at] = changed[begin : begin + chance.choice([2, 8, 30])]
        elif what < 0.9:
            other = chance.randrange(len(changed) or 1)
            changed[at:at] = [b"".join(changed[other : other + 3])] * chance.choice([10, 1000, 20_000])
        else:
            changed[at] = change_bytes(chance, changed[at]) if at < len(changed) else b""
        changed = changed or [b"."]
    return b"".join(changed)


def change_bytes(chance, data):
    changed = bytearray(data or b"\0")
    for _ in range(chance.choice([1, 1, 2, 8])):
        at = chance.randrange(len(changed))
        what = chance.random()
        if what < 0.4:
            changed[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        elif what < 0.6:
            value = chance.choice([0, 1, 2**16, 2**31, 2**32 - 1, 2**62, 2**64 - 1])
            changed[at : at + 8] = struct.pack("<Q", value)[: chance.choice([2, 4, 8])]
        elif what < 0.75:
            del changed[at : at + chance.choice([1, 4, 64])]
        elif what < 0.9:
            changed[at:at] = changed[at : at + chance.choice([1, 4, 64, 500])]
        else:
            del changed[at:]
        changed = changed or bytearray(1)
    return bytes(changed)


def headers(chance):
    """The header of a safetensors file, right or absurd, and the bytes of its data."""

    def absurd():
        return chance.choice([0, 1, 4, -1, 1.5, 2**31, 2**62, 2**64, "x", None, [], {}, [1] * 70])

    right = chance.choice([0.7, 0.95, 1])

    def maybe(value):
        return value if chance.random() < right else absurd()

    entries = {}
    for i in range(chance.choice([0, 1, 2, 5, 1000])):
        kind, shape = chance.choice([("F32", [2, 2]), ("F16", [8]), ("I64", [1, 2]), ("BOOL", [16]), ("F8_E4M3", [16])])
        if chance.random() > right:
            kind = chance.choice(["F4", "X", "F8_E8M0", "C64", "U8"])
        name = f"k{i}" if chance.random() < right else chance.choice(["k", "\x1b[31m", "", "__metadata__"])
        offsets = [maybe(16 * i), maybe(16 * i + 16)]
        entries[name] = maybe({"dtype": maybe(kind), "shape": maybe(list(map(maybe, shape))), "data_offsets": offsets})
    return json.dumps(entries).encode(), 16 * len(entries)


def case(seed, path, material):
    """Write the input of a seed.

    Returns:
        its form, one of ``FORMS``.
    """
    programs, pieces, files = material
    chance = random.Random(seed)
    form = FORMS[seed % len(FORMS)]
    if form in programs:
        program, rest = chance.choice(programs[form])
        changed = change_opcodes(chance, program, pieces)
        if form == FORMS[0]:
            zipped(path, changed, whole=rest, compression=chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
        else:
            legacy(path, changed, rest)
    elif form == "a header":
        header, data = headers(chance)
        size = len(header) if chance.random() < 0.8 else chance.choice([0, 1, 2**31, 2**40, 2**63, len(header) + 1])
        path.write_bytes(struct.pack("<Q", size) + header + bytes(chance.choice([data, data, data, 0, 80])))
    else:
        path.write_bytes(change_bytes(chance, chance.choice(files[form])))
    return form


def material():
    from safetensors.torch import save

    old = [saved(content, _use_new_zipfile_serialization=False) for content in contents()]
    tensors = save({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.half)})
    files = {
        "bytes of a zip": [saved(content) for content in contents()],
        "bytes of a legacy file": old,
        "bytes of safetensors": [tensors],
    }
    return *good_programs(), files


def read_one(path):
    """``READ``, ``REFUSED``, or what is wrong."""
    try:
        unwrap_model(read_checkpoint(path))
    except (CheckpointError, UserError) as error:
        return refusal(str(error))
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return READ


def run_campaign(folder, **bounds):
    made = material()
    return campaign(
        folder,
        make=lambda seed, place: case(seed, place / "input", made),
        read=lambda place, form: read_one(place / "input"),
        **bounds,
    )


def test_changed_checkpoints_are_read_or_refused(tmp_path):
    counts, wrong = run_campaign(tmp_path, seconds=20, inputs=300)
    assert not wrong
    assert sum(counts.values()) > 50
    assert {result for _, result in counts} == {READ, REFUSED}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_changed_checkpoints_are_read_or_refused_for_ten_minutes(tmp_path):
    counts, wrong = run_campaign(tmp_path, seconds=600, begin=10**6)
    print(sum(counts.values()), "inputs:", dict(counts))
    assert not wrong
    assert all(counts[form, result] for form in FORMS for result in (READ, REFUSED))
