"""The speedrun: its network, its recipes, and one training; see experiments/speedrun.py."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from deepjax.data import Dataset, Split, dataset_info
from deepjax.data.augment.basic import normalize, resize
from deepjax.models.layers.basic import conv_factory
from deepjax.models.layers.initializers import he_normal
from deepjax.models.layers.norms import BatchNorm
from deepjax.models.layers.pooling import max_pool
from deepjax.training import (
    CompiledTraining,
    RunOptions,
    TrainConfig,
    compile_training,
    train_config,
)
from deepjax.training.resident import ResidentTraining, require_arrays
from deepjax.training.step.state import TrainState, eval_variables

Technique = Literal[
    "muon", "whitening", "progressive_resizing", "label_smoothing", "averaging", "test_flips"
]
TECHNIQUES = frozenset[str](get_args(Technique))


class SpeedrunNetwork(nn.Module):
    """Stages of 3x3 convolutions with a max pool between them, each in a sum where it can be.

    As in airbench (Jordan 2024, arXiv:2404.00498) the stem's filters are the principal components
    of patches, with either sign. `stem`: the side of its kernel and its stride.
    """

    stem: tuple[int, int]
    stages: tuple[tuple[int, ...], ...]
    num_classes: int = 10
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        conv = conv_factory(he_normal, self.dtype, jnp.float32)
        norm = functools.partial(BatchNorm, train=train, dtype=self.dtype, momentum=0.8)
        side, stride = self.stem
        filters = 2 * side**2 * images.shape[-1]
        x = jnp.asarray(images, self.dtype)
        x = nn.relu(norm(name="stem_norm")(conv(filters, side, stride, name="stem")(x)))
        for i, stage in enumerate(self.stages, 1):
            x = max_pool(x, 2, 2) if i > 1 else x
            for j, channels in enumerate(stage, 1):
                y = conv(channels, name=f"stage{i}_conv{j}")(x)
                y = nn.relu(norm(name=f"stage{i}_norm{j}")(y))
                x = x + y if j > 1 and x.shape == y.shape else y
        x = jnp.mean(x.astype(jnp.float32), (1, 2))
        return nn.Dense(self.num_classes, name="classifier")(x)


@dataclasses.dataclass(frozen=True)
class SpeedrunRecipe:
    """How the network is trained on one data set."""

    target: float
    """Test accuracy in per cent."""
    stem: tuple[int, int]
    stages: tuple[tuple[int, ...], ...]
    steps: int
    options: Mapping[str, Any]
    """Of `train_config`, with every technique or none."""
    muon_rate: float
    sgd_rate: float
    sizes: tuple[int, ...]
    """Image sizes of progressive resizing."""
    crop: int
    """Pixels of padding of a random crop."""
    without: frozenset[str] = frozenset({"progressive_resizing"})
    """Techniques that do not gain here."""

    @property
    def techniques(self) -> frozenset[str]:
        """The techniques that are used."""
        return TECHNIQUES - self.without

    @property
    def layers(self) -> int:
        """Layers with weights, in sequence: stem, convolutions and classifier."""
        return 2 + sum(map(len, self.stages))


BASE = {"warmup_epochs": 0.0, "schedule": "linear", "weight_decay": 0.0}
RECIPES = {
    "fashion_mnist_small": SpeedrunRecipe(
        88.0, (4, 2), ((32, 32), (32, 32, 32, 32)), 560, BASE | {"batch_size": 128},
        muon_rate=0.05, sgd_rate=0.1, sizes=(12, 14), crop=0,
        without=frozenset({"averaging", "progressive_resizing"}),
    ),
    "fashion_mnist": SpeedrunRecipe(
        93.5, (3, 1), ((64, 64), (128, 128), (256, 256)), 2340,
        BASE | {"batch_size": 256, "precision": "bfloat16"},
        muon_rate=0.05, sgd_rate=0.4, sizes=(20, 24, 28), crop=2,
    ),
    "cifar10": SpeedrunRecipe(
        94.0, (2, 1), ((64, 64), (256, 256), (256, 256)), 2000,
        BASE | {"batch_size": 256, "precision": "bfloat16"},
        muon_rate=0.05, sgd_rate=0.4, sizes=(24, 28, 32), crop=2,
    ),
}  # fmt: skip


def technique_options(
    recipe: SpeedrunRecipe, techniques: frozenset[str], steps: int
) -> dict[str, Any]:
    """The options of `train_config` with these techniques."""
    muon = "muon" in techniques
    return {
        **recipe.options,
        "steps": steps,
        "optimizer": "muon" if muon else "sgd",
        "learning_rate": recipe.muon_rate if muon else recipe.sgd_rate,
        "freeze": ("stem/*",) if "whitening" in techniques else (),
        "progressive_sizes": recipe.sizes if "progressive_resizing" in techniques else (),
        "label_smoothing": 0.2 if "label_smoothing" in techniques else 0.0,
        "ema_decay": 0.95 if "averaging" in techniques else 0.0,
    }


def whitening_kernel(images: np.ndarray, dataset: Dataset, side: int) -> np.ndarray:
    """Filters whose outputs are uncorrelated with variance near 1, and their negatives.

    images: (images, height, width, channels) uint8 -> (side, side, channels, 2 side^2 channels).
    From the first 2,000 images; 0.01 is added to each variance, so that noise is not amplified.
    """
    scaled = np.asarray(normalize(jnp.asarray(images[:2000]), dataset))
    windows = np.lib.stride_tricks.sliding_window_view(scaled, (side, side), axis=(1, 2))
    rows = np.moveaxis(windows[:, ::2, ::2], 3, 5).reshape(-1, side**2 * scaled.shape[-1])
    variances, components = np.linalg.eigh(rows.T @ rows / len(rows))
    filters = (components / np.sqrt(variances + 0.01)).reshape(side, side, scaled.shape[-1], -1)
    return np.concatenate([filters, -filters], axis=-1)


@dataclasses.dataclass(frozen=True)
class Speedrun:
    """The compiled programs of a recipe."""

    recipe: SpeedrunRecipe
    techniques: frozenset[str]
    programs: CompiledTraining
    resident: ResidentTraining
    train_split: Split
    test_split: Split
    predict: Callable[..., Array]
    """(params, batch_stats, uint8 images) -> the classes."""

    def train(self, seed: int) -> tuple[float, float]:
        """Test accuracy in per cent of one training, and its seconds."""
        made, split, test = self.programs, self.train_split, self.test_split
        config = dataclasses.replace(made.config, seed=seed)
        put = made.partitioner.put_replicated
        began = time.perf_counter()
        data = {"image": put(split.images), "label": put(split.labels)}
        state = made.fresh_state(config)
        if "whitening" in self.techniques:
            kernel = whitening_kernel(split.images, made.dataset, self.recipe.stem[0])
            state = state.replace(params=state.params | {"stem": {"kernel": put(kernel)}})
        state = self._take_steps(config, data, state)
        variables = eval_variables(state)
        chunks = np.array_split(test.images, -(-len(test.images) // 2000))
        found = [self.predict(*variables, chunk) for chunk in chunks]
        right = np.concatenate(jax.device_get(found)) == test.labels
        return 100 * float(right.mean()), time.perf_counter() - began

    def _take_steps(
        self, config: TrainConfig, data: Mapping[str, Array], state: TrainState
    ) -> TrainState:
        """All steps, as many at a time as a program takes; none is waited for."""
        made, capacity, done = self.programs, self.resident.capacity, 0
        while done < made.plan.total_steps:
            count = min(capacity, made.plan.steps_left_of_part(done))
            ids = np.zeros((capacity, config.batch_size), np.int32)
            ids[:count] = [made.example_ids(config, done + row) for row in range(count)]
            take = self.resident.take_by_size[made.plan.image_size(done)]
            state, _ = take(state, data, made.partitioner.put_ids(ids), np.int32(count))
            done += count
        return state


def compile_speedrun(
    name: str, techniques: frozenset[str], steps: int = 0, data_dir: str | None = None
) -> Speedrun:
    """Compile a recipe with some techniques. steps: 0 for its own."""
    recipe = RECIPES[name]
    config = train_config(
        "own/speedrun", name, **technique_options(recipe, techniques, steps or recipe.steps)
    )
    made = compile_training(
        config,
        RunOptions(resident=True, data_dir=data_dir),
        make=functools.partial(SpeedrunNetwork, recipe.stem, recipe.stages),
        dataset=dataclasses.replace(dataset_info(name), crop=recipe.crop),
    )
    resident = cast(ResidentTraining, made.resident)  # as it was asked for
    train, test = (require_arrays(config, split) for split in (made.train_split, made.test_split))

    @jax.jit
    def predict(params: Any, batch_stats: Any, images: Array) -> Array:
        variables = {"params": params, "batch_stats": batch_stats}
        x = resize(normalize(images, made.dataset), config.eval_resize)
        views = (x, x[:, :, ::-1]) if "test_flips" in techniques else (x,)
        logits = [jnp.asarray(made.model.apply(variables, view)) for view in views]
        return jnp.argmax(sum(logits[1:], logits[0]), -1)

    return Speedrun(recipe, techniques, made, resident, train, test, predict)
