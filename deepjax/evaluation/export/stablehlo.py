"""A network with its weights as one StableHLO program, by `jax.export`."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, export

from deepjax.backend.lowering import reference_lowering
from deepjax.errors import InputError, describe_error

PLATFORMS = ("cpu", "cuda", "tpu")


def require_flatbuffers() -> None:
    """Raise InputError where the package is missing with which JAX writes and reads programs."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError(
            "format 'stablehlo' needs the package flatbuffers; pip install 'deepjax[export]'"
        )


def to_stablehlo(
    model: nn.Module,
    variables: Mapping[str, Any],
    shape: tuple[int, int, int],
    platforms: Sequence[str] = PLATFORMS,
) -> bytes:
    """The program of normalised float32 images (batch, *shape) -> float32 logits, serialised.

    The batch is of any size; the weights are constants of the program, and the convolutions are
    those of the network as it is written, without what deepjax rewrites for its own backend: so
    one program is correct on all platforms. `jax.export.deserialize` reads it. Raises InputError
    for a network that JAX cannot trace with a batch of unknown size.
    """
    require_flatbuffers()
    constants = jax.tree.map(np.asarray, dict(variables))

    def logits(images: Array) -> Array:
        with reference_lowering():
            found: Any = model.apply(constants, images, train=False)
        return found.astype(jnp.float32)

    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    try:
        return bytes(export.export(jax.jit(logits), platforms=platforms)(images).serialize())
    except Exception as error:  # of the user's network, and JAX's own of several kinds
        raise InputError(
            f"{type(model).__name__} cannot be exported as StableHLO ({describe_error(error)}); "
            "leave stablehlo out of --format"
        ) from error
