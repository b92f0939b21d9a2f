"""What a study is: its declaration, its options, and the results that it is judged by."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepjax.errors import require
from deepjax.study.arm_result import ArmResult
from deepjax.study.arms import Arm
from deepjax.study.cost import NetworkCost, network_costs
from deepjax.study.report.html import Figure, Table
from deepjax.study.report.plots import arm_label
from deepjax.study.stats.verdict import Verdict
from deepjax.training.config import train_config

# He et al. 2015, section 4.2: 64k iterations, 0.1 divided by ten at 32k and 48k, decay of 1e-4 on
# everything.
HE_2015_CIFAR: Mapping[str, Any] = {
    "steps": 64_000,
    "schedule": "step",
    "warmup_epochs": 0.0,
    "nesterov": False,
    "decay_norm_and_bias": True,
}


@dataclasses.dataclass(frozen=True)
class Preset:
    """How a study is run on one data set, and what is expected of it."""

    expected: str
    """The expected result with its source, fixed before the runs."""
    seeds: int = 3
    rates: tuple[float, ...] = (0.1, 0.03, 0.01)
    """Learning rates of every arm's sweep, on its first seed."""
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `TrainConfig` that all arms have in common."""
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Other parameters of the study: depths, widths, numbers of images."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Run this study on one data set; the same command resumes it, or judges and draws it again."""

    dataset: str = "digits"
    """Data set; each study has a preset for some."""
    seeds: int = 0
    """Seeds of each arm; 0 means the preset's. The first also selects the learning rate."""
    first_seed: int = 0
    """The first seed; use seeds from 1000 on for pilots that a protocol is chosen on."""
    output_dir: Path | None = None
    """Study directory: result.json, report.html, figures, runs/. Default runs/NAME-DATASET."""
    jobs: int = 0
    """Number of worker processes; 0 means one per CPU core, or a single one on an accelerator."""
    arm: str = ""
    """Run only this arm; the same command without it completes the study."""
    data_dir: str | None = None
    """Directory of prepared data sets; default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    reuse_runs_from: Path | None = None
    """Reuse runs from this directory of studies: finished runs with an equal config are copied."""

    def __post_init__(self) -> None:
        require(
            self.seeds == 0 or 2 <= self.seeds <= 1000,
            "seeds",
            self.seeds,
            "0 (the preset's), or 2 to 1000",
        )
        require(0 <= self.first_seed < 2**31, "first_seed", self.first_seed, "0 to 2147483647")
        require(self.jobs >= 0, "jobs", self.jobs, "0 (one per CPU core) or more")


@dataclasses.dataclass(frozen=True)
class SeedContext:
    """What a study's `measure` is given: one seed with its runs."""

    dataset: str
    preset: Preset
    seed: int
    runs: Mapping[str, Path]
    """By arm: the run directory at the selected rate, with this seed."""
    data_dir: str | None
    progress: Callable[[int, int], None]
    """Called with parts done and the total."""


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """The results of a study, from which it is judged and drawn."""

    options: Options
    preset: Preset
    arms: Mapping[str, ArmResult]
    measured: Sequence[Mapping[str, Any]]
    """By seed: what `measure` returned."""
    declared: Mapping[str, Arm] = dataclasses.field(default_factory=dict)
    """The arms as the study declares them."""
    verdicts: Sequence[Verdict] = ()
    """The verdicts, once judged: for figures and tables."""

    def values(self, *path: Any) -> list[Any]:
        """A measured value by seed: results.values("slope", "plain")."""
        return [functools.reduce(lambda part, key: part[key], path, seed) for seed in self.measured]

    @functools.cached_property
    def costs(self) -> dict[str, NetworkCost]:
        """Parameters and multiply-adds of every arm's network, in the order of declaration."""
        return network_costs(self.declared)

    def with_cost(self, name: str) -> tuple[str, ArmResult]:
        """An arm's label, with the cost of its network, and its results."""
        cost = self.costs[name]
        label = f"{arm_label(name)} ({cost.params:,} parameters, {cost.macs:,} multiply-adds)"
        return label, self.arms[name]


@dataclasses.dataclass(frozen=True)
class Study:
    """A study as its script declares it.

    Arms are trained first; then `measure` is called for every seed; then `judge` applies the rules.
    """

    name: str
    lecture: str
    """The claim of the lecture."""
    title: str
    question: str
    presets: Mapping[str, Preset]
    judge: Callable[[StudyResults], list[Verdict]]
    """The claims, then the controls."""
    draw: Callable[[StudyResults, Path], list[Figure]]
    """The figures, from the judged results, written to the directory."""
    method: Callable[[StudyResults], list[str]]
    limits: Callable[[StudyResults], list[str]]
    arms: Callable[[Options, Preset], Mapping[str, Arm]] = lambda options, preset: {}
    """By name, the longest first."""
    measure: Callable[[SeedContext], Mapping[str, Any]] | None = None
    """A module-level function, since workers import it: JSON values of one seed."""
    tables: Callable[[StudyResults], list[Table]] = lambda results: []


def make_arm(
    name: str, model: str, options: Options, preset: Preset, make: Any = None, **fields: Any
) -> Arm:
    """An arm with the preset's training, rates and seeds.

    `make`: see `Arm`; `fields`: of `TrainConfig`, override the preset's.
    """
    config = train_config(model=model, dataset=options.dataset, **(dict(preset.training) | fields))
    # Repeating a run of a few hundred steps is faster than saving and restoring it.
    save_every = min(config.total_steps, 2000)
    return Arm(name, config, preset.rates, study_seeds(options, preset), save_every, make)


def study_seeds(options: Options, preset: Preset) -> tuple[int, ...]:
    """The seeds of the study."""
    return tuple(range(options.first_seed, options.first_seed + preset.seeds))
