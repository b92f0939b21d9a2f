"""Stochastic depth: residual branches left out at random in training, and scaled by their survival in evaluation.

Huang, Sun, Liu, Sedra and Weinberger, "Deep networks with stochastic depth", 2016 (arXiv:1603.09382).
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
    """A residual network of deepjax, of which each residual branch survives a training step by chance.

    In training the l-th of L residual sums becomes shortcut + b_l branch, where b_l is 1 with probability
    p_l = 1 - l / L (1 - survival) (their eq. 4, linear decay) and else 0; in evaluation it is shortcut + p_l branch (eq. 5). A sum
    whose p_l is 1 is left as it is, so that survival=1 is the network itself, to the bit.
    `network`: any that has residual sums, written out block by block; its parameters and statistics keep their names.
    `survival`: p_L, of the last sum. `per`: what shares a draw, the "batch" (the paper) or each "example" by itself. Draws come
    from the rng "dropout". Raises InputError for a survival outside (0, 1], and for a network of scanned blocks or without sums.
    Unlike the paper's code this computes a branch that is left out, and updates its running statistics: nothing is saved in time.
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
            "False: scanned blocks would share one survival",
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
                f"network is a {type(self.network).__name__} without residual sums, whose branches could be left out; "
                "allowed: a residual network, or survival 1 (drop-path 0) without StochasticDepth"
            )
        with nn.intercept_methods(intercept):
            logits = self.network(images, train=train)  # pyright: ignore[reportCallIssue]  # every network of deepjax is called so
        if not places or len(places) != sums:
            raise InputError(
                f"network has {len(places)} residual sums in {sums} blocks; allowed: one in each block"
            )
        return logits

    def _draws(self, survives: list[float], examples: int) -> Array:
        """Which branches are kept: (sums, 1 or examples) booleans, drawn at once."""
        shape = (len(survives), examples if self.per == "example" else 1)
        return jax.random.bernoulli(self.make_rng("dropout"), jnp.asarray(survives)[:, None], shape)


def stochastic_depth(
    name: str, survival: float = 0.5, per: Literal["batch", "example"] = "batch", **fields: Any
) -> StochasticDepth:
    """The network of that name under stochastic depth; `fields` are its own. Raises InputError for what it does not know.

    >>> stochastic_depth("cifar_resnet110", survival=0.5, width=8).network.stages
    (18, 18, 18)
    """
    return StochasticDepth(create_model(name, **fields), survival, per)


def _gated(
    shortcut: Array, branch: Array, *, survives: float, keep: Array | None
) -> tuple[Array, Array]:
    """The sum's arguments with the branch kept or left out, or scaled by its survival where nothing was drawn."""
    if survives == 1:
        return shortcut, branch
    if keep is None:
        return shortcut, branch * jnp.asarray(survives, branch.dtype)
    return shortcut, jnp.where(
        keep.reshape(-1, *[1] * (branch.ndim - 1)), branch, jnp.zeros_like(branch)
    )
