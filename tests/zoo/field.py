"""Twelve networks as they are written in the field, three of them in NNX too; and their losses.

Each has at most 250 parameters, so that `jax.hessian` is quick.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from jax import Array

from deepjax.analysis import cross_entropy


class Cnn(nn.Module):
    """Batch norm and dropout. Input: images (batch, 6, 6, 2)."""

    classes: int = 3

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(2, (3, 3), use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.relu(x)
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.Conv(3, (3, 3))(x)
        x = nn.gelu(x).mean((1, 2))
        x = nn.Dropout(0.3, deterministic=not train)(x)
        return nn.Dense(self.classes)(x)


class NnxCnn(nnx.Module):
    """The same as an NNX module."""

    def __init__(self, rngs: nnx.Rngs, classes: int = 3) -> None:
        self.conv1 = nnx.Conv(2, 2, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.conv2 = nnx.Conv(2, 3, (3, 3), rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(3, classes, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv1(x)))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = nnx.gelu(self.conv2(x)).mean((1, 2))
        return self.head(self.dropout(x))


class Encoder(nn.Module):
    """Mean and log variance of the latents."""

    latents: int

    @nn.compact
    def __call__(self, x):
        x = nn.elu(nn.Dense(4)(x.reshape(len(x), -1)))
        return nn.Dense(self.latents, name="mean")(x), nn.Dense(self.latents, name="variance")(x)


class Vae(nn.Module):
    """A variational autoencoder with a random stream "latent". Input: images (batch, 3, 3, 1)."""

    latents: int = 2

    def setup(self):
        self.encoder = Encoder(self.latents)
        self.decoder = nn.Sequential([nn.Dense(4), nn.elu, nn.Dense(9)])

    def __call__(self, x):
        mean, log_variance = self.encoder(x)
        noise = jax.random.normal(self.make_rng("latent"), mean.shape)
        z = mean + jnp.exp(0.5 * log_variance) * noise
        return {"reconstruction": self.decode(z), "mean": mean, "log_variance": log_variance}

    def decode(self, z):
        return self.decoder(z).reshape(-1, 3, 3, 1)


class NnxVae(nnx.Module):
    """The same as an NNX module; it returns a tuple."""

    def __init__(self, rngs: nnx.Rngs, latents: int = 2) -> None:
        self.hidden = nnx.Linear(9, 4, rngs=rngs)
        self.mean = nnx.Linear(4, latents, rngs=rngs)
        self.variance = nnx.Linear(4, latents, rngs=rngs)
        self.decoder = nnx.List([nnx.Linear(latents, 4, rngs=rngs), nnx.Linear(4, 9, rngs=rngs)])
        self.rngs = rngs

    def __call__(self, x):
        h = nnx.elu(self.hidden(x.reshape(len(x), -1)))
        mean, log_variance = self.mean(h), self.variance(h)
        z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(self.rngs.latent(), mean.shape)
        y = self.decoder[1](nnx.elu(self.decoder[0](z)))
        return y.reshape(x.shape), mean, log_variance


class DecoderCell(nn.RNNCellBase):
    """Predicts a token, which it is fed next unless the teacher's is."""

    vocabulary: int
    teacher_force: bool

    @nn.compact
    def __call__(self, carry, token):
        state, last = carry
        if not self.teacher_force:
            token = last
        state, y = nn.LSTMCell(2)(state, token)
        logits = nn.Dense(self.vocabulary, name="projection")(y)
        sampled = jax.random.categorical(self.make_rng("lstm"), logits)
        prediction = jax.nn.one_hot(sampled, self.vocabulary, dtype=jnp.float32)
        return (state, prediction), (logits, prediction)

    @property
    def num_feature_axes(self):
        return 1


class Seq2Seq(nn.Module):
    """Encoder and decoder LSTM. Inputs: one-hot (batch, n, 4) and (batch, m + 1, 4)."""

    vocabulary: int = 4
    teacher_force: bool = True

    @nn.compact
    def __call__(self, encoder_inputs, decoder_inputs):
        encoder = nn.RNN(nn.LSTMCell(2), return_carry=True, name="encoder")
        cell = DecoderCell(self.vocabulary, self.teacher_force)
        decoder = nn.RNN(cell, split_rngs={"params": False, "lstm": True}, name="decoder")
        (c, h), _ = encoder(encoder_inputs)
        carry = ((c, nn.Dense(2, name="bridge")(h)), decoder_inputs[:, 0])
        return decoder(decoder_inputs[:, :-1], initial_carry=carry)  # logits, predictions


