"""Variables from NumPy where their values do not matter, so that no initializer is compiled."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def numpy_variables(model: Any, shape: tuple[int, ...], seed: int = 0) -> dict[str, Any]:
    """Kernels from He's normal distribution, scales and variances 1, everything else 0.

    shape: of one input, (height, width, channels).
    """
    rng = np.random.default_rng(seed)

    def leaf_values(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        if name == "kernel":
            scanned = leaf.ndim % 2  # nn.scan adds an axis in front
            std = np.float32(math.sqrt(2 / math.prod(leaf.shape[scanned:-1])))
            return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * std, leaf.dtype)
        return jnp.asarray(np.full(leaf.shape, float(name in ("scale", "gain", "var"))), leaf.dtype)

    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    )
    return jax.tree_util.tree_map_with_path(leaf_values, dict(shapes))
