"""What a study is: its declaration, its presets and its options."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from deepjax.errors import InputError, require, unknown_name_error
from deepjax.html_page import Table
from deepjax.study.arms.arm import OTHER_SEEDS, Arm, TrainedArm, arm_config
from deepjax.study.arms.rates import SelectedRate
from deepjax.study.claim import AnyClaim, Claim, Control
from deepjax.study.preset import Preset
from deepjax.study.report.study_figures import StudyFigure
from deepjax.study.results import StudyResults
from deepjax.study.stats.intervals import PILOT_SEEDS

FIRST_SEED = 100  # of judged runs; lower ones were seen in runs of earlier versions
PILOT_FIRST_SEED = 1000  # of pilots, which are never judged
QUICK_FIRST_SEED = 0

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
class Options:
    """Run this study; the same command resumes it, or judges and draws it again."""

    preset: Literal["quick", "small", "gpu"] = "quick"
    """quick: digits, a minute or two, no verdicts; small: the embedded Fashion-MNIST, on a CPU;
    gpu: the whole Fashion-MNIST in bfloat16."""
    pilots: bool = False
    """Run the pilots instead, which select the learning rate of each arm on other seeds."""
    rates: Path | None = None
    """rates.json of a directory of pilots; default: the rates that the package has."""
    seeds: int = 0
    """Seeds of each arm; 0 means the preset's."""
    output_dir: Path | None = None
    """Study directory: result.json, report.html, figures, runs/. Default runs/NAME-PRESET."""
    jobs: int = 0
    """Number of worker processes; 0: one for every `threads` cores, or one on an accelerator. Of a
    cluster: jobs at a time; 0: all."""
    threads: int = 1
    """Threads of each worker; another number rounds differently."""
    arm: str = ""
    """Run only this arm; the same command without it completes the study."""
    executor: Literal["local", "slurm", "kubernetes"] = "local"
    """local: worker processes of this machine; slurm: a job for each run and measurement, followed
    until they end (needs the extra `cluster`); kubernetes: print a manifest of Jobs."""
    executor_options: tuple[str, ...] = ()
    """Of SLURM: long options of sbatch, such as partition=gpu time=4:00:00 gpus=1 mem=16G; of
    Kubernetes: image=IMAGE claim=CLAIM, and mount, namespace, cpu, memory, gpu=VALUE."""
    retries: int = 3
    """How often a job is submitted again that hung or was killed; not after invalid input."""
    task: tuple[str, ...] = ()
    """Run only this task, in this process, for a scheduler: what it makes in the study directory,
    such as runs/plain44/lr0.1-seed100 or measured/seed100. Of several that of the job's number:
    $JOB_COMPLETION_INDEX (Kubernetes) or $SLURM_ARRAY_TASK_ID."""
    data_dir: str | None = None
    """Directory of prepared data sets; default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    reuse_runs_from: Path | None = None
    """Reuse runs from this directory of studies: finished runs with an equal config are copied."""

    def __post_init__(self) -> None:
        few = self.seeds == 0 or 2 <= self.seeds <= OTHER_SEEDS
        require(few, "seeds", self.seeds, f"0 (the preset's), or 2 to {OTHER_SEEDS}")
        require(self.jobs >= 0, "jobs", self.jobs, "0 (one per CPU core) or more")
        require(self.threads >= 1, "threads", self.threads, "1 or more")
        require(not (self.pilots and self.arm), "arm", self.arm, "none, with --pilots")
        require(self.retries >= 0, "retries", self.retries, "0 or more")
        local = self.executor == "local"
        given = self.executor_options
        require(not (local and given), "executor_options", given, "none, with --executor local")
        alone = local and not self.arm
        require(alone or not self.task, "task", self.task, "none, with --arm or --executor")
        any_part = self.executor != "kubernetes" or not (self.pilots or self.arm)
        allowed = "local or slurm, with --pilots or --arm"
        require(any_part, "executor", self.executor, allowed)


@dataclasses.dataclass(frozen=True)
class SeedContext:
    """What a study's `measure` is given: one seed with its runs."""

    dataset: str
    preset: Preset
    seed: int
    runs: Mapping[str, Path]
    """By arm: the run directory with this seed."""
    data_dir: str | None
    progress: Callable[[int, int], None]
    """Called with parts done and the total."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A study as its script declares it: arms are trained, seeds measured, claims judged."""

    name: str
    title: str
    """A question."""
    lecture: str
    """What the lecture says about it, or, beyond the lecture, what the literature says."""
    presets: Mapping[str, Preset]
    claims: Sequence[AnyClaim]
    """The claims, then the controls."""
    figures: Sequence[StudyFigure]
    """The first one is shown on the page of results."""
    method: str
    """How it was tested, in a few sentences."""
    limits: str
    """What it does not show, in one sentence."""
    arms: Mapping[str, Arm] = dataclasses.field(default_factory=dict)
    """By name, the longest first."""
    measure: Callable[[SeedContext], Mapping[str, Any] | None] | None = None
    """A module-level function, since workers import it: JSON values of one seed, or None where it
    cannot be measured, which leaves the claims open."""
    tables: Sequence[Callable[[StudyResults], Table]] = ()
    beyond: bool = False
    """Whether it goes beyond the lecture."""

    def preset_arms(self, preset: Preset) -> Mapping[str, Arm]:
        """The arms of a preset. Raises InputError for a name that is not declared."""
        for name in preset.arms:
            if name not in self.arms:
                raise unknown_name_error("arm", name, self.arms)
        return {n: arm for n, arm in self.arms.items() if not preset.arms or n in preset.arms}


