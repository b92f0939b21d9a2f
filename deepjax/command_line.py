"""Command lines: options parsed from a dataclass, errors in one line, exit codes."""

import contextlib
import difflib
import io
import json
import logging
import os
import re
import select
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from deepjax.errors import (
    MAX_NAMES_SHOWN,
    InputError,
    NonFiniteError,
    Stopped,
    require_devices,
    unknown_name_error,
)
from deepjax.familiar_options import FAMILIAR_OPTIONS, familiar_hint
from deepjax.help_page import HELP_FLAGS, HelpPage, help_text
from deepjax.option_specs import option_specs
from deepjax.renamed_options import has_renamed_flag, rename_flags

Options = TypeVar("Options")
_TITLES = {  # titles of tyro's error boxes and their replacements; the messages are kept
    r"^Value error Error parsing (?!--)\S+: ": "",
    r"^Value error Error parsing (--\S+): ": r"option \1: ",
    r"^Required options Missing from \S+: ": "an option is missing: ",
    r"invalid literal for int\(\) with base 10: (.*)$": r"\1 is not an integer",
    r"could not convert string to float: (.*)$": r"\1 is not a number",
    r"^Invalid choice (?=invalid choice)": "",
    r"^Unrecognized options Unrecognized options: (.*)$": r"unexpected: \1; options begin with --",
}
_CHOICE = re.compile(r"invalid choice '(.*?)' for argument '(.*?)'\. Expected one of \((.*)\)\.")
_PATHS = (
    "--output-dir",
    "--run",
    "--reuse-runs-from",
    "--runs",
    "--results",
    "--data-dir",
    "--weights",
    "--weights-dir",
    "--manual-dir",
    "--from-tfrecord",
)
EXIT_INPUT, EXIT_NONFINITE, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_PIPE = 2, 3, 130, 143, 1


