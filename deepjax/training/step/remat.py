"""Rematerialisation: what the backward pass keeps of the forward pass, and what it recomputes."""

from collections.abc import Callable
from typing import Any, Literal

import jax

Remat = Literal["none", "convolutions", "blocks"]

_PRODUCTS = ("conv_general_dilated", "dot_general")


def rematerialized(function: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """The same function, whose gradient keeps fewer activations.

    convolutions: outputs of convolutions and matrix products are saved; norms, ReLUs and pools are
    recomputed. blocks: only outputs of blocks and stages are saved, which deepjax's models name
    "block". none: no policy.
    """
    if remat == "none":
        return function
    policy = (
        jax.checkpoint_policies.save_only_these_names("block")
        if remat == "blocks"
        else _save_products
    )
    return jax.checkpoint(function, policy=policy)


def _save_products(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in _PRODUCTS
