"""What an instrument is asked to do: a network on data in a mode, validated."""

import dataclasses
from typing import Any

from jax import Array

from deepjax.analysis.core.losses import Loss
from deepjax.analysis.core.mode import Mode, require_mode
from deepjax.analysis.network.batch import Batches, BatchStack, data_text, stack
from deepjax.analysis.network.module import (
    as_key,
    entry,
    has_batch_norm,
    mode_text,
    validate_inputs,
)
from deepjax.analysis.network.network import Model, Network


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """The arguments that all instruments share, in the form that compiled functions take."""

    network: Network
    """A static argument of jit."""
    variables: dict[str, Any]
    """Without boxes."""
    data: BatchStack
    key: Array
    mode: Mode
    has_batch_norm: bool

    @property
    def mode_text(self) -> str:
        """How the network was set to its mode, and what it samples and writes, for results."""
        return mode_text(self.network, self.variables, self.data.first, self.mode.train)

    @property
    def data_text(self) -> str:
        """Number of examples and kind of batch statistics, for a figure's title."""
        return data_text(self.data.examples, self.mode, self.has_batch_norm)


def make_task(
    model: Model,
    variables: Any,
    batch: Batches,
    *,
    loss: Loss,
    mode: Mode,
    key: Array | None,
    what: str = "loss",
) -> Task:
    """Validate the arguments; raises InputError before anything is computed.

    what: the name of `loss` in messages.
    """
    network, variables = entry(model, variables)
    data, key = stack(batch, require_mode(mode)), as_key(key)
    validate_inputs(network, variables, data.first, loss, mode.train, every=data.stacked, what=what)
    return Task(network, variables, data, key, mode, has_batch_norm(variables))
