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


def smooth(labels: Array, classes: int, smoothing: float) -> Array:
    """Label smoothing: the label has 1 - smoothing, and all classes share the rest (Szegedy et al. 2015, section 7).

    labels: (batch,) ints -> (batch, classes) float32.
    """
    return jax.nn.one_hot(labels, classes, dtype=jnp.float32) * (1.0 - smoothing) + smoothing / classes


def wrong(logits: Array, labels: Array) -> Array:
    """1 where the largest logit is not the label's. logits: (batch, classes), labels: (batch,) -> (batch,) float32."""
    return (jnp.argmax(logits, axis=-1) != labels).astype(jnp.float32)
