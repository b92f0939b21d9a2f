"""One network in linen, in NNX and as a function, with equal weights; a small convolutional one."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from deepjax.analysis import from_function, from_nnx

EXAMPLES = 8
X = jax.random.normal(jax.random.key(1), (EXAMPLES, 5))
Y = jnp.arange(EXAMPLES) % 3


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(jnp.tanh(nn.Dense(4, name="first")(x)))


class NnxMlp(nnx.Module):
    def __init__(self, params):
        rngs = nnx.Rngs(0)
        self.first, self.head = nnx.Linear(5, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
        for layer, name in ((self.first, "first"), (self.head, "head")):
            layer.kernel.set_value(params[name]["kernel"])
            layer.bias.set_value(params[name]["bias"])

    def __call__(self, x):
        return self.head(jnp.tanh(self.first(x)))


def mlp(params, x):
    (w, b), (v, c) = params
    return jnp.tanh(x @ w + b[None]) @ v + c[None]


def pairs(params):
    """The parameters of the function: a list of pairs."""
    return [(params[name]["kernel"], params[name]["bias"]) for name in ("first", "head")]


LINEN = Mlp()
VARIABLES = LINEN.init(jax.random.key(0), X)
FUNCTION, PAIRS = from_function(mlp), pairs(VARIABLES["params"])
FORMS = {
    "linen": (LINEN, VARIABLES),
    "nnx": from_nnx(NnxMlp(VARIABLES["params"])),
    "function": (FUNCTION, PAIRS),
}
BATCHES = {
    "tuple": (X, Y),
    "list": [X, Y],
    "dict": {"image": X, "label": Y},
}


class Cnn(nn.Module):
    """Convolutions, global average pooling and one dense layer."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3), name="conv1")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, name="conv2")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


IMAGES = jax.random.normal(jax.random.key(2), (EXAMPLES, 12, 10, 3))
CNN = Cnn()
CNN_VARIABLES = CNN.init(jax.random.key(3), IMAGES)
