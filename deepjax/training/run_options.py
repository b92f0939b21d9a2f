"""How a run is executed: checkpoints, devices, logs; nothing here changes what is computed."""

import dataclasses
import re
from typing import Literal

from deepjax.errors import require
from deepjax.training.distributed.sharding import Strategy
from deepjax.training.validation import at_least, check_types, check_values

ProbeDetail = Literal["top", "sharpness", "layers", "full"]


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Checkpoints, devices and logs of a run; a resumed run may have others."""

    save_every: int = 0
    """Steps between checkpoints; 0: once an epoch. The last step is always saved."""
    keep_last: int = 2
    """Number of newest checkpoints to keep."""
    keep_best: int = 1
    """Number of checkpoints with the lowest test error to keep as well."""
    verify_saves: Literal["structure", "full"] = "structure"
    """Check of a saved checkpoint. structure: file hashes, and path, type and shape of every array;
    full: every value too, bitwise (a copy of the state stays on the host until then)."""
    strategy: Strategy = "jit"
    """Parallelisation: one partitioned program (jit), or one per device (pmap). Equal to rounding,
    except that dropout samples another mask on each device of pmap."""
    fsdp: bool = False
    """Shard parameters and optimizer state over the devices too (needs strategy jit)."""
    step_timeout: float = 1800.0
    """Seconds without a finished step (or, before the first, a part of the preparation) after which
    all stacks are printed and the run exits with 75; 0: never."""
    resident: bool = False
    """Keep the training images on the devices, and run the steps of about a second as one program:
    faster for small networks. For arrays, not for photographs, which are decoded as they are
    read; needs strategy jit."""
    probe_every: int = 0
    """Steps between probes of every layer's activations and gradients (rows of kind "trace" in
    metrics.jsonl); 0: off. Needs strategy jit."""
    probe: ProbeDetail = "top"
    """Probe of top-level modules (top), every layer (layers), or curvature and noise too (full)."""
    tensorboard: bool = False
    """Log to TensorBoard too, each step (needs the extra `tensorboard`)."""
    wandb: bool = False
    """Log to Weights & Biases too, each step (needs the extra `wandb`); WANDB_PROJECT, WANDB_NAME
    and WANDB_MODE=offline are read."""
    log_every: int = 1
    """Steps between two points of loss, learning rate and gradient norm in these two."""
    histogram_every: int = 0
    """Steps between histograms of all parameters and gradients in these two, at about the cost of a
    step; 0: off. Needs strategy jit."""
    profile: str = ""
    """Steps A:B to trace with jax.profiler, for XProf and Perfetto, in profile/ of the run
    directory: 100:110 for the ten steps after step 100."""
    decode_threads: int = 0
    """Threads that decode photographs; 0: one per available CPU core."""
    data_dir: str | None = None
    """Folder or URL (gs://, s3://) of prepared data sets; default $TFDS_DATA_DIR or
    ~/tensorflow_datasets. A run on photographs resumes only with the data set that it began with,
    by its fingerprint."""

    def __post_init__(self) -> None:
        check_types(self)
        check_values(
            self,
            save_every=at_least(0, "0 (once an epoch) or more"),
            keep_last=at_least(1),
            keep_best=at_least(0),
            probe_every=at_least(0, "0 (never) or more"),
            log_every=at_least(1),
            histogram_every=at_least(0, "0 (never) or more"),
            decode_threads=at_least(0, "0 (one a core) or more"),
        )
        require(
            not self.histogram_every or self.tensorboard or self.wandb,
            "histogram_every",
            self.histogram_every,
            "0 without --tensorboard or --wandb, which show histograms",
        )
        require(
            not self.histogram_every or self.strategy == "jit",
            "histogram_every",
            self.histogram_every,
            "0 under strategy 'pmap'; choose strategy 'jit'",
        )
        require(
            not self.resident or self.strategy == "jit",
            "resident",
            self.resident,
            "False under strategy 'pmap'; choose strategy 'jit'",
        )
        require(
            not self.probe_every or self.strategy == "jit",
            "probe_every",
            self.probe_every,
            "0 under strategy 'pmap'; choose strategy 'jit'",
        )
        require(
            not self.profile or bool(self.profile_steps),
            "profile",
            self.profile,
            "A:B with A below B, such as 100:110 for the ten steps after step 100",
        )
        # An infinite limit is allowed.
        require(self.step_timeout >= 0, "step_timeout", self.step_timeout, "0 (no limit) or more")

    @property
    def profile_steps(self) -> range:
        """The steps that are traced, counted from 0; none without `profile`."""
        bounds = re.fullmatch(r"([0-9]+):([0-9]+)", self.profile)
        return range(int(bounds[1]), int(bounds[2])) if bounds else range(0)
