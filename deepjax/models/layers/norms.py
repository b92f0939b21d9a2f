"""Normalisation layers: batch (global, per replica or ghost batches), group, or none."""

import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

from deepjax.errors import InputError, require
from deepjax.models.layers import valid_region
from deepjax.models.layers.basic import ModuleDef
from deepjax.models.layers.input_checks import at_least_float32

Norm = Literal["batch", "group", "none"]
Scope = Literal["global", "replica"] | int


PMAP_AXIS = "data"  # the axis of pmap over which the global batch is sharded


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) over all axes but the last; float32 statistics.

    `bn_scope`: whose statistics are used. "global" is the global batch, on any number of devices; a
    number is a ghost batch of that many consecutive images (Hoffer et al. 2017, arXiv:1705.08741);
    "replica" is each device's slice of the batch under the mesh set by `jax.set_mesh`, or under
    pmap over an axis "data". With several groups the running averages use the mean of their
    statistics. Parameters and statistics have the names of `flax.linen.BatchNorm`, and results are
    equal up to rounding. Unlike it this layer promotes no dtype implicitly, and is applied as one
    multiply-add in float32, whatever `dtype` the result has. Running averages change by 1 -
    `momentum` per step; the defaults are those of the released ResNets and torchvision. The
    variance is E[x^2] - E[x]^2 in one pass, at least 0. Its relative rounding error is 6e-8 (mean /
    std)^2: in float32 the standard deviation of the output is off by up to 1 % from a ratio of mean
    to std of 300 per channel on, by 10 % from 1000, and is meaningless beyond; behind a convolution
    of normalised images the ratio is a few. Subtract the mean of such inputs first. A second pass
    would take 1.5 to 1.8 times as long on a CPU, over ResNet-50's norms with their gradients.
    Raises InputError when the scope does not divide the batch, and for a single value per channel
    in training.
    """

    train: bool
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    momentum: float = 0.9
    epsilon: float = 1e-5
    bn_scope: Scope = "global"
    scale_init: Any = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1],)
        wide = at_least_float32(self.dtype)
        scale = self.param("scale", self.scale_init, shape, self.param_dtype).astype(wide)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype).astype(wide)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, wide)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, wide)
        if not self.train:
            mean, var = running_mean.value.astype(wide), running_var.value.astype(wide)
            return _multiply_add(x, mean, var, scale, bias, self.epsilon).astype(self.dtype)

        axis = PMAP_AXIS if self.bn_scope == "global" and _is_in_pmap(PMAP_AXIS) else None

        def normalize(x: Array) -> tuple[Array, Array, Array]:
            x = x.astype(wide)
            mean, var = moments(x, axis)
            return _multiply_add(x, mean, var, scale, bias, self.epsilon), mean, var

        groups = _groups(self.bn_scope, x.shape[0])
        if not self.is_initializing():
            _check_values_per_channel(x, groups, axis)
        if groups == 1:
            y, mean, var = normalize(x)
        else:
            y, mean, var = jax.vmap(normalize)(
                x.reshape(groups, x.shape[0] // groups, *x.shape[1:])
            )
            y, mean, var = y.reshape(x.shape), jnp.mean(mean, 0), jnp.mean(var, 0)
        if not self.is_initializing():
            running_mean.value = (
                self.momentum * running_mean.value.astype(wide) + (1 - self.momentum) * mean
            )
            running_var.value = (
                self.momentum * running_var.value.astype(wide) + (1 - self.momentum) * var
            )
        return y.astype(self.dtype)


class GroupNorm(nn.Module):
    """Group normalisation (Wu and He 2018, arXiv:1803.08494) of each image, in float32.

    There are 32 groups of channels, or as many as divide. Parameters have the names of
    `flax.linen.GroupNorm`.
    """

    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    groups: int = 32
    epsilon: float = 1e-5
    scale_init: Any = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if valid_region.is_active():
            raise InputError(
                "group normalisation takes statistics of full maps; apply it to images of one "
                "shape, outside of valid_region()"
            )
        channels = x.shape[-1]
        wide = at_least_float32(self.dtype)
        scale = self.param("scale", self.scale_init, (channels,), self.param_dtype).astype(wide)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype).astype(wide)
        groups = math.gcd(self.groups, channels)
        grouped = x.astype(wide).reshape(*x.shape[:-1], groups, channels // groups)
        axes = (*range(1, x.ndim - 1), x.ndim)
        mean = jnp.mean(grouped, axes, keepdims=True)
        var = jnp.mean(jnp.square(grouped - mean), axes, keepdims=True)
        normal = ((grouped - mean) * lax.rsqrt(var + self.epsilon)).reshape(x.shape)
        broadcast = (1,) * (x.ndim - 1) + (channels,)
        return (normal * scale.reshape(broadcast) + bias.reshape(broadcast)).astype(self.dtype)


class Identity(nn.Module):
    """No normalisation: the input unchanged."""

    scale_init: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return x


def norm_factory(
    norm: Norm,
    train: bool,
    bn_scope: Scope,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    epsilon: float = 1e-5,
) -> ModuleDef:
    """A factory of the chosen normalisation, called with `name` and `scale_init`.

    Raises InputError for another choice.
    """
    known = bn_scope in ("global", "replica") or (isinstance(bn_scope, int) and bn_scope >= 1)
    require(known, "bn_scope", bn_scope, "'global', 'replica', or a number of images, 1 or more")
    if norm == "batch":
        return partial(
            BatchNorm,
            train=train,
            bn_scope=bn_scope,
            dtype=dtype,
            param_dtype=param_dtype,
            epsilon=epsilon,
        )
    if norm == "group":
        return partial(GroupNorm, dtype=dtype, param_dtype=param_dtype, epsilon=epsilon)
    if norm == "none":
        return Identity
    raise InputError(f"norm is {norm!r}; allowed: 'batch', 'group', 'none'")


def moments(x: Array, axis: str | None = None) -> tuple[Array, Array]:
    """Mean and biased variance over all axes but the last, in one pass: (channels,) each.

    x: (..., channels) float32. axis: also over the devices of that pmap axis.
    """
    axes = tuple(range(x.ndim - 1))
    mean, square = jnp.mean(x, axes), jnp.mean(_square(x), axes)
    if axis is not None:
        mean, square = lax.pmean((mean, square), axis)
    return mean, jnp.maximum(square - jnp.square(mean), 0.0)


@jax.custom_jvp
def _square(x: Array) -> Array:
    """Square whose backward pass keeps only x; jnp.square's keeps 2 x too, per scanned block."""
    return x * x


