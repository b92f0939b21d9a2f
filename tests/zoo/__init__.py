"""Small linen modules with unusual features, and what several test files need.

Inputs are (batch, 5) and outputs (batch, 3) unless a docstring says otherwise.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


class JitBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(4)(x))


class Jitted(nn.Module):
    """Two equal blocks and two equal activations of one nn.jit each, which linen traces once."""

    @nn.compact
    def __call__(self, x):
        block, act = nn.jit(JitBlock), nn.jit(Act)
        x = act(name="a0")(block(name="b0")(x))
        return nn.Dense(3)(act(name="a1")(block(name="b1")(x)))


class Act(nn.Module):
    """No parameters."""

    def __call__(self, x):
        return jnp.tanh(x)


class JittedMethod(nn.Module):
    """nn.jit as a decorator."""

    @nn.jit
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="out")(nn.relu(nn.Dense(4, name="in")(x)))


class Encoded(NamedTuple):
    mean: Any
    scale: Any


class Encoder(nn.Module):
    """Returns a NamedTuple, by a method of another name."""

    def setup(self):
        self.trunk, self.mean, self.scale = nn.Dense(4), nn.Dense(2), nn.Dense(2)

    def encode(self, x):
        x = self.trunk(x)
        return Encoded(self.mean(x), self.scale(x))


class Outputs(nn.Module):
    """An unordered dict with integers, a parameter, and a module used by methods only."""

    @nn.compact
    def __call__(self, x):
        code = Encoder(name="encoder").encode(x)
        parts = Parts(name="parts")(code.mean * jnp.exp(code.scale))
        (last, first, _) = parts.values()  # by order
        embed = nn.Embed(3, 2, name="embed")
        return embed.attend(last * self.param("gain", nn.initializers.ones, ()) + 2.0 * first)


class Parts(nn.Module):
    @nn.compact
    def __call__(self, x):
        return {"z": nn.Dense(2)(x), "a": x, "n": jnp.arange(3)}


class Lstm(nn.Module):
    """Both directions of an LSTM; cells and its parameters' modules return tuples."""

    @nn.compact
    def __call__(self, x):
        forward, backward = (
            nn.RNN(nn.OptimizedLSTMCell(3), name=name) for name in ("forward", "backward")
        )
        x = nn.Bidirectional(forward, backward)(jnp.stack([x, 2.0 * x, -x], axis=1))
        return nn.Dense(3)(x[:, -1])


class Energy(nn.Module):
    """Smooth, and linear in the end."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, name="out")(jnp.tanh(nn.Dense(4, name="in")(x)))[..., 0]


class Forces(nn.Module):
    """A force field: its output is a derivative of an inner network."""

    how: str = "grad"

    @nn.compact
    def __call__(self, x):
        energy = Energy(name="energy")
        x = x[:, :3]
        energy(x)  # parameters are made outside of transformations
        ones = jnp.ones_like(x)
        match self.how:
            case "grad":
                return -jax.grad(lambda x: jnp.sum(energy(x)))(x)
            case "value_and_grad":
                value, gradient = jax.value_and_grad(lambda x: jnp.sum(energy(x)))(x)
                return gradient + value
            case "vjp":
                return nn.vjp(lambda energy, x: energy(x), energy, x)[1](jnp.ones(len(x)))[1]
            case "jvp":
                return x * jax.jvp(energy, (x,), (ones,))[1][:, None]
            case "jacfwd":
                return jax.vmap(jax.jacfwd(energy))(x)
            case _:
                return jax.vmap(jax.hessian(energy))(x).sum(axis=1)


class Shapes(nn.Module):
    """Modules called with several output and argument shapes; one is named like a residual sum."""

    @nn.compact
    def __call__(self, x):
        head, mix = nn.Dense(3, name="head"), Mix(name="mix")
        x = x[:, :3]
        x = mix(mix(x, head(x)), x[:, :1])
        return x + head(jnp.stack([x, -x], axis=1)).mean(axis=1)


class Mix(nn.Module):
    def __call__(self, shortcut, branch):
        return shortcut + jnp.tanh(branch)


class LowRank(nn.Module):
    """flax's example of nn.share_scope: parameters of two modules in one place."""

    base: nn.Module

    def setup(self):
        nn.share_scope(self, self.base)

    @nn.compact
    def __call__(self, x):
        a = self.param("a", nn.initializers.normal(1.0), (x.shape[-1], 2))
        b = self.param("b", nn.initializers.normal(1.0), (2, 3))
        return self.base(x) + 3.0 + x @ a @ b


class Sharing(nn.Module):
    @nn.compact
    def __call__(self, x):
        return LowRank(nn.Dense(3))(nn.relu(nn.Dense(4)(x)))