class PositionEmbedding(nn.Module):
    """Learned; while decoding, that of the current token."""

    length: int
    decode: bool

    @nn.compact
    def __call__(self, x):
        table = self.param(
            "embedding", nn.initializers.normal(0.5), (1, self.length, x.shape[-1]), jnp.float32
        )
        is_initialized = self.has_variable("cache", "index")
        if not self.decode:
            return x + table[:, : x.shape[1]]
        index = self.variable("cache", "index", lambda: jnp.array(0, jnp.int32))
        if is_initialized:
            table = jax.lax.dynamic_slice_in_dim(table, index.value, 1, axis=1)
            index.value = index.value + 1
        return x + table


class DecoderBlock(nn.Module):
    """Self-attention and a perceptron, each after a layer norm."""

    decode: bool

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(name="norm1")(x)
        y = nn.MultiHeadDotProductAttention(
            2, qkv_features=4, use_bias=False, decode=self.decode, name="attention"
        )(y, mask=None if self.decode else nn.make_causal_mask(x[..., 0]))
        x = x + y
        y = nn.gelu(nn.Dense(4, name="up")(nn.LayerNorm(name="norm2")(x)))
        return x + nn.Dense(4, name="down")(y)


class Decoder(nn.Module):
    """A language model that keeps keys and values of earlier tokens. Input: tokens (batch, 1)."""

    vocabulary: int = 5
    length: int = 4
    decode: bool = True

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(self.vocabulary, 4, name="embed")(tokens)
        x = PositionEmbedding(self.length, self.decode, name="positions")(x)
        x = DecoderBlock(self.decode, name="block0")(x)
        return nn.Dense(self.vocabulary, name="logits")(nn.LayerNorm(name="norm")(x))


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of a small T5."""

    vocabulary: int = 6
    features: int = 4
    heads: int = 2
    buckets: int = 3
    dropout: float = 0.2


class T5Norm(nn.Module):
    """Root mean square norm."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        mean = jnp.mean(jax.lax.square(x), axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(mean + 1e-6) * scale[None, None]


class T5Attention(nn.Module):
    """Self-attention with a bias by relative position."""

    config: T5Config

    @nn.compact
    def __call__(self, x, enable_dropout=True):
        c = self.config
        head_dim = c.features // c.heads

        def project(name):
            return nn.DenseGeneral((c.heads, head_dim), use_bias=False, name=name)(x)

        query, keys, values = map(project, ("query", "key", "value"))
        places = jnp.arange(x.shape[1])
        distance = jnp.clip(jnp.abs(places[None] - places[:, None]), 0, c.buckets - 1)
        bias = nn.Embed(c.buckets, c.heads, name="relative_bias")(distance)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, keys) + bias.transpose(2, 0, 1)[None]
        weights = nn.Dropout(c.dropout)(jax.nn.softmax(scores), deterministic=not enable_dropout)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, values)
        return nn.DenseGeneral(c.features, axis=(-2, -1), use_bias=False, name="out")(y)


class T5Encoder(nn.Module):
    """Input: tokens (batch, length); its switch is True in training, and by default."""

    config: T5Config = T5Config()

    @nn.compact
    def __call__(self, tokens, enable_dropout=True):
        c = self.config
        embed = nn.Embed(c.vocabulary, c.features, name="token_embedder")
        dropout = nn.Dropout(c.dropout, broadcast_dims=(-2,), deterministic=not enable_dropout)
        x = dropout(embed(tokens))
        y = T5Norm(name="pre_attention_norm")(x)
        x = x + dropout(T5Attention(c, name="attention")(y, enable_dropout=enable_dropout))
        y = T5Norm(name="pre_mlp_norm")(x)
        gate = nn.gelu(nn.Dense(4, use_bias=False, name="wi_0")(y))
        y = gate * nn.Dense(4, use_bias=False, name="wi_1")(y)
        x = x + dropout(nn.Dense(c.features, use_bias=False, name="wo")(y))
        return embed.attend(T5Norm(name="final_norm")(x)) / c.features**0.5


