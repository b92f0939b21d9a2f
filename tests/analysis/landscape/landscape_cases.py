"""Networks and losses in closed form for the tests of lines, planes and paths."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from deepjax.analysis.core.mode import EVAL


class Point(nn.Module):
    """Returns its parameters, so that a loss is a function of them that can be written down."""

    size: int = 2

    @nn.compact
    def __call__(self, x):
        return self.param("w", nn.initializers.normal(1.0), (self.size,))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.relu(nn.Dense(4, name="dense")(x)), None


class Cnn(nn.Module):
    """A convolution with batch norm and a scanned body."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), use_bias=False, name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, epsilon=1e-9, name="norm")(x)).mean(
            (1, 2)
        )
        x, _ = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)(
            name="blocks"
        )(x, None)
        return nn.Dense(3, name="head")(x)


HESSIAN = np.array([[3.0, 1.0], [1.0, 2.0]])
NOTHING = (jnp.zeros((2, 1)), None)


def bowl(w, _):
    return jnp.float32(0.5) * w @ jnp.asarray(HESSIAN, jnp.float32) @ w + w[0]


def saddle(w, _):
    return jnp.square(w[0]) - jnp.square(w[1])


def double_well(w, _):
    """Minima near -1 and 1; the barrier between them is exactly 1, in the middle."""
    return jnp.square(jnp.square(w[0]) - 1) + 0.3 * w[0] + jnp.square(w[1])


def at(*w):
    return {"params": {"w": jnp.asarray(w, jnp.float32)}}


def batch_of(size=12, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((size, 6, 6, 1), np.float32)), jnp.asarray(
        rng.integers(0, 3, size)
    )


def init(seed=0):
    """Running statistics differ from the batch's and by seed; no unit is dead."""
    variables, rng = Cnn().init(jax.random.key(seed), batch_of()[0]), np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + jnp.asarray(rng.uniform(0, 0.8, leaf.shape), jnp.float32), variables
    )


def by_hand(variables, batch, mode=EVAL):
    """(loss, accuracy), without the instrument."""
    logits, _ = Cnn().apply(variables, batch[0], train=mode.train, mutable=["batch_stats"])
    loss = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(batch[1])), batch[1]].mean()
    return float(loss), float((np.asarray(logits).argmax(1) == np.asarray(batch[1])).mean())


def moved(variables, direction, step):
    return {
        **variables,
        "params": jax.tree.map(lambda leaf, way: leaf + step * way, variables["params"], direction),
    }


def norms(leaf, inside):
    return np.sqrt(np.square(np.asarray(leaf, float)).sum(inside))
