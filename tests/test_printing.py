import ast
import logging
from pathlib import Path

import pytest
import torch

import mm_vitbackbones
from helpers.attacks import text, zipped
from helpers.toys import TOYS
from mm_vitbackbones.checkpoints import load_pretrained, read_checkpoint
from mm_vitbackbones.cli import check_data, convert_checkpoint
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.errors import CheckpointError, UserError, printable, shorten
from mm_vitbackbones.printing import print, printable_logs

EVIL = "\x1b]0;title\x07\r\x1b[2Jcat\u202egnp.exe\u2066\x9b31m\x00\x7f"
STEERING = set("\x1b\x07\r\u202e\u2066\x9b\x00\x7f")


def check_inert(shown):
    assert not STEERING & set(shown)
    assert r"\x1b]0;title\x07\r\x1b[2Jcat\u202egnp.exe\u2066\x9b31m\x00\x7f" in shown


@pytest.mark.parametrize(
    "text", ["", "backbone.norm1.weight", "Übergröße", "猫", "кошка", "قطة", "می‌خواهم", "👩‍🌾", "a　b", "10 %", "\\x1b"]
)
def test_names_of_all_scripts_stay(text):
    assert printable(text) == text


def test_what_steers_a_terminal_is_escaped():
    check_inert(printable(EVIL))
    assert printable("a\nb\tc") == r"a\nb\tc"
    assert printable("a\nb\tc\x1b", keep="\n\t") == "a\nb\tc\\x1b"
    assert printable("\udcff\u2028\u200f") == r"\udcff\u2028\u200f"
    assert shorten(["a\nb", "c"]) == r"a\nb, c"


def test_what_a_command_prints_logs_and_reports_is_escaped(capsys):
    def main(argv):
        print("class", EVIL, [EVIL][0], sep="\n")
        logging.getLogger("some.library").warning("class %s\nof a table", EVIL)
        raise UserError(f"class {EVIL}\nis odd")

    handler = logging.StreamHandler()
    logging.getLogger("some.library").addHandler(handler)
    try:
        assert run(main, []) == 2
    finally:
        logging.getLogger("some.library").removeHandler(handler)
    captured = capsys.readouterr()
    check_inert(captured.out)
    assert captured.out.count("\n") == 3
    *logged, error = captured.err.splitlines()
    check_inert("\n".join(logged))
    assert logged[-1] == "of a table"
    assert error.startswith("error: class ")
    assert not STEERING & set(error)


def test_a_message_that_does_not_fit_its_arguments_is_left_to_logging():
    with printable_logs():
        record = logging.getLogRecordFactory()("a", logging.INFO, "", 1, "%d", ("x",), None)
    assert record.msg == "%d"
    assert logging.getLogRecordFactory() is logging.LogRecord


def test_keys_of_a_checkpoint_are_escaped(tmp_path, capsys):
    torch.save({f"key{EVIL}": torch.ones(1)}, tmp_path / "file.pth")
    assert run(convert_checkpoint.main, [str(tmp_path / "file.pth"), str(tmp_path / "out.pth")]) == 2
    assert not STEERING & set(capsys.readouterr().err)


def test_names_in_a_pickle_are_escaped(tmp_path):
    zipped(tmp_path / "file.pth", b"\x80\x02c" + EVIL.encode() + b"\nsystem\n" + text("x") + b"\x85R.")
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(TOYS["pvt"](), {f"block1.0.{EVIL}": torch.ones(1), "pos_embed1": torch.ones(1)})
    assert not STEERING & set(str(caught.value))
    with pytest.raises(CheckpointError, match="refused") as caught:
        read_checkpoint(tmp_path / "file.pth")
    assert not STEERING & set(str(caught.value))


def test_names_of_files_are_escaped(tmp_path, capsys):
    assert run(check_data.main, [str(tmp_path / f"{EVIL[:-2]}.py".replace("/", ""))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert not STEERING & set(error)


def test_all_commands_print_in_this_way():
    package = Path(mm_vitbackbones.__file__).parent
    printing = 0
    for path in package.glob("cli/*.py"):
        tree = ast.parse(path.read_text())
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"]
        if calls:
            printing += 1
            assert any(
                isinstance(node, ast.ImportFrom) and node.module == "mm_vitbackbones.printing"
                and "print" in [alias.name for alias in node.names]
                for node in ast.walk(tree)
            ), path  # fmt: skip
    assert printing > 5
