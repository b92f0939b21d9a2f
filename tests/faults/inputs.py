"""Configurations that changed, and input that makes no sense."""

import contextlib
import functools
import io
import os
import string
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from hypothesis import HealthCheck
from hypothesis import strategies as st
from PIL import Image

from deepjax.cli.train import Options
from deepjax.command_line import parse
from deepjax.data import dataset_info, splits
from deepjax.errors import InputError
from deepjax.training import (
    AugmentationConfig,
    DataConfig,
    GuardConfig,
    ObjectiveConfig,
    OptimizationConfig,
    TrainConfig,
    train,
)
from deepjax.training.config import OPTION_GROUPS, replace_options, train_config
from deepjax.training.step.optimizers import make_optimizer, make_schedule
from tests.faults.runs import CONFIG, OPTIONS, ROOT, complete, outcome
from tests.faults.tally import Tally

CHANGES: dict[str, Any] = {
    "model": "cifar_resnet20",
    "dataset": "fashion_mnist",
    "epochs": 4,
    "steps": 3,
    "batch_size": 120,
    "learning_rate": 0.2,
    "optimizer": "adamw",
    "weight_decay": 0.0,
    "label_smoothing": 0.1,
    "precision": "bfloat16",
    "width": 4,
    "seed": 1,
}


def changed(tries: int, work: Path, seed: int = 0) -> Tally:
    """One changed field on resume: refused by the field's name, and nothing is modified."""
    tally = Tally("changed configuration on resume", "refused by field name")
    out = work / "changed"
    complete(out)
    before = outcome(out)
    for field, value in list(CHANGES.items())[: tries or None]:
        try:
            train(replace_options(CONFIG, **{field: value}), out, OPTIONS)
            tally.count(False, f"{field}: accepted")
        except InputError as error:
            tally.count(
                f"{field} is " in str(error) and outcome(out) == before, f"{field}: {error}"
            )
    return tally


def fuzz(tries: int, work: Path, seed: int = 0) -> Tally:
    """Configurations, command lines and images from hypothesis, some through the real command.

    Each gives a result, or an error of one line.
    """
    tally = Tally(
        "fuzzed configurations, command lines, images",
        "documented errors only, exit 2, no traceback",
    )
    refused: list[list[str]] = []
    images, lines = 2 * tries // 5, tries // 5
    counts = [
        _tried(tally, "configuration", _configurations(), _accept, tries - images - lines),
        _tried(tally, "image", _images(), _read, images),
        _tried(tally, "command line", _command_lines(), _parse, lines, refused),
    ]
    commands = refused[:: max(1, len(refused) // max(1, tries // REAL))][: tries // REAL]
    for arguments in commands:
        tally.attempt(f"command {arguments}", functools.partial(_exits_with_2, arguments))
    tally.note = f"({sum(counts)} refused; {len(commands)} by the real command)"
    return tally


REAL = 250  # inputs for each one that goes through the real command line
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.binary(max_size=4),
    st.sampled_from([
        "", "digits", "../..", "a" * 300, "\x00", "cifar_resnet20",
        10**9, -(2**63), 2**64, 1e-30, 1e300,
    ]),
)  # fmt: skip
ANYTHING = st.one_of(
    PLAIN,
    st.lists(PLAIN, max_size=3),
    st.lists(PLAIN, max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=3), PLAIN),
)