class Graph(NamedTuple):
    """A graph: features of nodes and edges, and the two nodes of each edge."""

    nodes: Any
    edges: Any
    senders: Any
    receivers: Any


class GraphNetwork(nn.Module):
    """Message passing; returns the graph with logits in place of the nodes' features."""

    classes: int = 3

    @nn.compact
    def __call__(self, graph: Graph) -> Graph:
        nodes, edges, senders, receivers = graph
        for step in range(2):
            given = jnp.concatenate([nodes[senders], nodes[receivers], edges], axis=-1)
            messages = nn.softplus(nn.Dense(3, name=f"message{step}")(given))
            received = jax.ops.segment_sum(messages, receivers, num_segments=nodes.shape[0])
            nodes = nn.Dense(3, name=f"update{step}")(jnp.concatenate([nodes, received], axis=-1))
        return graph._replace(nodes=nn.Dense(self.classes, name="head")(jnp.tanh(nodes)))


class UNet(nn.Module):
    """Segmentation with a skip connection and deep supervision. Input: images (batch, 8, 8, 1)."""

    classes: int = 2

    @nn.compact
    def __call__(self, images):
        skip = nn.gelu(nn.Conv(2, (3, 3), name="down")(images))
        x = nn.max_pool(skip, (2, 2), strides=(2, 2))
        x = nn.gelu(nn.GroupNorm(1, name="norm")(nn.Conv(3, (3, 3), name="middle")(x)))
        low = nn.Conv(self.classes, (1, 1), name="low_logits")(x)
        self.sow("auxiliary", "low", jnp.repeat(jnp.repeat(low, 2, axis=1), 2, axis=2))
        x = nn.ConvTranspose(2, (2, 2), strides=(2, 2), name="up")(x)
        x = jnp.concatenate([skip, x], axis=-1)
        return nn.Conv(self.classes, (1, 1), name="logits")(x)


def causal_mask(inputs: int, outputs: int, own: bool) -> np.ndarray:
    """Of a 3x3 kernel: what is before the centre in raster order, and with `own` the centre."""
    mask = np.zeros((3, 3, inputs, outputs), np.float32)
    mask[0] = mask[1, 0] = 1
    mask[1, 1] = own
    return mask


def concat_elu(x: Array) -> Array:
    """Of x and -x, along the channels."""
    return nn.elu(jnp.concatenate([x, -x], axis=-1))


class PixelCnn(nn.Module):
    """Mean and log scale of each pixel given those before. Input: images (batch, 5, 5, 1)."""

    features: int = 2

    @nn.compact
    def __call__(self, images):
        f = self.features
        first = nn.Conv(f, (3, 3), mask=causal_mask(1, f, own=False), name="first")
        x = nn.WeightNorm(first, name="first_norm")(images)
        inner = nn.Conv(f, (3, 3), mask=causal_mask(2 * f, f, own=True), name="inner")
        x = x + nn.WeightNorm(inner, name="inner_norm")(concat_elu(x))
        out = nn.Conv(2, (1, 1), name="out")
        return nn.WeightNorm(out, name="out_norm")(concat_elu(x))


class ActorCritic(nn.Module):
    """Logarithms of the actions' probabilities, and a value. Input: uint8 (batch, 8, 8, 2)."""

    actions: int = 3

    @nn.compact
    def __call__(self, observations):
        x = observations.astype(jnp.float32) / 255.0
        x = nn.relu(nn.Conv(2, (4, 4), strides=(2, 2), padding="VALID", name="conv")(x))
        x = nn.relu(nn.Dense(4, name="hidden")(x.reshape(len(x), -1)))
        log_probabilities = nn.log_softmax(nn.Dense(self.actions, name="policy")(x))
        return log_probabilities, nn.Dense(1, name="value")(x)


class ResidualBlock(nn.Module):
    """A dense layer on a shortcut, as the body of nn.scan."""

    @nn.compact
    def __call__(self, x, deterministic):
        y = nn.Dropout(0.2, deterministic=deterministic)(jnp.tanh(nn.Dense(3, name="dense")(x)))
        return x + y, None


