"""Awkward names of run directories and their parents.

Each is refused before any work, or the run is trained, interrupted and resumed.
"""

import functools
import random
import string
from collections.abc import Sequence
from pathlib import Path

from deepjax.errors import InputError
from deepjax.training import train
from tests.faults.runs import CONFIG, OPTIONS, complete, outcome, programs, reference
from tests.faults.tally import Tally

AWKWARD = (
    *(
        "run[seed=1]",
        "[a",
        "a]",
        "[]",
        "[!a]",
        "**",
        "{a,b}",
        "%41",
        "a%2Fb",
        "a:b",
        "file:",
        "gs:",
        "a|b:",
        "~",
        "~root",
        "-x",
    ),
    *(
        "a b",
        " lead",
        "trail ",
        ".hidden",
        "...",
        "a\\b",
        '"q"',
        "'q'",
        "$HOME",
        "a\nb",
        "a\tb",
        "\x01",
        "\x1b[31m",
        "\x7f",
    ),
    *(
        "\u00e9",
        "e\u0301",
        "\u65e5\u672c",
        "\U0001f642",
        "\u202e",
        "\u00a0",
        "\u2028",
        "\udce9",
        "a#b",
        "a?b=c",
        "a&b",
        "a;b",
    ),
    *(
        "x" * 200,
        "x" * 255,
        "x" * 256,
        "\u65e5" * 86,
        "x.orbax-checkpoint-tmp",
        "state",
        "ocdbt.process_0",
        "5.partial",
        "5",
    ),
    *(
        "manifest.ocdbt",
        "checkpoints",
        "config.json",
        "run.lock",
        "NUL",
        "a@b",
        "\ufeff",
        "!",
        "lr=0.1,wd=1e-4",
    ),
)
LETTERS = [letter for letter in map(chr, range(32, 127)) if letter not in "/."]  # printable ASCII
NAMES = (*AWKWARD, *(f"a{letter}b" for letter in LETTERS), *LETTERS)
# Between two letters.
MUST_WORK = set(string.ascii_letters + string.digits + " !\"#$%&'()+,-.:;<=>@]^_`{|}~")


def names(tries: int, work: Path, seed: int = 0, chosen: Sequence[str] = ()) -> Tally:
    """A name as the run directory's, then as its parent's, and so on."""
    tally = Tally(
        "run directories of awkward names, interrupted and resumed",
        "refused at once, nothing left; or the same end",
    )
    expected = reference(work)
    cases = [(name, parent) for parent in (False, True) for name in chosen or NAMES]
    if not chosen:
        random.Random(seed).shuffle(cases)
    refused: set[str] = set()
    for number, (name, parent) in enumerate(cases[: tries or None]):
        out = work / f"named-{number}" / name / ("run" if parent else "")
        tally.attempt(
            f"{name!a}, parent: {parent}", functools.partial(_same, out, name, expected, refused)
        )
    tally.note = f"({len(refused)} names refused)"
    return tally


def _may_be_refused(name: str) -> bool:
    return not set(name) <= MUST_WORK or name.endswith(":") or len(name) > 255


def _same(out: Path, name: str, expected: tuple[object, ...], refused: set[str]) -> bool:
    """Train, interrupt after three steps, and resume: whether the end is equal or nothing began."""

    def interrupt(step: int, total: int, note: str) -> None:
        if step >= 3:
            raise KeyboardInterrupt

    try:
        train(CONFIG, out, OPTIONS, programs=programs(), report=interrupt, say=lambda line: None)
    except KeyboardInterrupt:
        complete(out)
        return outcome(out) == expected
    except InputError as error:
        refused.add(name)
        one_line = len(str(error).splitlines()) == 1 and str(error).isprintable()
        return one_line and _may_be_refused(name) and not out.parent.exists()
    return False
