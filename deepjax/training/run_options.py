"""How a run is carried out: nothing here changes what is computed, but for the masks of dropout under pmap, and other data."""

import dataclasses
from typing import Literal

from deepjax.errors import require
from deepjax.training.distributed.sharding import Strategy
from deepjax.training.validation import check_types

ProbeDetail = Literal["top", "layers", "full"]


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Checkpoints, devices and logs of a run; the same run may go on with others."""

    save_every: int = 0
    """Steps between checkpoints; 0 means once an epoch. The last step is always saved."""
    keep_last: int = 2
    """How many of the newest checkpoints are kept."""
    keep_best: int = 1
    """How many checkpoints of the lowest test error are kept beside them."""
    verify_saves: Literal["structure", "full"] = "structure"
    """What of a finished checkpoint is compared before it counts: hashes, and every array's path, type and shape (structure), or
    every value too, bit by bit (full: a copy of the state stays on the host until then)."""
    strategy: Strategy = "jit"
    """How a step is spread over the devices: one partitioned program (jit), or one for each device (pmap). Equal to rounding, but
    that dropout draws another mask on each device of pmap."""
    fsdp: bool = False
    """Shard parameters and optimizer state over the devices too (with jit)."""
    step_timeout: float = 1800.0
    """Seconds without a step's end, or in preparation a part's, after which all stacks are shown and the run exits 75; 0: never."""
    probe_every: int = 0
    """Steps between looks at every layer's activations and gradients (rows of kind "trace"); 0: none. Needs strategy jit."""
    probe: ProbeDetail = "top"
    """What is looked at: the network's top-level modules (economy), every layer (business), curvature and noise too (full)."""
    tensorboard: bool = False
    """Log to TensorBoard too (needs the extra `tensorboard`)."""
    decode_threads: int = 0
    """Threads that decode photographs; 0: as many as there are cores for this process."""
    data_dir: str | None = None
    """Where prepared data sets live; default $TFDS_DATA_DIR or ~/tensorflow_datasets. A run on photographs goes on only with the
    data set that it began with, by its fingerprint."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.save_every >= 0, "save_every", self.save_every, "0 (once an epoch) or more")
        require(self.keep_last >= 1, "keep_last", self.keep_last, "1 or more")
        require(self.keep_best >= 0, "keep_best", self.keep_best, "0 or more")
        require(self.probe_every >= 0, "probe_every", self.probe_every, "0 (never) or more")
        require(
            self.decode_threads >= 0,
            "decode_threads",
            self.decode_threads,
            "0 (one a core) or more",
        )
        can_trace = not self.probe_every or self.strategy == "jit"
        require(
            can_trace,
            "probe_every",
            self.probe_every,
            "0 under strategy 'pmap'; choose strategy 'jit'",
        )
        require(self.step_timeout >= 0, "step_timeout", self.step_timeout, "0 (no limit) or more")
