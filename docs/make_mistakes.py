"""Runs commands with a mistake each, and writes their messages to docs/mistakes.md.

    python docs/make_mistakes.py

Each command runs in a new folder that has `photos` (three classes), `one_class`, `empty`,
`notes.txt`, `resnet20.safetensors`, and a finished run in `runs/a`.
"""

import contextlib
import io
import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from deepjax.cli.__main__ import start
from deepjax.errors import InputError

PAGE = Path(__file__).with_name("mistakes.md")
RUN = "deepjax train --model cifar_resnet20 --width 2 --steps 1 --batch-size 8 --output-dir runs/a"
TRAIN = "deepjax train --model cifar_resnet20 --output-dir runs/b"
MISTAKES = {
    "Commands and options": (
        "deepjax tain --model cifar_resnet20",
        "deepjax train --model cifar_resnet20",
        f"{TRAIN} --lr 0.1",
        f"{TRAIN} --workers 4",
        f"{TRAIN} --resume",
        f"{TRAIN} --amp",
        f"{TRAIN} --num-classes 10",
        f"{TRAIN} --epochs 1.5",
        f"{TRAIN} --epochs 0",
        f"{TRAIN} --optimizer adam",
        f"{TRAIN} --loss bce",
        f"{TRAIN} --schedule cos",
        f"{TRAIN} --precision float16",
        f"{TRAIN} --learning-rate -0.1",
        f"{TRAIN} --ema-decay 1",
        f"{TRAIN} --batch-size 5000",
        f"{TRAIN} --strategy ddp",
        f"{TRAIN} --hosts.process 3",
        "deepjax train --recipe resnet50_a4 --output-dir runs/b",
    ),
    "Networks": (
        "deepjax train --model resnet20 --output-dir runs/b",
        "deepjax models resnet51",
        f"{TRAIN} --model-args widht=8",
        f"{TRAIN} --model-args 8",
        "deepjax train --model cifar_plain20 --drop-path 0.2 --output-dir runs/b",
        "deepjax train --model nets:Net --output-dir runs/b",
    ),
    "Data": (
        f"{TRAIN} --dataset cifar",
        f"{TRAIN} --dataset cifar10 --data-dir empty",
        f"{TRAIN} --dataset phots",
        f"{TRAIN} --dataset notes.txt",
        f"{TRAIN} --dataset empty",
        f"{TRAIN} --dataset one_class",
        f"{TRAIN} --dataset digits --test-fraction 0.1",
        f"{TRAIN} --dataset photos --test-fraction 1",
        "deepjax data check nowhere",
        "deepjax data prepare digits",
        "deepjax data prepare cifar",
    ),
    "Weights": (
        f"{TRAIN} --weights missing.safetensors",
        "deepjax train --model resnet18 --weights resnet20.safetensors --output-dir runs/b",
        f"{TRAIN} --weights runs/a --width 2 --freeze 'stage9*'",
        f"{TRAIN} --weights runs/a --width 2 --rate-factors 'stage1*'",
        "deepjax evaluate resnet50 --weights 'torchvision IMAGENET1K_V2'",
    ),
    "Run directories": (
        f"{TRAIN.replace('runs/b', 'http://host/run')}",
        f"{TRAIN.replace('runs/b', 'notes.txt')}",
        f"{RUN} --epochs 20",
        f"{RUN.replace('--steps 1', '--steps 2')}",
        "deepjax evaluate",
        "deepjax evaluate --run runs/none",
        "deepjax evaluate --run runs/a --protocol 10-crop",
        "deepjax export runs/none --output-dir exported",
        "deepjax predict missing.jpg --run runs/a",
        "deepjax predict photos --run runs/a --output notes.txt",
        "deepjax runs show photos",
        "deepjax runs list empty",
        "deepjax runs compare runs/a",
        "deepjax report photos",
    ),
}


def write_inputs(folder: Path) -> None:
    """The files that the commands name, in a folder that is the current one."""
    from deepjax.models import create_model
    from deepjax.models.weights.convert import save_safetensors

    rng = np.random.default_rng(0)
    for name in ("photos/cat", "photos/dog", "photos/owl", "one_class/cat"):
        (folder / name).mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(0, 256, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("notes\n")
    import jax
    import jax.numpy as jnp

    model = create_model("cifar_resnet20", width=2)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    save_safetensors("resnet20.safetensors", "cifar_resnet20", variables, width=2)
    message(RUN)


def message(command: str) -> str:
    """What a command that is refused says; "" for one that is not."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            start(shlex.split(command)[1:])
        except InputError as error:
            return f"error: {error}"
    return ""


@contextlib.contextmanager
def inputs() -> Iterator[Path]:
    """A new current folder with the files that the commands name."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        os.chdir(folder)
        try:
            write_inputs(folder)
            yield folder
        finally:
            os.chdir(before)


def page(folder: Path) -> str:
    """The page, from the messages of every command in a folder made by `inputs`."""
    parts = [HEADER]
    for subject, commands in MISTAKES.items():
        parts.append(f"## {subject}\n")
        for command in commands:
            found = message(command).replace(f"{folder}/", "")
            parts.append(f"    $ {command}\n    {found}\n")
    return "\n".join(parts)


HEADER = """# Mistakes and their messages

Every command below is refused with exit code 2 and one line that names what was given, what is
allowed, and what to do. A command that is refused before its first step leaves nothing behind, so
that the corrected one can use the same `--output-dir`. A test runs every command of this page.
`python docs/make_mistakes.py` writes it.
"""

if __name__ == "__main__":
    with inputs() as there:
        PAGE.write_text(page(there))