class SharedAndScanned(nn.Module):
    """A layer that is called twice, and blocks in nn.scan between. Input: (batch, 3)."""

    depth: int = 2

    @nn.compact
    def __call__(self, x, deterministic: bool = True):
        mix = nn.Dense(3, name="mix")
        x = jnp.tanh(mix(x))
        blocks = nn.scan(
            ResidualBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=self.depth,
        )
        x, _ = blocks(name="blocks")(x, deterministic)
        return nn.Dense(2, name="head")(jnp.tanh(mix(x)))


class NnxBlock(nnx.Module):
    """The same block in NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return x + jnp.tanh(self.dense(x))


class NnxSharedAndScanned(nnx.Module):
    """The same in NNX, without dropout."""

    def __init__(self, rngs: nnx.Rngs, depth: int = 2) -> None:
        self.mix = nnx.Linear(3, 3, rngs=rngs)
        self.blocks = nnx.vmap(NnxBlock, in_axes=0, out_axes=0)(rngs.split(depth))
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        x = jnp.tanh(self.mix(x))
        scan = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.head(jnp.tanh(self.mix(scan(x, self.blocks))))


class Member(nn.Module):
    """One network of an ensemble."""

    classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes, name="head")(jnp.tanh(nn.Dense(4, name="hidden")(x)))


class Ensemble(nn.Module):
    """Logits (batch, members, classes) of networks in nn.vmap. Input: (batch, 3)."""

    members: int = 2
    classes: int = 3

    @nn.compact
    def __call__(self, x):
        stack = nn.vmap(
            Member,
            in_axes=None,
            out_axes=1,
            axis_size=self.members,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        return stack(self.classes, name="members")(x)


class Solution(nn.Module):
    """u(x, t), two arrays (batch,)."""

    @nn.compact
    def __call__(self, x, t):
        y = jnp.tanh(nn.Dense(5, name="first")(jnp.stack([x, t], axis=-1)))
        y = jnp.tanh(nn.Dense(4, name="second")(y))
        return nn.Dense(1, name="out")(y)[..., 0]


class Burgers(nn.Module):
    """A solution and the residual of Burgers' equation, by jax.jvp. Inputs: x, t (batch,)."""

    viscosity: float = 0.1

    def setup(self):
        self.solution = Solution()

    def __call__(self, x, t):
        u = self.solution(x, t)  # also makes the parameters, which jax.jvp could not
        ones = jnp.ones_like(x)

        def slope(x):
            return jax.jvp(lambda x: self.solution(x, t), (x,), (ones,))[1]

        u_x, u_xx = jax.jvp(slope, (x,), (ones,))
        u_t = jax.jvp(lambda t: self.solution(x, t), (t,), (ones,))[1]
        return {"u": u, "residual": u_t + u * u_x - self.viscosity * u_xx}


def elbo_loss(outputs: Any, batch: Any) -> Array:
    """Squared error plus the divergence from a standard Gaussian; dict or tuple of outputs."""
    reconstruction, mean, log_variance = (
        (outputs["reconstruction"], outputs["mean"], outputs["log_variance"])
        if isinstance(outputs, dict)
        else outputs
    )
    error = jnp.square(reconstruction - batch["image"]).sum((1, 2, 3))
    divergence = 0.5 * (jnp.exp(log_variance) + jnp.square(mean) - 1 - log_variance).sum(-1)
    return jnp.mean(error + divergence)


def logistic_loss(outputs: Array, batch: Any) -> Array:
    """Negative logarithm of the density of logistic distributions."""
    z = (batch["image"][..., 0] - outputs[..., 0]) * jnp.exp(-outputs[..., 1])
    return jnp.mean(z + 2 * jax.nn.softplus(-z) + outputs[..., 1])


def ensemble_loss(outputs: Array, batch: Any) -> Array:
    """The members' own mean cross-entropy; outputs (batch, members, classes)."""
    labels = jnp.broadcast_to(batch[1][:, None], outputs.shape[:2])
    return cross_entropy(outputs, (None, labels))


def burgers_loss(outputs: Any, batch: Any) -> Array:
    """Errors of the solution, and of the equation."""
    return jnp.mean(jnp.square(outputs["u"] - batch[1]) + jnp.square(outputs["residual"]))
