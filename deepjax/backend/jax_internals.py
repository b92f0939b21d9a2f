"""Parts of JAX outside its compatibility policy: jaxprs, their equations, and new primitives.

All other files import them from here, so that a new version of JAX concerns one file.
"""

from jax.extend.core import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    Primitive,
    Var,
    jaxpr_as_fun,
)
from jax.interpreters import ad, batching, mlir

__all__ = [
    "ClosedJaxpr",
    "Jaxpr",
    "JaxprEqn",
    "Literal",
    "Primitive",
    "Var",
    "ad",
    "batching",
    "jaxpr_as_fun",
    "mlir",
]
