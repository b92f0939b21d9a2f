"""Loss and errors of a batch, in float32 under every precision policy."""

import jax
import jax.numpy as jnp
import optax
from jax import Array


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy of each image in nats. logits: (batch, classes), labels: (batch,) ints -> (batch,) float32."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def soft_cross_entropy(logits: Array, targets: Array) -> Array:
    """Cross-entropy with a distribution over the classes. logits, targets: (batch, classes) -> (batch,) float32."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def smooth_labels(labels: Array, classes: int, smoothing: float) -> Array:
    """Label smoothing: the label has 1 - smoothing, and all classes share the rest (Szegedy et al. 2015, section 7).

    labels: (batch,) ints -> (batch, classes) float32.
    """
    return (
        jax.nn.one_hot(labels, classes, dtype=jnp.float32) * (1.0 - smoothing) + smoothing / classes
    )


def binary_cross_entropy(logits: Array, targets: Array) -> Array:
    """Each class's own cross-entropy, its mean over the classes (Wightman et al. 2021, arXiv:2110.00476; timm's BCE).

    logits, targets: (batch, classes) -> (batch,) float32.
    """
    return jnp.mean(
        optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets), axis=-1
    )


def top_k_error(logits: Array, labels: Array, guesses: int = 1) -> Array:
    """1 where the label is not among so many largest logits. logits: (batch, classes), labels: (batch,) -> (batch,) float32.

    Of equal logits the first count as larger, as in argmax and top_k. NaN is larger than all, and a label of NaN is wrong.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    before = jnp.arange(logits.shape[-1])[None, :] < labels[:, None]
    ahead = ~(logits <= own) | ((logits == own) & before)  # comparisons with NaN are false
    return (jnp.sum(ahead, axis=-1) >= guesses).astype(jnp.float32)
