"""Rematerialisation: what the backward pass keeps of the forward pass, and what it computes again."""

from collections.abc import Callable
from typing import Any, Literal

import jax

Remat = Literal["none", "convolutions", "blocks"]

_PRODUCTS = ("conv_general_dilated", "dot_general")


def rematerialized(function: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """The same function, whose gradient keeps less.

    convolutions: outputs of convolutions and products are kept; norms, ReLUs and pools are computed again. blocks: only the outputs
    of blocks and stages are kept, which deepjax's models name "block". none: XLA decides.
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