class Child(JitBlock):
    """Calls its parent's call, and a helper of its own."""

    @nn.compact
    def __call__(self, x):
        return self.helped(super().__call__(x))

    def helped(self, x):
        return 2.0 * x


class Calls(nn.Module):
    """A child that calls its parent's method."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(Child(name="child")(x))


class Recursive(nn.Module):
    """Calls itself."""

    def setup(self):
        self.layer = nn.Dense(5)

    def __call__(self, x, depth=2):
        x = jnp.tanh(self.layer(x))
        return self(x, depth - 1) if depth else x


class Applies(nn.Module):
    """Applies an inner network with separate variables and the same module names."""

    @nn.compact
    def __call__(self, x):
        inner = JitBlock()
        weights = self.param("inner", lambda key: inner.init(key, x)["params"])
        return nn.Dense(3)(inner.apply({"params": weights}, x))


def _complex_normal(key, shape):
    real, imaginary = jax.random.normal(key, (2, *shape))
    return jax.lax.complex(real, imaginary)


class Complex(nn.Module):
    """Complex parameters, and a module that returns complex numbers."""

    @nn.compact
    def __call__(self, x):
        return jnp.abs(ComplexDense(name="complex")(x))


class ComplexDense(nn.Module):
    @nn.compact
    def __call__(self, x):
        w = self.param("w", _complex_normal, (x.shape[-1], 3))
        return x.astype(w.dtype) @ w


class Boxed(nn.Module):
    """Parameters in boxes of both kinds, and one that is a tree."""

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        x = nn.relu(nn.Dense(4, kernel_init=nn.with_partitioning(init, (None, "model")))(x))
        x = nn.Dense(3, kernel_init=nn.with_logical_partitioning(init, ("in", "out")))(x)
        scale, shift = self.param("affine", lambda key: (jnp.ones(3), jnp.zeros(3)))
        return x * scale[None] + shift[None]


class Normed(nn.Module):
    """Names of parameters with "/" in them."""

    @nn.compact
    def __call__(self, x):
        return nn.WeightNorm(nn.Dense(3))(nn.relu(nn.WeightNorm(nn.Dense(4))(x)))


class Unused(nn.Module):
    """A layer without influence on the loss, and an integer parameter."""

    @nn.compact
    def __call__(self, x):
        nn.Dense(3, name="unused")(x)
        steps = self.param("steps", lambda key: jnp.full((), 2, jnp.int32))
        return nn.Dense(3)(x) * steps.astype(x.dtype)


class AxisNorm(nn.Module):
    """Batch norm over a named axis, as in flax's own ImageNet example."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train, axis_name="batch")(x))


FORCES = [Forces(how) for how in ("grad", "value_and_grad", "vjp", "jvp", "jacfwd", "hessian")]
ZOO = [
    Jitted(),
    nn.jit(Jitted)(),
    JittedMethod(),
    Outputs(),
    Lstm(),
    *FORCES,
    Shapes(),
    Sharing(),
    Calls(),
    Recursive(),
    Applies(),
    Complex(),
    Boxed(),
    Normed(),
    Unused(),
    AxisNorm(),
]


def batch_of(examples: int = 4) -> Any:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(examples, 5)), jnp.float32), jnp.asarray(
        rng.integers(0, 3, examples), jnp.int32
    )


def variables_of(model: nn.Module) -> Any:
    return jax.jit(model.init)(
        {"params": jax.random.key(1), "dropout": jax.random.key(2)}, batch_of()[0]
    )


def name_of(value: Any) -> str | None:
    return (
        f"{type(value).__name__}{getattr(value, 'how', '')}"
        if isinstance(value, nn.Module)
        else None
    )


class Block(nn.Module):
    """A layer under a name, to be put into `nn.jit`."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="dense")(x)


class JittedBlocks(nn.Module):
    """Two equal instances of one nn.jit class: linen traces the first alone. Input: (batch, 4)."""

    @nn.compact
    def __call__(self, x):
        jitted = nn.jit(Block)
        return nn.Dense(3, name="head")(jitted(name="b1")(jitted(name="b0")(x)))


class DecoratedBlocks(nn.Module):
    """Equal instances of a class whose call is decorated with nn.jit. Input: (batch, 4)."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(DecoratedBlock(name="b1")(DecoratedBlock(name="b0")(x)))


class DecoratedBlock(nn.Module):
    @nn.jit
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="dense")(x)


class TrainsByDefault(nn.Module):
    """Its switch is `train`, by default True. Input: (batch, 4)."""

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(3, name="head")(nn.Dropout(0.5, deterministic=not train)(x))


