"""A tracing mode in which layers lower to their textbook form, for code that inspects jaxprs."""

from contextlib import AbstractContextManager
from typing import Any

import jax

# A user context is part of JAX's trace cache key, unlike a Python variable.
_REFERENCE = jax.make_user_context(default_value=False)


def reference_lowering() -> AbstractContextManager[Any]:
    """Context manager: no backend-specific rewrites of convolutions while tracing."""
    return _REFERENCE(True)


def in_reference_lowering() -> bool:
    """Whether inside `reference_lowering`."""
    return bool(_REFERENCE.value)
