"""Who reads which pages, what lies there before, and what cannot be run here."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from tests.first_hour.blocks import Block, Kind


@dataclasses.dataclass(frozen=True)
class Part:
    """The blocks of a page that one user types."""

    page: str
    headings: tuple[str, ...] = ()
    """Of the sections; () is all."""
    kinds: tuple[Kind, ...] = ("shell", "python", "file")
    continues: bool = False
    """In the folder and the Python session of the part before, as the page says."""

    def has(self, block: Block) -> bool:
        """Whether a block belongs to this part."""
        return (
            block.page == self.page
            and block.kind in self.kinds
            and (not self.headings or block.heading in self.headings)
        )


@dataclasses.dataclass(frozen=True)
class User:
    """A reader with an environment of their own kind."""

    name: str
    environment: Literal["clone", "wheel"]
    parts: Sequence[Part]
    given: str = ""
    """Python that makes what the user already has, such as their images; it runs for each page."""
    then: Sequence[tuple[str, str]] = ()
    """Commands of their own after the first page, each with what it is."""


@dataclasses.dataclass(frozen=True)
class NotRun:
    """Commands or Python that begin with, or contain, a text; and why they are not run."""

    text: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Change:
    """A text in the place of another, and why."""

    old: str
    new: str
    reason: str


PHOTOS = """
from pathlib import Path
from shutil import copy
import jax, numpy as np
from PIL import Image
import deepjax
from deepjax.models.weights.convert import save_safetensors
samples = np.random.default_rng(0)
for label, name in enumerate(("ant", "bee", "cat")):
    for split, count in (("photos", 40), ("new", 2)):
        folder = Path(split, name) if split == "photos" else Path(split)
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = samples.integers(0, 128, (40, 36, 3)) + 127 * np.eye(3, dtype=int)[label]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}{i}.jpg")
copy("new/ant0.jpg", "holiday.jpg")
"""
WEIGHTS = """
for name in ("resnet18", "googlenet_tv"):
    model = deepjax.create_model(name)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    save_safetensors(f"{name}.safetensors", name, variables)
"""
PRETRAINED = """
import jax, numpy as np
import deepjax
from deepjax.models.weights.convert import save_safetensors
variables = jax.jit(deepjax.create_model("resnet50").init)(
    jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
save_safetensors("given.safetensors", "resnet50", variables)
"""
USERS = (
    User(
        "student",
        "clone",
        [Part("README.md", ("deepjax",))],
        then=[
            ("test -s docs/results/README.md", "the page of verdicts is in the clone"),
            ("python experiments/receptive_field.py", "receptive fields"),
            (
                "sed -i 's/^DEPTHS = .*/DEPTHS = (8, 14, 26)/' deepjax/study/ladder.py",
                "other depths, as experiments/degradation.py says",
            ),
            (
                "python experiments/degradation.py --output-dir runs/other_depths",
                "the study with them",
            ),
        ],
    ),
    User(
        "researcher",
        "wheel",
        [Part("README.md", ("Use it",), ("python",)), Part("docs/instruments/index.md"),
         Part("docs/instruments/gradients.md", continues=True)],
        given=PRETRAINED,
        then=[("deepjax models 'vgg*'", "README"), ("deepjax models googlenet", "README")],
    ),
    User(
        "engineer",
        "clone",
        [Part("README.md", ("Use it",), ("shell",)), Part("docs/own_data.md"),
         Part("docs/fine_tuning.md")],
        given=PHOTOS + WEIGHTS,
        then=[
            ("deepjax evaluate --run runs/photos --output-dir runs/photos_evaluated", "evaluate"),
            ("deepjax report runs/photos", "report"),
        ],
    ),
)  # fmt: skip
INTERRUPTED = "deepjax train --model cifar_resnet20 --dataset digits --epochs 10"
"""The command that is interrupted once and typed again, as README says."""

NOT_RUN = (
    NotRun("make test", "its own target; minutes"),
    NotRun("make studies", "an hour or more"),
    NotRun("make reference", "PyTorch: its own target"),
    NotRun("deepjax data prepare", "archives of public data sets, by download"),
    NotRun("--dataset fashion_mnist ", "needs the prepared archives"),
    NotRun("--recipe resnet50_a3", "ImageNet"),
    NotRun("--dataset imagenet2012", "ImageNet"),
    NotRun("--run runs/a3", "needs the training on ImageNet"),
    NotRun("--preset small", "a judged study: tens of minutes"),
    NotRun("--preset gpu", "a GPU"),
    NotRun("srun", "SLURM"),
    NotRun("sbatch", "SLURM"),
    NotRun("squeue", "SLURM"),
    NotRun("--weights timm/", "no access to the Hugging Face hub"),
    NotRun("/shared", "a file system that several hosts share"),
    NotRun("gs://", "a bucket"),
    NotRun("gcloud", "a TPU pod"),
    NotRun("torchrun", "several GPUs"),
    NotRun("kubectl", "a Kubernetes cluster"),
    NotRun("docker", "no Docker daemon"),
    NotRun("source ", "the environment is active in each command"),
)
CHANGES = (
    Change('"timm/resnet50.a1_in1k"', '"given.safetensors"', "no access to the Hugging Face hub"),
    Change("--epochs 30", "--epochs 1 --image-size 64 --batch-size 32", "a CPU"),
    Change(
        "--dataset photos --output-dir",
        "--dataset photos --epochs 1 --image-size 64 --batch-size 32 --output-dir",
        "a CPU",
    ),
)


def tutorials(pages: Sequence[str]) -> list[User]:
    """A reader of each tutorial, who has nothing."""
    return [User(re.sub(r".*/|\.md", "", page), "clone", [Part(page)]) for page in pages]


def reason_not_run(block: Block) -> str:
    """Why a block is not run; empty if it is."""
    return next((each.reason for each in NOT_RUN if each.text in block.text), "")


def changed(text: str) -> tuple[str, list[str]]:
    """The text that is run, and what was changed for which reason."""
    notes = []
    for change in CHANGES:
        if change.old in text:
            text = text.replace(change.old, change.new)
            notes.append(f"{change.new.strip()} ({change.reason})")
    return text, notes
