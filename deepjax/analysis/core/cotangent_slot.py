"""An identity whose second argument, the slot, receives measurements as its gradient.

It is a primitive of JAX rather than a `custom_vjp`: it is linear, so that derivatives of any kind
and order pass through it, including those that a network takes in its own forward pass
(`jax.grad`, `jax.jvp`, `jax.jacfwd`), and the measured cotangent is always the gradient of the
loss.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from deepjax.backend.jax_internals import Primitive, ad, batching, mlir


def probe(output: Array, slot: Any, recorded: Any, measure: Callable[[Array], Any]) -> Array:
    """Return the output; the gradient of `slot` becomes (recorded, measure(gradient of output)).

    slot: zeros of that structure. recorded, slot and the result of `measure` are trees of arrays;
    `measure` is hashable. Gradients of several calls with one slot add up, including those of the
    runs under `jax.vmap` and `jax.lax.scan`.
    """
    slots, structure = jax.tree.flatten(slot)
    recorded = jax.tree.leaves(jax.lax.stop_gradient(recorded))
    params = {"recorded": len(recorded), "structure": structure, "measure": measure, "batched": 0}
    return _probe.bind(output, *slots, *recorded, **params)


_probe = Primitive("probe")
_probe.def_impl(lambda output, *_, **__: output)
_probe.def_abstract_eval(lambda output, *_, **__: output)
mlir.register_lowering(_probe, lambda context, output, *_, **__: [output])


def _jvp(primals: Any, tangents: Any, **params: Any) -> tuple[Any, Any]:
    """Linear in the output and the slot; the recorded values are constants."""
    linear = len(primals) - params["recorded"]
    given = map(ad.instantiate_zeros, tangents[:linear])
    return _probe.bind(*primals, **params), _probe.bind(*given, *primals[linear:], **params)


def _transpose(
    cotangent: Any,
    output: Any,
    *rest: Any,
    recorded: int,
    structure: Any,
    measure: Any,
    batched: int,
) -> list[Any]:
    values = rest[len(rest) - recorded :]
    if type(cotangent) is ad.Zero:
        return [cotangent, *[None] * len(rest)]
    for _ in range(batched):
        measure = jax.vmap(measure)
    return [cotangent, *values, *jax.tree.leaves(measure(cotangent)), *[None] * recorded]


def _batch(arguments: Any, axes: Any, *, batched: int, **params: Any) -> tuple[Any, int]:
    """A slot without a batch axis is broadcast, so that the gradients of the examples add up."""
    (size,) = {
        each.shape[axis] for each, axis in zip(arguments, axes, strict=True) if axis is not None
    }
    leading = [
        jnp.broadcast_to(each, (size, *each.shape)) if axis is None else jnp.moveaxis(each, axis, 0)
        for each, axis in zip(arguments, axes, strict=True)
    ]
    return _probe.bind(*leading, batched=batched + 1, **params), 0


ad.primitive_jvps[_probe] = _jvp
ad.primitive_transposes[_probe] = _transpose
batching.primitive_batchers[_probe] = _batch