def study_seeds(preset: Preset, pilots: bool = False) -> tuple[int, ...]:
    """The seeds of the study, or those of its pilots."""
    if pilots:
        return tuple(range(PILOT_FIRST_SEED, PILOT_FIRST_SEED + PILOT_SEEDS))
    first = FIRST_SEED if preset.judged else QUICK_FIRST_SEED
    return tuple(range(first, first + preset.seeds))


def trained_arms(
    study: Study, preset: Preset, rates: Mapping[str, SelectedRate], pilots: bool = False
) -> dict[str, TrainedArm]:
    """The arms of a preset with the rates that the pilots selected, and with the seeds of either.

    Raises InputError for an arm without a rate.
    """
    seeds = study_seeds(preset, pilots)
    found = {}
    for name, arm in study.preset_arms(preset).items():
        pilot = arm.rate_of or name
        rate = SelectedRate(preset.rate) if preset.rate else rates.get(pilot)
        if rate is None:
            raise InputError(
                f"{study.name}: no learning rate was selected for arm {pilot!r}; run the pilots "
                "first, with --pilots, and pass their rates.json as --rates"
            )
        found[name] = TrainedArm(
            name,
            arm_config(arm, preset.dataset, preset.training),
            rate.rate,
            tuple(seed + OTHER_SEEDS * arm.other_seeds for seed in seeds),
            pilot,
            {"train": rate.train_error, "test": rate.test_error},
            arm.make,
        )
    return found


def pilot_arms(study: Study, preset: Preset) -> dict[str, TrainedArm]:
    """The arms whose rates this study's own pilots select, with the seeds of pilots."""
    if preset.rate or preset.pilots:
        return {}
    own = {name: arm for name, arm in study.preset_arms(preset).items() if not arm.rate_of}
    arms = trained_arms(study, preset, dict.fromkeys(own, SelectedRate(1.0)), pilots=True)
    validation = preset.select == "validation"
    return {
        name: dataclasses.replace(
            arms[name],
            config=arm_config(arm, preset.dataset, preset.training, validation),
            validation=validation,
        )
        for name, arm in own.items()
    }


def has_pilots(study: Study, preset: Preset) -> bool:
    """Whether pilots select rates for it, or promise its claims power."""
    return preset.judged and bool(pilot_arms(study, preset) or claims_of_interest(study))


def claims_of_interest(study: Study) -> list[Claim]:
    """The claims that have a smallest effect of interest, without the controls."""
    return [
        claim
        for claim in study.claims
        if isinstance(claim, Claim) and not isinstance(claim, Control) and claim.interest
    ]


def pilot_grid(preset: Preset, arm: str) -> tuple[float, ...]:
    """The rates with which the pilots of an arm begin."""
    return preset.grids.get(arm, preset.grid)
