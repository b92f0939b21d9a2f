"""ResNet-20 as an NNX module, with the layers and names of `cifar_resnet20`; small NNX modules."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class Sum(nnx.Module):
    """A residual sum, as the instruments know it by its arguments."""

    def __call__(self, shortcut, branch):
        return shortcut + branch


class ResidualBlock(nnx.Module):
    """Two 3x3 convolutions; where the shape changes, the shortcut is padded with zeros."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.stride = 1 if inputs == outputs else 2
        self.conv1 = conv(inputs, outputs, self.stride, rngs)
        self.norm1 = norm(outputs, rngs)
        self.conv2 = conv(outputs, outputs, 1, rngs)
        self.norm2 = norm(outputs, rngs)
        self.sum = Sum()

    def __call__(self, x):
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        shortcut = x[:, :: self.stride, :: self.stride]
        more = y.shape[-1] - x.shape[-1]
        shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, more)))
        return nnx.relu(self.sum(shortcut, y))


class ResNet20(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.stem_conv = conv(3, width, 1, rngs)
        self.stem_norm = norm(width, rngs)
        inputs = width
        for stage in (1, 2, 3):
            outputs = width * 2 ** (stage - 1)
            for block in (1, 2, 3):
                name = f"stage{stage}_block{block}"
                setattr(self, name, ResidualBlock(inputs, outputs, rngs))
                inputs = outputs
        self.head = nnx.Linear(inputs, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem_norm(self.stem_conv(x)))
        for stage in (1, 2, 3):
            for block in (1, 2, 3):
                x = getattr(self, f"stage{stage}_block{block}")(x)
        return self.head(x.mean((1, 2)))


def conv(inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    size, padding = (3, 3), ((1, 1), (1, 1))
    options: dict[str, Any] = {"strides": stride, "padding": padding, "use_bias": False}
    return nnx.Conv(inputs, outputs, size, **options, rngs=rngs)


def norm(features: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


class Mlp(nnx.Module):
    """Dropout, a list of modules, a shared module, a counter and a random stream of its own."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(5, 5, rngs=rngs) for _ in range(2)])
        self.shared = self.layers[0]
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.head(self.dropout(self.norm(self.shared(x))))


class Transformed(nnx.Module):
    """Blocks under nnx.scan over layers, or nnx.remat, or nnx.jit, by the field."""

    def __init__(self, kind: str, rngs: nnx.Rngs) -> None:
        self.kind = kind
        if kind == "scan":
            make = nnx.vmap(lambda rngs: Block(rngs), in_axes=0, out_axes=0)
            self.blocks = make(rngs.split(3))
        else:
            self.blocks = nnx.List([Block(rngs) for _ in range(3)])
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        if self.kind == "scan":
            run = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return self.head(run(x, self.blocks))
        transforms = {"remat": nnx.remat, "jit": nnx.jit, "plain": lambda call: call}
        call = transforms[self.kind](lambda block, x: block(x))
        for block in self.blocks:
            x = call(block, x)
        return self.head(x)


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(5, 5, rngs=rngs)

    def __call__(self, x):
        return x + jnp.tanh(self.dense(x))


def unstacked(variables: Any) -> Any:
    """The parameters of `Transformed("scan")` as those of the others."""
    blocks = variables["params"]["blocks"]
    single = {str(i): jax.tree.map(lambda leaf, i=i: leaf[i], blocks) for i in range(3)}
    return {"params": {**variables["params"], "blocks": single}}
