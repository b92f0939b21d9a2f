"""Stochastic depth: residual branches dropped at random in training, scaled in evaluation.

Huang, Sun, Liu, Sedra and Weinberger, "Deep networks with stochastic depth", 2016
(arXiv:1603.09382).
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from deepjax.errors import InputError, require
from deepjax.models.layers.basic import Sum
from deepjax.models.registry import create_model


class StochasticDepth(nn.Module):
    """A residual network whose branches are dropped at random in training.

    In training the l-th of L residual sums becomes shortcut + b_l branch, where b_l is 1 with
    probability p_l = 1 - l / L (1 - survival) (eq. 4, linear decay) and else 0; in evaluation it is
    shortcut + p_l branch (eq. 5). A sum with p_l = 1 is unchanged, so that survival=1 is bitwise
    the network itself. `network`: any with residual sums, unrolled; its parameters and statistics
    keep their names. `survival`: p_L, of the last sum. `per`: one random number per "batch" (the
    paper) or per "example". They come from the rng "dropout". Raises InputError for a survival
    outside (0, 1], and for a network of scanned blocks or without sums. Unlike the paper's code a
    dropped branch is computed, and updates its running statistics: no time is saved.
    """

    network: nn.Module
    survival: float = 0.5
    per: Literal["batch", "example"] = "batch"

    def setup(self) -> None:
        # {"stem_conv": ...}, not {"network": {"stem_conv": ...}}
        nn.share_scope(self, self.network)

    def __call__(self, images: Array, train: bool = False) -> Array:
        require(0 < self.survival <= 1, "survival", self.survival, "above 0, up to 1")
        require(self.per in ("batch", "example"), "per", self.per, "'batch', 'example'")
        require(
            not getattr(self.network, "scan", False),
            "scan",
            True,
            "False: scanned blocks would have one survival in common",
        )
        sums = sum(getattr(self.network, "stages", ()))
        survives = [1 - place / sums * (1 - self.survival) for place in range(1, sums + 1)]
        draws = self._draws(survives, images.shape[0]) if train and self.survival < 1 else None
        # by path, for a rematerialised block is traced again
        places: dict[tuple[str, ...], int] = {}

        def intercept(
            function: Any,
            given: tuple[Any, ...],
            named: Mapping[str, Any],
            context: nn.module.InterceptorContext,
        ) -> Any:
            if not isinstance(context.module, Sum) or context.method_name != "__call__":
                return function(*given, **named)
            place = places.setdefault(context.module.path, len(places))
            if place >= sums:
                return function(*given, **named)  # refused below
            return function(
                *_gated(
                    *given,
                    **named,
                    survives=survives[place],
                    keep=None if draws is None else draws[place],
                )
            )

        if not sums or getattr(self.network, "residual", True) is False:
            raise InputError(
                f"network is a {type(self.network).__name__} without residual sums, whose branches "
                "could be left out; allowed: a residual network, or survival 1 (drop-path 0) "
                "without StochasticDepth"
            )
        with nn.intercept_methods(intercept):
            # Every network of deepjax is called so.
            logits = self.network(images, train=train)  # pyright: ignore[reportCallIssue]
        if not places or len(places) != sums:
            raise InputError(
                f"network has {len(places)} residual sums in {sums} blocks; allowed: one in each "
                "block"
            )
        return logits

    def _draws(self, survives: list[float], examples: int) -> Array:
        """Which branches are kept: (sums, 1 or examples) booleans, sampled at once."""
        shape = (len(survives), examples if self.per == "example" else 1)
        return jax.random.bernoulli(self.make_rng("dropout"), jnp.asarray(survives)[:, None], shape)


def stochastic_depth(
    name: str, survival: float = 0.5, per: Literal["batch", "example"] = "batch", **fields: Any
) -> StochasticDepth:
    """The network of that name with stochastic depth; `fields` are its own.

    Raises InputError for an unknown name or field.

    >>> stochastic_depth("cifar_resnet110", survival=0.5, width=8).network.stages
    (18, 18, 18)
    """
    return StochasticDepth(create_model(name, **fields), survival, per)


def _gated(
    shortcut: Array, branch: Array, *, survives: float, keep: Array | None
) -> tuple[Array, Array]:
    """The sum's arguments, the branch kept, dropped, or in evaluation scaled by its survival."""
    if survives == 1:
        return shortcut, branch
    if keep is None:
        return shortcut, branch * jnp.asarray(survives, branch.dtype)
    return shortcut, jnp.where(
        keep.reshape(-1, *[1] * (branch.ndim - 1)), branch, jnp.zeros_like(branch)
    )
