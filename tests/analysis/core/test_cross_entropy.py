"""Labels of few bits are the classes that they name, whatever the number of classes."""

import jax
import jax.numpy as jnp
import pytest

from deepjax.analysis import cross_entropy
from deepjax.training.step.guard import labels_valid


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("classes", [128, 200, 256, 300])
def test_labels_of_few_bits(dtype, classes):
    outputs = jax.random.normal(jax.random.key(0), (4, classes))
    labels = jnp.asarray([0, 44, 100, 127])
    few = labels.astype(dtype)
    assert cross_entropy(outputs, (None, few)) == cross_entropy(outputs, (None, labels))
    assert labels_valid(few, classes)


def test_labels_outside_are_not_a_number():
    outputs = jnp.zeros((2, 100))
    assert jnp.isnan(cross_entropy(outputs, (None, jnp.asarray([0, 100], jnp.uint8))))
    assert not labels_valid(jnp.asarray([0, 100], jnp.uint8), 100)
