"""An identity that gives its second argument, the slot, a gradient of one's own choice: what is measured on both passes.

A primitive of JAX rather than a `custom_vjp`: it is linear, so that derivatives of every kind and order pass through it, also those
that a network takes in its own forward pass (`jax.grad`, `jax.jvp`, `jax.jacfwd`), and what it gives is the gradient of the loss.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def probe(output: Array, slot: Any, noted: Any, measure: Callable[[Array], Any]) -> Array:
    """The output. The gradient with respect to slot is (noted, measure(gradient with respect to the output)).

    slot: zeros of that structure. noted, slot and what `measure` returns are trees of arrays; `measure` can be hashed. Gradients of
    several calls with one slot are added up, also those of the runs under `jax.vmap` and `jax.lax.scan`.
    """
    slots, structure = jax.tree.flatten(slot)
    noted = jax.tree.leaves(jax.lax.stop_gradient(noted))
    return _probe.bind(
        output, *slots, *noted, noted=len(noted), structure=structure, measure=measure, batched=0
    )


_probe = Primitive("probe")
_probe.def_impl(lambda output, *_, **__: output)
_probe.def_abstract_eval(lambda output, *_, **__: output)
mlir.register_lowering(_probe, lambda context, output, *_, **__: [output])


def _jvp(primals: Any, tangents: Any, **params: Any) -> tuple[Any, Any]:
    """Linear in the output and the slot; of what is noted no derivative is taken."""
    linear = len(primals) - params["noted"]
    given = map(ad.instantiate_zeros, tangents[:linear])
    return _probe.bind(*primals, **params), _probe.bind(*given, *primals[linear:], **params)


def _transpose(
    cotangent: Any, output: Any, *rest: Any, noted: int, structure: Any, measure: Any, batched: int
) -> list[Any]:
    values = rest[len(rest) - noted :]
    if type(cotangent) is ad.Zero:
        return [cotangent, *[None] * len(rest)]
    for _ in range(batched):
        measure = jax.vmap(measure)
    return [cotangent, *values, *jax.tree.leaves(measure(cotangent)), *[None] * noted]


def _batch(arguments: Any, axes: Any, *, batched: int, **params: Any) -> tuple[Any, int]:
    """One slot for all examples is repeated for each, so that their gradients are added up."""
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
