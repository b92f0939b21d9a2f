"""Which images a finished run misclassifies: `misclassified.npz` in its run directory."""

import functools
import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from deepjax.data import Dataset, eval_batches
from deepjax.data.augment.basic import normalize, resize
from deepjax.data.split_spec import SplitName
from deepjax.errors import InputError
from deepjax.io import write_bytes
from deepjax.training import CompiledTraining, open_run

FILE = "misclassified.npz"
# What NumPy, zipfile and zlib raise for bytes that were changed.
CORRUPT = (
    OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error
)  # fmt: skip
SPLITS: tuple[SplitName, ...] = ("train", "test")


def write_misclassified(run_dir: Path, programs: CompiledTraining, make: Any = None) -> None:
    """Predict the first training images and all test images with a run's last checkpoint."""
    run = open_run(run_dir, make=make)
    limit = programs.config.data.eval_train_images or None
    found = {
        split: _misclassified(
            run.model, run.variables, programs, split, limit if split == "train" else None
        )
        for split in SPLITS
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **found)
    write_bytes(run_dir / FILE, buffer.getvalue())


def read_misclassified(run_dir: Path) -> dict[str, np.ndarray] | None:
    """For "train" and "test": (images,) bool; None where the file is missing.

    Raises InputError for a corrupt file.
    """
    path = run_dir / FILE
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {split: arrays[split] for split in SPLITS}
    except CORRUPT as error:
        raise InputError(f"{path} is corrupt; delete it, and the same command resumes") from error


def _misclassified(
    model: nn.Module,
    variables: Any,
    programs: CompiledTraining,
    split: SplitName,
    limit: int | None,
) -> np.ndarray:
    config, parts = programs.config, []
    for batch in eval_batches(programs.split(split), config.batch_size, max_examples=limit):
        given = (jnp.asarray(batch["image"]), jnp.asarray(batch["label"]))
        misclassified = _misclassified_in(
            model, programs.dataset, config.eval_resize, variables, *given
        )
        parts.append(np.asarray(misclassified)[batch["mask"] > 0])
    return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _misclassified_in(
    model: nn.Module, dataset: Dataset, size: int, variables: Any, images: Any, labels: Any
) -> Any:
    logits: Any = model.apply(variables, resize(normalize(images, dataset), size), train=False)
    return logits.argmax(-1) != labels
