"""Small linen modules of the awkward kinds, for the tests of several instruments."""

import jax
import jax.numpy as jnp
from flax import linen as nn


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
    """An image and tokens. Inputs: (batch, height, width, channels) floats, (batch, length) integers."""

    @nn.compact
    def __call__(self, images, tokens):
        x = nn.Conv(4, (3, 3), name="conv")(images).mean((1, 2))
        return nn.Dense(2, name="head")(jnp.concatenate([x, nn.Embed(10, 4, name="embed")(tokens).mean(1)], -1))


class Force(nn.Module):
    """Its output is a gradient of a network inside of it, as in a force field. Input: (batch, 4)."""

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
    """A transposed convolution behind a grouped and a dilated one. Input: (batch, height, width, 4)."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), feature_group_count=4, name="depthwise")(x)
        x = nn.Conv(4, (3, 3), kernel_dilation=(2, 2), name="dilated")(x)
        return nn.ConvTranspose(8, (2, 2), strides=(2, 2), name="up")(x)


class Halting(nn.Module):
    """A cell in a `while` that runs until its data say stop. Input: (batch, 4)."""

    @nn.compact
    def __call__(self, x):
        cell = nn.Dense(4, name="cell")
        if self.is_initializing():
            cell(x)
        x = nn.while_loop(lambda _, x: jnp.sum(x) < 1, lambda cell, x: cell(x), cell, x)
        return nn.Dense(3, name="head")(x)
