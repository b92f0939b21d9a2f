"""Networks as they are written, for what reads a traced computation in place of running it."""

from contextlib import AbstractContextManager
from typing import Any

import jax

_AS_WRITTEN = jax.make_user_context(
    default_value=False
)  # JAX keeps what it traced within apart from what it traced outside


def reference_lowering() -> AbstractContextManager[Any]:
    """While a network is traced within, no convolution takes the form that its backend computes fastest."""
    return _AS_WRITTEN(True)


def in_reference_lowering() -> bool:
    """Whether what is traced now is only to be read."""
    return bool(_AS_WRITTEN.value)
