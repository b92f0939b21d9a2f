"""Configurations that changed, and input that makes no sense."""

import contextlib
import dataclasses
import io
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from deepjax.command import parse
from deepjax.data import dataset_info, source
from deepjax.errors import InputError
from deepjax.training import TrainConfig, train
from experiments.train import Options
from tests.faults.runs import CONFIG, OPTIONS, complete, outcome
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
    """The run's directory with one field changed: refused by the field's name, and nothing is touched."""
    tally = Tally("changed configuration on resume", "refused by field name")
    out = work / "changed"
    complete(out)
    before = outcome(out)
    for field, value in list(CHANGES.items())[: tries or None]:
        try:
            train(dataclasses.replace(CONFIG, **{field: value}), out, OPTIONS)
            tally.count(False, f"{field}: accepted")
        except InputError as error:
            tally.count(f"{field} is " in str(error) and outcome(out) == before, f"{field}: {error}")
    return tally


def fuzz(tries: int, work: Path, seed: int = 0) -> Tally:
    """Random configurations, command lines and images: a result, or an error of one line."""
    tally = Tally("fuzzed configurations, command lines, images", "documented errors only, exit 2, no traceback")
    rng = random.Random(seed)
    makers: list[tuple[str, Callable[[random.Random], object]]] = [
        ("configuration", _configuration),
        ("image", _image),
        ("configuration", _configuration),
        ("image", _image),
        ("command line", _command_line),
    ]
    refused = 0
    for turn in range(tries):
        kind, make = makers[turn % len(makers)]
        state = rng.getstate()
        try:
            make(rng)
            tally.count(True, "")
        except InputError as error:
            refused += 1
            tally.count("\n" not in str(error) and len(str(error)) < 4000, f"{kind}: {error}")
        except SystemExit as stop:  # --help
            tally.count(not stop.code, f"{kind}: exit {stop.code}")
        except BaseException as error:  # whatever else comes out is what this looks for
            tally.count(False, f"{kind} at {hash(state)}: {type(error).__name__}: {error}"[:300])
    tally.note = f"({refused} refused)"
    return tally


def _value(rng: random.Random) -> Any:
    numbers = [0, 1, -1, 2, 128, 10**9, -(2**63), 2**64, 0.5, -0.1, 1e-30, 1e300, float("inf"), float("nan")]
    return rng.choice([*numbers, "", "digits", "../..", "a" * 300, "\x00", "é", "cifar_resnet20"])


def _configuration(rng: random.Random) -> object:
    """A configuration with up to four odd values of their fields' types."""
    fields = {"model": "cifar_resnet20"}
    for field in rng.sample(dataclasses.fields(TrainConfig), rng.randrange(1, 5)):
        if field.name == "milestones":
            fields[field.name] = tuple(value for value in (_value(rng), _value(rng)) if isinstance(value, int | float))
            continue
        value = _value(rng)
        wanted = str if field.name in ("model", "dataset") else float if field.type is float else int
        if isinstance(value, wanted) or (wanted is float and isinstance(value, int)):
            fields[field.name] = value
    config = TrainConfig(**fields)
    return config.total_steps, config.input_shape


def _command_line(rng: random.Random) -> object:
    """An argument list of known and unknown flags with odd values."""
    names = [field.name.replace("_", "-") for field in dataclasses.fields(TrainConfig)]
    arguments = ["--model", "cifar_resnet20", "--out", "runs/x"]
    for _ in range(rng.randrange(4)):
        noise = "".join(rng.choices(string.printable.strip(), k=rng.randrange(12)))
        arguments += [rng.choice([f"--{rng.choice(names)}", f"--{noise}", noise, "--", "-h", "--hosts.processes"])]
        arguments += [str(_value(rng))] * rng.randrange(2)
    with contextlib.redirect_stdout(io.StringIO()):
        return parse(Options, arguments)


def _image(rng: random.Random) -> object:
    """A PNG or JPEG of the right or another size, with some bytes changed, cut, or made up."""
    size = rng.choice([(8, 8), (8, 9), (1, 1), (300, 300)])
    file = io.BytesIO()
    Image.new(rng.choice(["L", "RGB"]), size, 7).save(file, rng.choice(["PNG", "JPEG", "BMP", "GIF"]))
    content = bytearray(file.getvalue())
    for _ in range(rng.randrange(6)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    cut = rng.choice([len(content), rng.randrange(len(content)), 0])
    return source._read([{"image": bytes(content[:cut]), "label": 1}], 0, dataset_info("digits"), "train")
