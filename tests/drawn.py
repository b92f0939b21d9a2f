"""Variables for tests in which it does not matter how they were drawn: NumPy's numbers, so that nothing is compiled for them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def drawn(model: Any, shape: tuple[int, ...], seed: int = 0) -> dict[str, Any]:
    """Kernels of He's deviation, scales and variances 1, all else 0, of the shapes that the model initialises.

    shape: (height, width, channels).
    """
    rng = np.random.default_rng(seed)

    def one(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        if name == "kernel":
            stacked = leaf.ndim % 2  # by a scan: one more axis in front
            deviation = math.sqrt(2 / math.prod(leaf.shape[stacked:-1]))
            return jnp.asarray(
                rng.standard_normal(leaf.shape, np.float32) * np.float32(deviation), leaf.dtype
            )
        return jnp.asarray(np.full(leaf.shape, float(name in ("scale", "gain", "var"))), leaf.dtype)

    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    )
    return jax.tree_util.tree_map_with_path(one, dict(shapes))
