"""Flags of version 0.1.0 are read for one release more."""

import pytest

from deepjax.cli.train import Options
from deepjax.command_line import parse
from deepjax.errors import InputError
from deepjax.renamed_options import rename_flags

START = ["--model", "cifar_resnet20"]


def test_old_flags_and_values_are_read_with_a_line_for_each(capsys):
    old = [
        *START,
        "--out",
        "x",
        "--ema=0.9",
        "--decode",
        "exact",
        "--decay_all",
        "--trace-tier=business",
    ]
    options = parse(Options, old)
    new = [*START, "--output-dir", "x", "--ema-decay", "0.9", "--resize-backend", "pillow"]
    assert options == parse(Options, [*new, "--decay-norm-and-bias", "--probe", "layers"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "--out is called --output-dir now; the old name goes with the next release"
    assert len(lines) == 5


def test_a_flag_that_the_command_has_itself_is_not_renamed():
    arguments = ["--repeats", "3", "--out", "x"]
    assert rename_flags(arguments, ["--repeats", "--repeated-augmentation", "--out"]) == (
        arguments,
        [],
    )
    assert rename_flags(arguments, ["--help"]) == (arguments, [])


def test_an_old_flag_is_not_named_in_an_error():
    with pytest.raises(InputError, match=r"^option --output-dir is empty"):
        parse(Options, [*START, "--out", ""])
