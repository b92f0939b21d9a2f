"""One network in every form: linen, NNX and a function; plain, under jit, remat and scan.

Images (batch, 4, 4, 2) -> logits (batch, 3): a 1x1 convolution, three residual blocks, the mean
over the map, a dense layer. All forms compute the same function of the same numbers.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from deepjax.analysis import Network, from_function, from_nnx

BLOCKS, WIDTH, CLASSES = 3, 3, 3
SHAPE = (4, 4, 2)
FORMS = ("linen", "nnx", "function")
TRANSFORMS = ("plain", "jit", "remat", "scan", "devices")
BATCHES = ("tuple", "dict", "list")


def numbers() -> dict[str, Any]:
    """The parameters of the plain form, from a fixed seed."""
    rng = np.random.default_rng(0)

    def layer(inputs: int, outputs: int, *size: int) -> dict[str, Any]:
        kernel = rng.standard_normal((*size, inputs, outputs)) / np.sqrt(inputs)
        bias = 0.1 * rng.standard_normal(outputs)
        return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}

    blocks = {f"block{i}": {"conv": layer(WIDTH, WIDTH, 1, 1)} for i in range(BLOCKS)}
    return {"stem": layer(2, WIDTH, 1, 1), **blocks, "head": layer(WIDTH, CLASSES)}


def forward(params: Any, images: jax.Array) -> jax.Array:
    """The function that all forms compute, on the parameters of the plain form."""
    x = dense(params["stem"], images)
    for index in range(BLOCKS):
        x = x + jnp.tanh(dense(params[f"block{index}"]["conv"], x))
    return dense(params["head"], x.mean((1, 2)))


def dense(layer: Any, x: jax.Array) -> jax.Array:
    kernel = layer["kernel"]
    y = jnp.matmul(x, kernel.reshape(kernel.shape[-2:]))
    return y + layer["bias"].reshape((1,) * (y.ndim - 1) + (-1,))


def stacked(params: Any) -> dict[str, Any]:
    """The same parameters, with the blocks along a leading axis under "blocks"."""
    blocks = [params[f"block{index}"] for index in range(BLOCKS)]
    joined = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    return {"stem": params["stem"], "blocks": joined, "head": params["head"]}


class Sum(nn.Module):
    def __call__(self, shortcut, branch):
        return shortcut + branch


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Sum(name="sum")(x, jnp.tanh(nn.Conv(WIDTH, (1, 1), name="conv")(x)))


class LinenNet(nn.Module):
    transform: str

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(WIDTH, (1, 1), name="stem")(images)
        if self.transform == "scan":
            axes: Mapping[Any, Any] = {"params": 0}
            step = functools.partial(
                nn.scan, variable_axes=axes, split_rngs={"params": True}, length=BLOCKS
            )
            x, _ = step(lambda block, x: (block(x), None))(Block(name="blocks"), x)
        else:
            kinds: dict[str, Any] = {"jit": nn.jit(Block), "remat": nn.remat(Block)}
            for index in range(BLOCKS):
                x = kinds.get(self.transform, Block)(name=f"block{index}")(x)
        return nn.Dense(CLASSES, name="head")(x.mean((1, 2)))


class NnxSum(nnx.Module):
    def __call__(self, shortcut, branch):
        return shortcut + branch


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(WIDTH, WIDTH, (1, 1), rngs=rngs)
        self.sum = NnxSum()

    def __call__(self, x):
        return self.sum(x, jnp.tanh(self.conv(x)))


class NnxNet(nnx.Module):
    def __init__(self, transform, rngs):
        self.transform = transform
        self.stem = nnx.Conv(2, WIDTH, (1, 1), rngs=rngs)
        if transform == "scan":
            self.blocks = nnx.vmap(NnxBlock, in_axes=0, out_axes=0)(rngs.split(BLOCKS))
        else:
            for index in range(BLOCKS):
                setattr(self, f"block{index}", NnxBlock(rngs))
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, images):
        x = self.stem(images)
        if self.transform == "scan":
            run = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            x = run(x, self.blocks)
        else:
            kinds: dict[str, Any] = {"jit": nnx.jit, "remat": nnx.remat}
            call = kinds.get(self.transform, lambda call: call)(lambda block, x: block(x))
            for index in range(BLOCKS):
                x = call(getattr(self, f"block{index}"), x)
        return self.head(x.mean((1, 2)))


def function(transform: str) -> Callable[..., jax.Array]:
    """The same as a function of a tree."""

    def block(layer: Any, x: jax.Array) -> jax.Array:
        return x + jnp.tanh(dense(layer["conv"], x))

    def net(params, images):
        x = dense(params["stem"], images)
        if transform == "scan":
            x, _ = jax.lax.scan(lambda x, layer: (block(layer, x), None), x, params["blocks"])
        else:
            kinds: dict[str, Any] = {"jit": jax.jit, "remat": jax.checkpoint}
            call = kinds.get(transform, lambda call: call)(block)
            for index in range(BLOCKS):
                x = call(params[f"block{index}"], x)
        return dense(params["head"], x.mean((1, 2)))

    return net


@dataclasses.dataclass(frozen=True)
class Case:
    """A network in one form, its variables, and a batch in one form."""

    form: str
    transform: str
    batch_form: str
    network: Any
    variables: Any
    batch: Any

    def like(self, params: Any) -> Any:
        """A tree of the plain form as this network's parameters."""
        return stacked(params) if self.transform == "scan" else params


@functools.cache
def network_of(form: str, transform: str) -> Any:
    kind = "plain" if transform == "devices" else transform
    if form == "linen":
        return Network(LinenNet(kind))
    if form == "nnx":
        return from_nnx(NnxNet(kind, nnx.Rngs(0)))[0]
    params = stacked(numbers()) if kind == "scan" else numbers()
    return from_function(function(kind), params=params)


def case(form: str, transform: str, batch_form: str) -> Case:
    """The network with its parameters, and eight images; over all devices for "devices"."""
    params = stacked(numbers()) if transform == "scan" else numbers()
    variables: Any = params if form == "function" else {"params": params}
    images, labels = data()
    if transform == "devices":
        kind = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((len(jax.devices()),), ("batch",), axis_types=kind)
        spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        images, labels = jax.device_put((images, labels), spread)
        variables = jax.device_put(variables, everywhere)
    batches = {
        "tuple": (images, labels),
        "dict": {"image": images, "label": labels},
        "list": [(images[:4], labels[:4]), (images[4:], labels[4:])],
    }
    return Case(
        form, transform, batch_form, network_of(form, transform), variables, batches[batch_form]
    )


@functools.cache
def data() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(1)
    images = rng.standard_normal((8, *SHAPE), np.float32)
    return jnp.asarray(images), jnp.asarray(np.arange(8) % CLASSES)
