"""Batch norms that use their running averages in training, and do not change them."""

from typing import Any

import jax
from flax import linen as nn

from deepjax.models.layers.norms import BatchNorm
from deepjax.models.nnx import NnxInLinen


def freeze_batch_norms(network: nn.Module) -> nn.Module:
    """The network with frozen batch norms: deepjax's, flax.linen's, or of NNX within `NnxInLinen`.

    Parameters and statistics keep their names.
    """
    if isinstance(network, NnxInLinen):
        return network.clone(freeze_batch_norm=True)
    return FrozenBatchNorm(network)


class FrozenBatchNorm(nn.Module):
    """A linen network whose batch norms use their running averages, and do not change them."""

    unfrozen: nn.Module

    def setup(self) -> None:
        nn.share_scope(self, self.unfrozen)

    def __call__(self, images: jax.Array, train: bool = False) -> Any:
        """The network's output; dropout and the like follow `train`."""

        def intercept(function: Any, given: Any, named: Any, context: Any) -> Any:
            module = context.module
            if context.method_name == "__call__" and isinstance(module, BatchNorm):
                object.__setattr__(module, "train", False)
            if context.method_name == "__call__" and isinstance(module, nn.BatchNorm):
                object.__setattr__(module, "use_running_average", None)
                named = {**named, "use_running_average": True}
            return function(*given, **named)

        with nn.intercept_methods(intercept):
            return self.unfrozen(images, train=train)  # pyright: ignore[reportCallIssue]