def _tried(
    tally: Tally,
    kind: str,
    inputs: st.SearchStrategy[Any],
    use: Callable[[Any], object],
    tries: int,
    refused: list[Any] | None = None,
) -> int:
    """Pass each input to `use` and count the outcomes; returns how many inputs were refused.

    Refused inputs are appended to `refused`.
    """
    refused = [] if refused is None else refused

    @hypothesis.settings(
        max_examples=tries,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(inputs)
    def once(given: Any) -> None:
        try:
            use(given)
            tally.count(True, "")
        except InputError as error:
            refused.append(given)
            tally.count("\n" not in str(error) and len(str(error)) < 4000, f"{kind}: {error}")
        except SystemExit as stop:  # --help
            tally.count(not stop.code, f"{kind}: exit {stop.code}")
        except Exception as error:  # whatever else comes out is what this looks for
            tally.count(False, f"{kind} {given!r}: {type(error).__name__}: {error}"[:300])

    if tries:
        once()
    return len(refused)


GROUPS = (
    TrainConfig,
    OptimizationConfig,
    DataConfig,
    AugmentationConfig,
    ObjectiveConfig,
    GuardConfig,
)


def _configurations() -> st.SearchStrategy[dict[str, Any]]:
    """Up to four fields: half of them of the right type, half of any, wrong types among them."""
    hints = {
        name: kind
        for owner in GROUPS
        for name, kind in typing.get_type_hints(owner).items()
        if name in OPTION_GROUPS
    }
    names = list(OPTION_GROUPS)
    sound = st.one_of([st.tuples(st.just(name), _of_kind(name, hints[name])) for name in names])
    odd = st.tuples(st.sampled_from(names), ANYTHING)
    chosen = st.one_of(
        st.lists(sound, min_size=1, max_size=4),
        st.lists(st.one_of(sound, odd), min_size=1, max_size=4),
    )
    return chosen.map(lambda pairs: {"model": "cifar_resnet20"} | dict(pairs))


def _of_kind(name: str, kind: Any) -> st.SearchStrategy[Any]:
    """Values that a field may have, and a few beyond its range."""
    if name in ("model", "dataset"):
        return st.sampled_from(
            {"model": ["cifar_plain20", "vgg11"], "dataset": ["digits", "cifar10"]}[name]
        )
    if name == "milestones":
        return st.lists(st.floats(0.01, 1), max_size=3, unique=True).map(sorted).map(tuple)
    if kind is float:
        return st.floats(0, 1)
    return (
        st.integers(0, 300) | st.sampled_from([-1, 10**9, 2**31, 2**63])
        if kind is int
        else st.from_type(kind)
    )


def _accept(fields: dict[str, Any]) -> object:
    """What an accepted configuration is for: lengths, shapes, the optimizer and the schedule."""
    config = train_config(**fields)
    state = make_optimizer(config).init(
        {"layer": {"kernel": np.zeros((2, 2), np.float32), "bias": np.zeros(2, np.float32)}}
    )
    return config.total_steps, config.input_shape, state, float(make_schedule(config)(0))


def _command_lines() -> st.SearchStrategy[list[str]]:
    """Known and unknown flags with odd values."""
    names = [f"--{name.replace('_', '-')}" for name in OPTION_GROUPS]
    noise = st.text(string.printable.strip(), max_size=12)
    flags = st.one_of(
        st.sampled_from([*names, "--", "-h", "--hosts.processes"]),
        noise,
        noise.map(lambda text: f"--{text}"),
    )
    options = st.tuples(flags, PLAIN.map(str)).map(list) | flags.map(lambda flag: [flag])
    start = ["--model", "cifar_resnet20", "--output-dir", "runs/x"]
    return st.lists(options, max_size=3).map(
        lambda chosen: start + [word for option in chosen for word in option]
    )


def _parse(arguments: list[str]) -> object:
    with contextlib.redirect_stdout(io.StringIO()):
        return parse(Options, arguments)


def _exits_with_2(arguments: list[str]) -> bool:
    """The real command refuses the arguments, which the parser refused, in one line."""
    passable = [word.replace("\x00", "").encode("utf-8", "replace").decode() for word in arguments]
    command = [sys.executable, str(ROOT / "experiments" / "train.py"), *passable]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    if (
        done.returncode != 2
        or not done.stderr.startswith("error: ")
        or len(done.stderr.splitlines()) != 1
    ):
        raise AssertionError(f"exit {done.returncode}: {done.stderr}")
    return True


@st.composite
def _images(draw: st.DrawFn) -> bytes:
    """A PNG or JPEG of the right or another size, with some bytes changed, cut, or made up."""
    size = draw(st.sampled_from([(8, 8), (8, 9), (1, 1), (300, 300)]))
    file = io.BytesIO()
    Image.new(draw(st.sampled_from(["L", "RGB"])), size, 7).save(
        file, draw(st.sampled_from(["PNG", "JPEG", "BMP", "GIF"]))
    )
    content = bytearray(file.getvalue())
    for place, value in draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=5)
    ):
        content[place] = value
    return bytes(content[: draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])


def _read(image: bytes) -> object:
    return splits._read([{"image": image, "label": 1}], 0, dataset_info("digits"), "train")