@_square.defjvp
def _square_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents
    return _square(x), 2 * (x * t)


def _is_in_pmap(axis: str) -> bool:
    """Whether this is traced by pmap over an axis of that name."""
    try:
        lax.axis_size(axis)
    except NameError:
        return False
    return True


def _multiply_add(
    x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float
) -> Array:
    factor = lax.rsqrt(var + epsilon) * scale
    broadcast = (1,) * (x.ndim - 1) + (-1,)
    return x.astype(factor.dtype) * factor.reshape(broadcast) + (bias - mean * factor).reshape(
        broadcast
    )


def _check_values_per_channel(x: Array, groups: int, axis: str | None) -> None:
    """Raise InputError for a single value per channel: its normalised value and gradients are 0."""
    values = math.prod(x.shape[:-1]) // groups * (1 if axis is None else lax.axis_size(axis))
    if values == 1:
        raise InputError(
            f"BatchNorm has one value per channel to train on (input {x.shape} in {groups} groups, "
            "each with its own statistics); its output and gradients are 0; allowed: two or more: "
            "a larger batch, larger images, or another bn_scope"
        )


def _groups(bn_scope: Scope, batch: int) -> int:
    """Number of groups of images with statistics of their own."""
    if bn_scope == "global":
        return 1
    if bn_scope == "replica":
        # under pmap the batch is the replica's already
        groups = 1 if _is_in_pmap(PMAP_AXIS) else max(1, jax.sharding.get_abstract_mesh().size)
        if batch % groups:
            raise InputError(
                f"bn_scope is 'replica' on {groups} devices; the batch of {batch} images must be a "
                "multiple of that"
            )
        return groups
    if isinstance(bn_scope, int) and bn_scope > 0 and batch % bn_scope == 0:
        return batch // bn_scope
    raise InputError(
        f"bn_scope is {bn_scope!r}; allowed: 'global', 'replica', or a number of images that "
        f"divides the batch of {batch}"
    )
