"""Loss and errors of a batch, in float32 under every precision policy."""

import jax.numpy as jnp
import optax
from jax import Array


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy of each image in nats. logits: (batch, classes), labels: (batch,) ints -> (batch,) float32."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def wrong(logits: Array, labels: Array) -> Array:
    """1 where the largest logit is not the label's. logits: (batch, classes), labels: (batch,) -> (batch,) float32."""
    return (jnp.argmax(logits, axis=-1) != labels).astype(jnp.float32)
