"""A small network with batch norm and dropout, and its gradients by a loop over examples."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict


class Net(nn.Module):
    """A convolution, batch norm or none, dropout, and a layer that nothing flows through."""

    normalised: bool = True
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(3, (3, 3), name="second_by_name")(x)
        if self.normalised:
            x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(x)).mean((1, 2))
        return nn.Dense(4, name="head")(x) + 0 * nn.Dense(4, name="idle")(x)


def images(count=10, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((count, 4, 4, 2), np.float32)), jnp.asarray(
        rng.integers(0, 4, count)
    )


def initialised(model, seed=0):
    """Running statistics other than 0 and 1, so that it matters which are used."""
    variables = jax.jit(model.init)(jax.random.key(seed), images(1)[0])
    return jax.tree.map(lambda leaf: leaf + 0.3, variables)


def loop(model, variables, batch, size, dropout):
    """The gradient of each group of `size` examples in turn, as (groups, ...) arrays.

    size 0: of each example, in evaluation and in float64; else in float32, because dropout would
    have other masks, and flax's batch norm takes no float64 in training.
    """
    with jax.enable_x64(size == 0):
        given = (variables, batch) if size else jax.tree.map(_doubled, (variables, batch))
        return _loop(model, *given, size, dropout)


def _doubled(leaf):
    return jnp.asarray(leaf, float) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _loop(model, variables, batch, size, dropout):
    @jax.jit
    def gradient(params, x, labels, key):
        def value(params):
            given = {**variables, "params": params}
            if size:
                outputs, _ = model.apply(
                    given, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}
                )
            else:
                outputs = model.apply(given, x)
            return -jnp.mean(
                jnp.sum(jax.nn.log_softmax(outputs) * jax.nn.one_hot(labels, 4), axis=-1)
            )

        return jax.grad(value)(params)

    x, labels = (jnp.split(leaf, len(leaf) // max(size, 1)) for leaf in batch)
    keys = [jax.random.fold_in(dropout, i) for i in range(len(x))]
    found = [gradient(variables["params"], *each) for each in zip(x, labels, keys, strict=True)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


def layers_of(gradients):
    """(groups, parameters) by layer."""
    found = {}
    for path, leaf in flatten_dict(gradients, sep="/").items():
        found.setdefault(path.rpartition("/")[0], []).append(
            np.asarray(leaf, np.float64).reshape(len(leaf), -1)
        )
    return {layer: np.concatenate(parts, axis=1) for layer, parts in found.items()}
