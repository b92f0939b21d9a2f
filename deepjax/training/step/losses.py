"""Loss and errors of a batch, in float32 under every precision policy."""

import jax
import jax.numpy as jnp
import optax
from jax import Array


def label_cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy of each image in nats. (batch, classes), (batch,) ints -> (batch,) float32."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def soft_cross_entropy(logits: Array, targets: Array) -> Array:
    """Cross-entropy with distributions. logits, targets: (batch, classes) -> (batch,) float32."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def smooth_labels(labels: Array, classes: int, smoothing: float) -> Array:
    """Label smoothing (Szegedy et al. 2015, section 7). (batch,) -> (batch, classes) float32."""
    return optax.smooth_labels(jax.nn.one_hot(labels, classes, dtype=jnp.float32), smoothing)


def binary_cross_entropy(logits: Array, targets: Array) -> Array:
    """Mean of the binary cross-entropies of the classes (Wightman et al. 2021, arXiv:2110.00476).

    logits, targets: (batch, classes) -> (batch,) float32.
    """
    return jnp.mean(
        optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets), axis=-1
    )


def top_k_error(logits: Array, labels: Array, guesses: int = 1) -> Array:
    """1 if the label is not among the `guesses` largest logits, else 0.

    (batch, classes), (batch,) ints -> (batch,) float32. Of equal logits the first count as larger,
    as in argmax and top_k. NaN is larger than any number; a label whose logit is NaN is wrong.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    before = jnp.arange(logits.shape[-1])[None, :] < labels[:, None]
    ahead = ~(logits <= own) | ((logits == own) & before)  # comparisons with NaN are false
    return (jnp.sum(ahead, axis=-1) >= guesses).astype(jnp.float32)
