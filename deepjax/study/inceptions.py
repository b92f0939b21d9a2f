"""The Inception module of a lecture's slide, naive and with bottleneck: alone, what a training step of it takes, in a network."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from deepjax.analysis import init_variables
from deepjax.errors import require, unknown_name_error
from deepjax.models.googlenet import Inception, Row, Unit, conv_unit
from deepjax.models.layers.basic import conv_factory
from deepjax.models.layers.initializers import he_normal
from deepjax.models.layers.norms import norm_factory
from deepjax.models.layers.pooling import global_avg_pool, max_pool

# cs231n 2017, lecture 9: the module on 28 x 28 x 256 with which the cost of both kinds is worked out.
SLIDE, SLIDE_INPUT = (
    Row(conv1x1=128, reduce3x3=64, conv3x3=192, reduce5x5=64, conv5x5=96, project=64),
    (28, 28, 256),
)
BRANCHES = {
    "1x1": ("conv1x1",),
    "3x3": ("reduce3x3", "conv3x3"),
    "5x5": ("reduce5x5", "conv5x5"),
    "pool": ("project",),
}


def slide_module(reduce: bool) -> Inception:
    """The slide's module; `reduce=False` is the naive one."""
    conv, norm = (
        conv_factory(he_normal, jnp.float32, jnp.float32),
        norm_factory("none", False, "global", jnp.float32, jnp.float32),
    )
    return Inception(SLIDE, 5, reduce, conv_unit(conv, norm))


class InceptionNet(nn.Module):
    """A 3x3 convolution; the slide's module, a 3x3 max pool of stride 2, the module again; average pool; linear. With batch norm.

    images: (batch, height, width, channels) -> float32 logits (batch, num_classes). `width`: filters of the first convolution, 256
    where the first module has the slide's input; the modules' filters scale with it. `reduce=False`: naive modules.
    `without`: branches of `BRANCHES` that both modules lack. Raises InputError for another, and for a naive module's pool.
    """

    num_classes: int = 10
    width: int = 32
    reduce: bool = True
    without: tuple[str, ...] = ()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        for branch in self.without:
            if branch not in BRANCHES:
                raise unknown_name_error("branch", branch, BRANCHES)
        require(
            self.reduce or "pool" not in self.without,
            "without",
            self.without,
            "no 'pool' in naive modules",
        )
        conv = conv_factory(he_normal, self.dtype, jnp.float32)
        unit = conv_unit(conv, norm_factory("batch", train, "global", self.dtype, jnp.float32))
        row = Row(*(max(1, filters * self.width // SLIDE_INPUT[2]) for filters in SLIDE))
        x = unit(jnp.asarray(images, self.dtype), self.width, 3, "stem_conv")
        x = Inception(row, 5, self.reduce, _cut(unit, self.without), name="inception1")(x)
        x = max_pool(x, 3, 2, padding=1)
        x = Inception(row, 5, self.reduce, _cut(unit, self.without), name="inception2")(x)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(global_avg_pool(x))


def _cut(unit: Unit, without: tuple[str, ...]) -> Unit:
    """The unit, but one of a branch that is left out returns no channels: the module's concatenation then lacks it."""
    gone = {name for branch in without for name in BRANCHES[branch]}

    def cut(x: Array, features: int, kernel: int, name: str) -> Array:
        return x[..., :0] if name in gone else unit(x, features, kernel, name)

    return cut


class TrainingStep:
    """Forward and backward pass of a module of the slide, compiled: gradients of its parameters and of its input."""

    def __init__(self, reduce: bool, batch: int, seed: int) -> None:
        model, (init_key, key) = slide_module(reduce), jax.random.split(jax.random.key(seed))
        self._x = jax.random.normal(key, (batch, *SLIDE_INPUT))
        self._variables = init_variables(model, init_key, self._x.shape)

        def loss(variables: Any, x: Array) -> Array:
            maps: Any = model.apply(variables, x)
            return jnp.mean(jnp.square(maps))

        step = jax.jit(jax.grad(loss, argnums=(0, 1)))
        self._compiled = step.lower(self._variables, self._x).compile()
        plan: Any = self._compiled.memory_analysis()
        self.temporary_bytes = int(plan.temp_size_in_bytes)
        """The most that is alive during the step, beside arguments and results, as the compiler says."""

    def __call__(self) -> None:
        """Run it once, to the end."""
        jax.block_until_ready(self._compiled(self._variables, self._x))


def median_seconds(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median time of each, taken in turns so that what else the machine does falls on all alike; the first turn does not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(each[1:]) for name, each in times.items()}
