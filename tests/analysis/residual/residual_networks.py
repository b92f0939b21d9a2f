"""Small residual networks, and their weights replaced by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

WIDTH, CLASSES = 6, 3


class Add(nn.Module):
    def __call__(self, shortcut, branch):
        return shortcut + branch


class Block(nn.Module):
    """x + W x, or x + relu(W norm(x)); without the sum its plain twin."""

    linear: bool
    train: bool = False
    residual: bool = True

    @nn.compact
    def __call__(self, x, _=None):
        y = x if self.linear else nn.BatchNorm(use_running_average=not self.train, name="norm")(x)
        y = nn.Dense(x.shape[-1], use_bias=False, name="dense")(y)
        y = y if self.linear else nn.relu(y)
        return (Add(name="sum")(x, y) if self.residual else y), None


class Net(nn.Module):
    """Blocks one by one, under remat, or under a scan; without biases."""

    depth: int = 4
    linear: bool = False
    residual: bool = True
    how: str = "plain"

    @nn.compact
    def __call__(self, x, train=False):
        if self.how == "scan":
            options = {
                "variable_axes": {"params": 0, "batch_stats": 0},
                "split_rngs": {"params": True},
            }
            x, _ = nn.scan(Block, length=self.depth, **options)(self.linear, train, name="blocks")(
                x, None
            )
        else:
            block = nn.remat(Block) if self.how == "remat" else Block
            for i in range(self.depth):
                x, _ = block(self.linear, train, self.residual, name=f"block{i}")(x)
        return nn.Dense(CLASSES, use_bias=False, name="head")(x)


class Shared(nn.Module):
    """One sum for three branches, whose arguments are given by name."""

    by_name: bool = False

    @nn.compact
    def __call__(self, x):
        add = Add(name="add")
        for i in range(3):
            branch = nn.Dense(WIDTH, use_bias=False, name=f"dense{i}")(x)
            x = add(shortcut=x, branch=branch) if self.by_name else add(x, branch)
        return nn.Dense(CLASSES, use_bias=False, name="head")(x)


def batch_of(count=8, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((count, WIDTH), np.float32)), jnp.asarray(
        rng.integers(0, CLASSES, count)
    )


def initialised(model, seed=0):
    return jax.jit(model.init)(jax.random.key(seed), batch_of()[0])


def entropy(model, variables, batch, train=False):
    """Loss and error of the network as it is."""
    mutable = ["batch_stats"] if train else False
    options = {"train": train} if isinstance(model, Net) else {}
    outputs = model.apply(variables, batch[0], mutable=mutable, **options)
    outputs = outputs[0] if train else outputs
    loss = -jnp.mean(
        jnp.sum(jax.nn.log_softmax(outputs) * jax.nn.one_hot(batch[1], CLASSES), axis=-1)
    )
    return loss, float(np.mean(np.argmax(outputs, -1) != np.asarray(batch[1])))


def rewired(variables, names, kernel):
    """The same network with other weights in these layers."""
    params = variables["params"]
    for name in names:
        outer, _, inner = name.rpartition("/")
        params = (
            {**params, outer: {**params[outer], inner: {"kernel": kernel}}}
            if outer
            else {**params, name: {"kernel": kernel}}
        )
    return {**variables, "params": params}


class NnxAdd(nnx.Module):
    def __call__(self, shortcut, branch):
        return shortcut + branch


class NnxBlock(nnx.Module):
    """x + relu(W norm(x)), with dropout behind."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.dense = nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.sum = NnxAdd()

    def __call__(self, x):
        return self.sum(branch=self.dropout(nnx.relu(self.dense(self.norm(x)))), shortcut=x)


class NnxNet(nnx.Module):
    """Blocks one by one, or under remat."""

    def __init__(self, how="plain", depth=3):
        rngs = nnx.Rngs(0)
        self.how = how
        self.blocks = nnx.List([NnxBlock(rngs) for _ in range(depth)])
        self.head = nnx.Linear(WIDTH, CLASSES, use_bias=False, rngs=rngs)

    def __call__(self, x):
        def call(block, x):
            return block(x)

        for block in self.blocks:
            x = (nnx.remat(call) if self.how == "remat" else call)(block, x)
        return self.head(x)
