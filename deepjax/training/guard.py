"""The guard against NaN and infinity, inside the compiled step.

A loss alone is not enough: XLA:CPU's ReLU can turn an all-NaN tensor into zeros and a finite loss, while gradients or batch
statistics are already NaN. So all three are looked at, and a bad step leaves the state as it was.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def all_finite(*trees: Any) -> Array:
    """True when every number of every leaf is finite. Any pytrees of float arrays -> bool scalar."""
    finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(trees)]).astype(jnp.float32)
    # Counted by a dot product because XLA copies any chain of small reductions into each consumer, here into every leaf of the
    # state: a 56-layer step then compiled in 124 s instead of 7 s on one core. A product it computes once.
    return jnp.dot(finite, jnp.ones_like(finite)) == finite.size


def keep_if(good: Array, new: Any, old: Any) -> Any:
    """`new` where good, else `old`, leaf by leaf. good: bool scalar; both trees of equal structure."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