class Tokens(nn.Module):
    """Self-attention over embedded tokens. Input: integers (batch, length)."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(10, 8, name="embed")(tokens)
        return nn.Dense(3, name="head")(nn.MultiHeadDotProductAttention(2, name="attention")(x))


class TwoInputs(nn.Module):
    """An image and tokens. Inputs: floats (batch, height, width, channels), integers (batch, n)."""

    @nn.compact
    def __call__(self, images, tokens):
        x = nn.Conv(4, (3, 3), name="conv")(images).mean((1, 2))
        return nn.Dense(2, name="head")(
            jnp.concatenate([x, nn.Embed(10, 4, name="embed")(tokens).mean(1)], -1)
        )


class Force(nn.Module):
    """Its output is the gradient of an inner network, as in a force field. Input: (batch, 4)."""

    @nn.compact
    def __call__(self, x):
        energy = nn.Dense(3, name="energy")
        if self.is_initializing():
            energy(x)
        return jax.grad(lambda x: jnp.sum(jnp.square(energy(x))))(x)


class Recurrent(nn.Module):
    """nn.RNN over an LSTM. Input: (batch, length, 4)."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(nn.RNN(nn.LSTMCell(5), name="rnn")(x)[:, -1])


class PartitionedDense(nn.Module):
    """A parameter with metadata, in a box. Input: (batch, 4)."""

    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        return nn.Dense(3, kernel_init=init, name="dense")(x)


class Upsampler(nn.Module):
    """Grouped, dilated and transposed convolutions. Input: (batch, height, width, 4)."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), feature_group_count=4, name="depthwise")(x)
        x = nn.Conv(4, (3, 3), kernel_dilation=(2, 2), name="dilated")(x)
        return nn.ConvTranspose(8, (2, 2), strides=(2, 2), name="up")(x)


class Halting(nn.Module):
    """A cell in a `while` with a data-dependent condition. Input: (batch, 4)."""

    @nn.compact
    def __call__(self, x):
        cell = nn.Dense(4, name="cell")
        if self.is_initializing():
            cell(x)
        x = nn.while_loop(lambda _, x: jnp.sum(x) < 1, lambda cell, x: cell(x), cell, x)
        return nn.Dense(3, name="head")(x)


def complex_normal(key, shape, dtype=jnp.complex64):
    """Standard complex numbers over the square root of the inputs."""
    return jax.random.normal(key, shape, dtype) / jnp.asarray(shape[0] ** 0.5, dtype)


class ComplexWeights(nn.Module):
    """Complex weights and biases behind real ones."""

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(3, name="real")(x))
        w = self.param("w", complex_normal, (3, 3))
        b = self.param("b", complex_normal, (3,))
        z = x.astype(w.dtype) @ w + b[None]
        return jnp.square(z.real) + jnp.square(z.imag)


class Weighted(nn.Module):
    """A parameter named "layer_instance/kernel/scale"."""

    @nn.compact
    def __call__(self, x):
        return nn.WeightNorm(nn.Dense(3), name="outer")(x)


class Partitioned(nn.Module):
    """Boxed kernels of both kinds, and a bias that is not boxed."""

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        x = nn.Dense(3, kernel_init=nn.with_partitioning(init, (None, "model")), name="mesh")(x)
        return nn.Dense(
            3, kernel_init=nn.with_logical_partitioning(init, ("in", "out")), name="logical"
        )(jnp.tanh(x))


class Attention(nn.Module):
    """Two tokens of half the features each; kernels (D, heads, dim) and (heads, dim, D)."""

    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        tokens = x.reshape(len(x), 2, -1)
        attention = nn.MultiHeadDotProductAttention(
            2, qkv_features=4, out_features=3, use_bias=self.use_bias
        )
        return attention(tokens).mean(1)


class Typed(nn.Module):
    """Parameters and results of a dtype."""

    dtype: Any = jnp.float64

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3, dtype=self.dtype, param_dtype=self.dtype, name="first")(x)
        return nn.Dense(3, dtype=self.dtype, param_dtype=self.dtype, name="head")(jnp.tanh(x))


class Tree(nn.Module):
    """A parameter that is itself a tuple of arrays."""

    @nn.compact
    def __call__(self, x):
        weight, bias = self.param(
            "affine", lambda key: (jax.random.normal(key, (x.shape[-1], 3)), jnp.ones(3))
        )
        return jnp.tanh(x @ weight) + bias[None]


class Odd(nn.Module):
    """Complex, boxed, oddly named and nested parameters in one network."""

    @nn.compact
    def __call__(self, x):
        for layer in (
            Partitioned(name="boxed"),
            Weighted(name="named"),
            Tree(name="nested"),
            ComplexWeights(name="complex"),
        ):
            x = layer(x)
        return x


_compiled: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: _compiled.append(event)
)


@contextlib.contextmanager
def no_compilation() -> Iterator[None]:
    """Fail where JAX compiles anything in the block."""
    before = len(_compiled)
    yield
    new = [event for event in _compiled[before:] if "backend_compile" in event]
    assert not new, f"{len(new)} programs were compiled"
