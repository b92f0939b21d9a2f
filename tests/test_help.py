"""The help of every command: one screen with an example, then all options as tyro has them."""

import contextlib
import dataclasses
import io
import re

import pytest
import tyro

from deepjax.cli import (
    average,
    completion,
    data,
    evaluate_options,
    export,
    models,
    predict,
    report,
    runs,
    study,
    train,
)
from deepjax.cli.__main__ import COMMANDS, start
from deepjax.command_line import json_output, parse
from deepjax.option_specs import OptionSpec, option_specs

ROWS = 40  # of a screen
COMMANDS_WITH_OPTIONS = {
    "train": train.Options,
    "evaluate": evaluate_options.Options,
    "predict": predict.Options,
    "export": export.Options,
    "average": average.Options,
    "report": report.Options,
    "models": models.Options,
    "completion": completion.Options,
    **{f"runs {action}": options for action, options in runs.ACTION_OPTIONS.items()},
    **{f"data {action}": options for action, options in data.ACTION_OPTIONS.items()},
    **{f"study {action}": options for action, options in study.ACTION_OPTIONS.items()},
}


def printed(call, *arguments) -> str:
    """What a command prints before it exits with 0, on a terminal of 80 columns."""
    with contextlib.redirect_stdout(io.StringIO()) as text, pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as stop:
            call(*arguments)
    assert stop.value.code == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue())


@pytest.mark.parametrize("name", COMMANDS_WITH_OPTIONS)
def test_the_first_screen_has_an_example_and_all_options_follow(name):
    options = COMMANDS_WITH_OPTIONS[name]
    first = printed(start, [*name.split(), "--help"])
    lines = first.splitlines()
    assert len(lines) <= ROWS and max(map(len, lines)) <= 100
    assert f"deepjax {name} " in "\n".join(lines[:6])
    every = printed(start, [*name.split(), "--help-all"])
    shown = {flag for spec in option_specs(options) for flag in spec.flags[:1]}
    assert shown <= set(re.findall(r"--[a-z][a-z0-9.-]*", every))
    assert not re.search(r"\{None\}|\(default: \)|\(default: None\)", first + every)
    assert "--help-all" in first or first == every


@pytest.mark.parametrize("name", COMMANDS_WITH_OPTIONS)
def test_the_options_are_those_that_tyro_parses(name):
    """Tyro's own help is the oracle; a flag there is indented by two spaces."""
    options = COMMANDS_WITH_OPTIONS[name]
    box = printed(lambda: tyro.cli(options, args=["--help"]))
    heads = re.findall(r"^  (?:-h, )?(--[a-z]\S*?)(?:, (--\S+))?(?: .*)?$", box, re.MULTILINE)
    theirs = {flag for head in heads for flag in head if flag}
    ours = {flag for spec in option_specs(options) for flag in spec.flags}
    assert theirs == ours | {"--help"}


@dataclasses.dataclass(frozen=True)
class _Base:
    """A base."""

    count: int = 3
    """How many."""


@dataclasses.dataclass(frozen=True)
class _Derived(_Base):
    """A class with a field of its own."""

    rates: tuple[float, ...] = (0.1,)
    """Of learning,
    in steps."""


def test_a_spec_has_the_text_of_the_field_and_the_default():
    count, rates = option_specs(_Derived)
    assert count == OptionSpec(("--count",), "INT", (), "How many.", 3, "", _Derived.__doc__)
    assert (rates.metavar, rates.text) == ("FLOAT ...", "Of learning, in steps.")
    text = printed(parse, _Derived, ["--help"])
    assert "--rates FLOAT ..." in text and "Of learning, in steps. (default: 0.1)" in text


def test_the_commands_are_in_groups_below_an_example(capsys):
    start(["--help"])
    text = capsys.readouterr().out
    assert (
        text.index("    deepjax train --model") < text.index("training\n") < text.index("other\n")
    )
    assert all(f"\n  {name} " in text for name in COMMANDS) and text.count("\n") < ROWS


@pytest.mark.parametrize(("enabled", "out"), [(True, '{\n "a": 1\n}\n'), (False, "a line\n")])
def test_stdout_is_one_document_with_json(enabled, out, capsys):
    with pytest.raises(ValueError, match="later"), json_output(enabled) as show:
        print("a line")
        show({"a": 1})
        raise ValueError("later")
    assert capsys.readouterr().out == out