def parse(
    options: type[Options],
    arguments: Sequence[str] | None = None,
    default: Options | None = None,
    page: HelpPage | None = None,
) -> Options:
    """Parse the command line into a dataclass; every mistake becomes an InputError of one line.

    default: the values of options that are not given. page: what --help prints, and exits with 0;
    default the docstring of the dataclass and all options, as with --help-all and with `default`.
    """
    import tyro

    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if asked := set(HELP_FLAGS).intersection(arguments):
        every = "--help-all" in asked or default is not None
        print(help_text(options, page, default, every), flush=True)
        raise SystemExit(0)
    if has_renamed_flag(arguments):
        arguments, notes = rename_flags(arguments, option_flags(options))
        for note in notes:
            print(note, file=sys.stderr)
    for flag, value in [
        *pairwise(arguments),
        *(argument.split("=", 1) for argument in arguments if "=" in argument),
    ]:
        if flag in _PATHS and not value:  # to pathlib it would be the current folder
            raise InputError(f"option {flag} is empty; allowed: a path")
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return (
                tyro.cli(options, args=arguments)
                if default is None
                else tyro.cli(options, args=arguments, default=default)
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        known = option_flags(options)
        for argument in arguments:
            flag = argument.split("=")[0]
            is_option = flag.startswith("--") or flag in FAMILIAR_OPTIONS
            if is_option and flag.replace("_", "-") not in known:
                near = difflib.get_close_matches(flag, known, n=1)
                near = near or [name for name in known if flag.startswith(f"{name}-")]
                hint = f"did you mean {near[0]}? " if near else ""
                familiar = familiar_hint(flag.replace("_", "-"))
                if familiar and (familiar.split()[1] in known or "use --" not in familiar):
                    raise InputError(f"option {flag} is unknown; {familiar}") from None
                listed = (
                    f"allowed: {', '.join(known)}"
                    if len(known) <= MAX_NAMES_SHOWN
                    else "--help-all lists all options"
                )
                raise InputError(f"option {flag} is unknown; {hint}{listed}") from None
        raise InputError(_one_line(messages.getvalue())) from None


def run_action(
    actions: Mapping[str, Callable[[Sequence[str]], None]], arguments: Sequence[str], text: str
) -> None:
    """Run the action that the first argument names, or print the help text.

    Raises InputError for an unknown action.
    """
    action, *rest = arguments or ["--help"]
    if action in ("--help", "-h"):
        print(text)
        return
    if action not in actions:
        raise unknown_name_error("action", action, actions)
    actions[action](rest)


def print_json(document: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(document, indent=1, ensure_ascii=False))


@contextlib.contextmanager
def json_output(enabled: bool) -> Iterator[Callable[[Any], None]]:
    """Gives a function that prints a document; what else is printed meanwhile goes to stderr.

    enabled: otherwise the function prints nothing, and the rest goes to stdout.
    """
    documents: list[Any] = []
    try:
        with contextlib.redirect_stdout(sys.stderr) if enabled else contextlib.nullcontext():
            yield documents.append
    finally:  # an error after the result does not hide it
        for document in documents if enabled else ():
            print_json(document)


def run_command(command: Callable[[], None], resumes: bool = True) -> None:
    """Run a command and exit.

    0 done, 1 stdout was closed (as by `head`), 2 invalid input, 3 halted on non-finite values, 130
    interrupted (Ctrl-C), 143 stopped by a signal after saving. resumes: it has checkpoints.
    """
    sys.unraisablehook = _unraisable_hook
    # A consequence of failed writes, which are reported in one line.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    # Pillow's, when it reads the header of an image that is then refused.
    warnings.filterwarnings("ignore", "Image size .* exceeds limit", RuntimeWarning)
    try:
        command()
        print(end="", flush=True)
    except InputError as error:
        if isinstance(error.__cause__, AssertionError | RuntimeError):
            _exit_without_devices()
        _exit(EXIT_INPUT, error)
    except NonFiniteError as error:
        _exit(EXIT_NONFINITE, error)
    except Stopped as error:
        _exit(EXIT_STOPPED, error)
    except KeyboardInterrupt:
        hint = "; the same command resumes from the last checkpoint" if resumes else ""
        _exit(EXIT_INTERRUPTED, Stopped(f"interrupted{hint}"))
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        sys.exit(EXIT_PIPE)
    except (AssertionError, RuntimeError):
        _exit_without_devices()
        raise


def _stdout_is_closed() -> bool:
    """Whether stdout has no reader; if so it is redirected, because Python flushes it at exit."""
    try:
        stdout = sys.stdout.fileno()
    except (OSError, ValueError):  # not a file, but a stream of a test or a notebook
        return False
    poll = select.poll()
    poll.register(stdout, 0)  # errors and hang-ups are always reported
    closed = bool(poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return closed


def _unraisable_hook(unraisable: Any) -> None:
    """Show an unraisable error, except the many that follow a failed write, which is reported."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _exit_without_devices() -> None:
    """Exit 2 with one line if JAX has no device, which it notices when it first needs one."""
    if "jax" in sys.modules:
        try:
            require_devices()
        except InputError as error:
            _exit(EXIT_INPUT, error)


def _exit(code: int, error: Exception) -> None:
    print(str(error) if isinstance(error, Stopped) else f"error: {error}", file=sys.stderr)
    # At exit the tasks of a failed write would hide the line above.
    logging.getLogger("asyncio").disabled = True
    sys.exit(code)


def option_flags(options: type) -> list[str]:
    """Every --flag of a command."""
    return sorted({flag for spec in option_specs(options) for flag in spec.flags} | {"--help"})


def _one_line(box: str) -> str:
    """The text of tyro's error box, without frame, colours and advice."""
    plain = re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─]|-{5,}", " ", box)
    plain = " ".join(plain.split("For full helptext")[0].split("Argument helptext")[0].split())
    for title, words in _TITLES.items():
        plain = re.sub(title, words, plain)
    if choice := _CHOICE.fullmatch(plain):
        given, flag, names = choice.groups()
        allowed = re.findall(r"'([^']*)'", names)
        near = difflib.get_close_matches(given, allowed, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"option {flag} is {given!r}; {hint}allowed: {', '.join(allowed)}"
    return plain
