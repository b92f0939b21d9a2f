"""The networks as NNX modules, `to_nnx`; and NNX modules as networks of linen, `NnxInLinen`."""

import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax import Array

from deepjax.errors import InputError


class NnxNetwork(nnx.bridge.ToNNX):
    """A linen network of deepjax with its variables, by the conventions of NNX."""

    def __init__(self, module: nn.Module, rngs: nnx.Rngs) -> None:
        super().__init__(module, rngs)
        self.to_nnx__deterministic = False  # the bridge takes other names for variables

    @property
    def deterministic(self) -> bool:
        """Set by `train()` and `eval()`; new modules are in training mode, as in NNX."""
        return self.to_nnx__deterministic

    @deterministic.setter
    def deterministic(self, value: bool) -> None:
        """Set the mode."""
        self.to_nnx__deterministic = value

    def __call__(self, images: Array, train: bool | None = None, **options: Any) -> Any:
        """Logits; in training mode the batch statistics are updated. train: overrides the mode."""
        train = not self.deterministic if train is None else train
        if train and "mutable" not in options and not self._pytree__state.initializing:
            options["mutable"] = ["batch_stats"]
        return super().__call__(images, train=train, **options)


def to_nnx(model: nn.Module, images: Any, rngs: nnx.Rngs) -> NnxNetwork:
    """A network of `create_model` as an NNX module with initialised parameters.

    images: an array or `jax.ShapeDtypeStruct` of the shape that it will be called with, batch
    included. "batch_stats" are state of the module, dropout samples from `rngs`, and `train()` and
    `eval()` set the mode; it serves `nnx.Optimizer`, `nnx.jit` and `nnx.split` like any other.
    The instruments see its layers as those of the linen network: `from_nnx(module)`.
    """
    module = NnxNetwork(model, rngs)
    nnx.bridge.lazy_init(module, jnp.zeros(images.shape, images.dtype), train=False)
    return module


class NnxInLinen(nn.Module):
    """A network whose class is an NNX module, with (images, train) and linen's collections.

    images: (batch, height, width, channels) -> logits. `fields`: arguments of the class besides
    `rngs`. `train` sets the mode by `train()` and `eval()`; a network that takes it gets it too.
    `freeze_batch_norm`: each nnx.BatchNorm uses its running averages in training too. Raises
    InputError if they change all the same, in a network that passes use_running_average itself.
    """

    network: Callable[..., nnx.Module]
    fields: tuple[tuple[str, Any], ...] = ()
    freeze_batch_norm: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Any:
        """The output of the network."""

        def call(module: Any, images: Array) -> Any:
            module.train() if train else module.eval()
            takes_train = "train" in inspect.signature(type(module).__call__).parameters
            options = {"train": train} if takes_train else {}
            if self.freeze_batch_norm:
                return _with_frozen_norms(module, images, options)
            return module(images, **options)

        def construct(rngs: nnx.Rngs) -> nnx.Module:
            if "default" not in rngs:  # linen initialises with the stream of parameters alone
                rngs = nnx.Rngs(default=rngs.params(), params=rngs.params())
            return self.network(**dict(self.fields), rngs=rngs)

        inner = nnx.bridge.ToLinen(construct, metadata_fn=None, name="network")
        return inner(images, nnx_method=call)


def _with_frozen_norms(module: Any, images: Array, options: dict[str, Any]) -> Any:
    """The output of a network whose batch norms use their running averages."""
    norms = [
        (path, each) for path, each in nnx.iter_modules(module) if isinstance(each, nnx.BatchNorm)
    ]
    for _, norm in norms:
        norm.use_running_average = True
    before = [norm.mean.get_value() for _, norm in norms]
    output = module(images, **options)
    for (path, norm), mean in zip(norms, before, strict=True):
        if norm.mean.get_value() is not mean:
            name = "/".join(map(str, path))
            raise InputError(
                f"freeze_batch_norm is True, and {name} of {type(module).__name__} uses the "
                "statistics of the batch; allowed: nnx.BatchNorm that is called without "
                "use_running_average, outside of nnx transforms"
            )
    return output
