"""A study: a claim, arms and instruments, a rule fixed beforehand, a control; conducted from one command to one page."""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepjax.backend.compilation_cache import enable_compilation_cache
from deepjax.data import dataset_info
from deepjax.data.splits import check_opens
from deepjax.errors import require, unknown_name_error
from deepjax.io import write_text
from deepjax.paths import run_directory, user_path
from deepjax.progress import display, say_on_stderr
from deepjax.study.arms import Arm, ArmResult, collect, run_arm
from deepjax.study.report.curves import percent, plain_values
from deepjax.study.report.html import Figure, Page, Table, format_outcome, provenance, render
from deepjax.study.stats.verdict import Verdict
from deepjax.study.workers import RunAll, Task, TaskReport, default_jobs, worker_pool
from deepjax.training.config import train_config
from deepjax.training.config_file import init_run_dir
from deepjax.training.distributed.launchers import require_one_process
from deepjax.training.metrics_log import Row
from deepjax.training.numerics import claim_numerics
from deepjax.training.run_lock import hold

PARTS = 100  # into which the measurement of a seed is cut, for whoever watches


@dataclasses.dataclass(frozen=True)
class Preset:
    """How a study is run on one data set, and what is expected of it."""

    expected: str
    """What is expected, with its source; said before the runs."""
    seeds: int = 3
    rates: tuple[float, ...] = (0.1, 0.03, 0.01)
    """Learning rates that every arm is tried at, on its first seed."""
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `TrainConfig` that all arms share."""
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What else the study is made of: depths, widths, numbers of images."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Conduct this study on one data set; the same command again carries on, or only judges and draws again."""

    dataset: str = "digits"
    """Data set; each study has a preset for some."""
    seeds: int = 0
    """Seeds of each arm; 0 means the preset's. The first also chooses the learning rate."""
    first_seed: int = 0
    """The first seed; pilots that a protocol is chosen on take others than the study's, from 1000 on."""
    output_dir: Path | None = None
    """Directory of the study: result.json, report.html, figures, runs/. Default runs/NAME-DATASET."""
    jobs: int = 0
    """Processes at a time; 0 means one a CPU core, or one in all on an accelerator."""
    arm: str = ""
    """Run this arm alone; the study is finished by the same command without it."""
    data_dir: str | None = None
    """Where prepared data sets live; default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    reuse_runs_from: Path | None = None
    """Folder of other studies: a run of theirs that is one of this study's too is copied and not repeated."""

    def __post_init__(self) -> None:
        require(
            self.seeds == 0 or 2 <= self.seeds <= 1000,
            "seeds",
            self.seeds,
            "0 (the preset's), or 2 to 1000",
        )
        require(0 <= self.first_seed < 2**31, "first_seed", self.first_seed, "0 to 2147483647")
        require(self.jobs >= 0, "jobs", self.jobs, "0 (one a CPU core) or more")


@dataclasses.dataclass(frozen=True)
class SeedContext:
    """What a measurement is of: one seed of the study."""

    dataset: str
    preset: Preset
    seed: int
    runs: Mapping[str, Path]
    """The run directory of each arm at its chosen rate, with this seed."""
    data_dir: str | None
    progress: Callable[[int, int], None]
    """Called with parts done and parts in all."""


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """What a study found, ready to be judged and drawn."""

    options: Options
    preset: Preset
    arms: Mapping[str, ArmResult]
    measured: Sequence[Mapping[str, Any]]
    """What was measured, seed by seed."""

    def values(self, *path: Any) -> list[Any]:
        """A measured quantity, seed by seed: evidence.values("slope", "plain")."""
        return [functools.reduce(lambda part, key: part[key], path, seed) for seed in self.measured]


@dataclasses.dataclass(frozen=True)
class Study:
    """A study as its script declares it. Arms are trained first; then `measure` looks at every seed; `judge` has the rules."""

    name: str
    lecture: str
    """What the lecture says."""
    title: str
    question: str
    presets: Mapping[str, Preset]
    judge: Callable[[StudyResults], list[Verdict]]
    """The claims, then the controls."""
    draw: Callable[[StudyResults, Path], list[Figure]]
    method: Callable[[StudyResults], list[str]]
    limits: Callable[[StudyResults], list[str]]
    arms: Callable[[Options, Preset], Mapping[str, Arm]] = lambda options, preset: {}
    """The longest first."""
    measure: Callable[[SeedContext], Mapping[str, Any]] | None = None
    """A function of a module (workers import it): what one seed gives, as JSON has it."""
    tables: Callable[[StudyResults], list[Table]] = lambda evidence: []


def make_arm(
    name: str, model: str, options: Options, preset: Preset, make: Any = None, **fields: Any
) -> Arm:
    """An arm of the preset's training, rates and seeds. `make`: see `Arm`; `fields`: of `TrainConfig`, over the preset's."""
    config = train_config(model=model, dataset=options.dataset, **(dict(preset.training) | fields))
    # A run of a few hundred steps is repeated faster than it is saved and restored; longer ones are saved as they go.
    every = min(config.total_steps, 2000)
    return Arm(name, config, preset.rates, seeds_of(options, preset), every, make)


def seeds_of(options: Options, preset: Preset) -> tuple[int, ...]:
    """The seeds of the study."""
    return tuple(range(options.first_seed, options.first_seed + preset.seeds))


def run_study(study: Study, options: Options) -> None:
    """Run what is missing, judge, draw, and print the verdicts. Raises InputError for options that the study does not have."""
    began = time.monotonic()
    require_one_process(os.environ, "a study")
    enable_compilation_cache()
    if options.dataset not in study.presets:
        raise unknown_name_error("dataset", options.dataset, study.presets)
    preset = study.presets[options.dataset]
    preset = dataclasses.replace(preset, seeds=options.seeds or preset.seeds)
    out = run_directory(
        options.output_dir or Path("runs") / f"{study.name}-{options.dataset}", "output_dir"
    )
    options = dataclasses.replace(
        options,
        out=out,
        beside=options.reuse_runs_from and user_path(options.reuse_runs_from, "reuse_runs_from"),
    )
    arms = study.arms(options, preset)
    if options.arm and options.arm not in arms:
        raise unknown_name_error("arm", options.arm, arms)
    if any(collect(arm, out) is None for arm in arms.values()):
        check_opens(
            dataset_info(options.dataset), options.data_dir
        )  # says what to do where it is not prepared
    with hold(
        out / "runs" / options.arm if options.arm else out, say_on_stderr, one_process=True
    ):  # several arms may run at a time
        claim_numerics(out)
        init_run_dir(out, _identity(study, options, preset))
        _run_and_conclude(study, options, preset, arms, out, began)


def _run_and_conclude(
    study: Study, options: Options, preset: Preset, arms: Mapping[str, Arm], out: Path, began: float
) -> None:
    """What is missing, then the verdicts, in a study directory that is locked."""
    with worker_pool(options.jobs or default_jobs()) as run_all:
        ran = _train(
            study,
            options,
            [arm for arm in arms.values() if options.arm in ("", arm.name)],
            out,
            run_all,
        )
        if options.arm:
            print(
                f"arm {options.arm} is done in {out}; the same command without --arm concludes the study"
            )
            return
        ran = _measure(study, options, preset, arms, out, run_all) or ran
    seconds = _seconds(out, time.monotonic() - began, ran)
    results = {
        name: result for name in sorted(arms) if (result := collect(arms[name], out)) is not None
    }
    measured = [_read(out, seed) for seed in seeds_of(options, preset)] if study.measure else []
    verdicts = _conclude(study, StudyResults(options, preset, results, measured), out, seconds)
    if not ran:
        print("was done already; judged and drawn again from its rows")
    _print(verdicts)
    print(
        f"\n{seconds:.0f} s in all. Read {out / 'report.html'}; figures and result.json beside it."
    )


def _identity(study: Study, options: Options, preset: Preset) -> Any:
    """What makes two studies the same, stored as the study's config.json."""
    how = {"output_dir", "jobs", "arm", "data_dir", "seeds", "reuse_runs_from"}
    fields = {
        f.name: getattr(options, f.name) for f in dataclasses.fields(options) if f.name not in how
    }
    whole = (
        {"study": study.name}
        | fields
        | {f.name: getattr(preset, f.name) for f in dataclasses.fields(preset)}
    )
    return dataclasses.make_dataclass("Identity", list(whole), frozen=True)(**whole)


def _train(study: Study, options: Options, arms: Sequence[Arm], out: Path, run_all: RunAll) -> bool:
    missing = [arm for arm in arms if collect(arm, out) is None]
    tasks = [
        functools.partial(
            run_arm, arm, out, options.data_dir, reuse_runs_from=options.reuse_runs_from
        )
        for arm in missing
    ]
    return _run(
        study, options, tasks, run_all, {arm.name: arm.total_steps for arm in missing}, "step"
    )


def _measure(
    study: Study,
    options: Options,
    preset: Preset,
    arms: Mapping[str, Arm],
    out: Path,
    run_all: RunAll,
) -> bool:
    if study.measure is None:
        return False
    tasks: dict[str, Task] = {}
    for seed in seeds_of(options, preset):
        if not _measurement_path(out, seed).exists():
            runs = {
                name: arm.folder(out, result.rate, seed)
                for name, arm in arms.items()
                if (result := collect(arm, out))
            }
            given = (study.measure, options.dataset, preset, seed, runs, options.data_dir, out)
            tasks[f"seed {seed}"] = functools.partial(_measure_seed, *given)
    return _run(study, options, list(tasks.values()), run_all, dict.fromkeys(tasks, PARTS), "part")


def _run(
    study: Study,
    options: Options,
    tasks: Sequence[Task],
    run_all: RunAll,
    names: Mapping[str, int],
    unit: str,
) -> bool:
    """Whether there was anything to run."""
    if tasks:
        with display(f"{study.name} on {options.dataset}", names, unit) as report:
            run_all(tasks, report)
    return bool(tasks)


def _measure_seed(
    measure: Callable[[SeedContext], Mapping[str, Any]],
    dataset: str,
    preset: Preset,
    seed: int,
    runs: Mapping[str, Path],
    data_dir: str | None,
    out: Path,
    report: TaskReport,
) -> None:
    """Inside a worker: one seed, measured and kept."""

    def progress(done: int, total: int) -> None:
        report(f"seed {seed}", round(PARTS * done / total), PARTS)

    measured = measure(SeedContext(dataset, preset, seed, runs, data_dir, progress))
    write_text(_measurement_path(out, seed), json.dumps(measured) + "\n")
    progress(1, 1)


def _measurement_path(out: Path, seed: int) -> Path:
    return out / "measured" / f"seed{seed}.json"


def _read(out: Path, seed: int) -> Row:
    return json.loads(_measurement_path(out, seed).read_text())


def _conclude(study: Study, evidence: StudyResults, out: Path, seconds: float) -> list[Verdict]:
    """result.json, figures and report.html."""
    import jax

    verdicts = study.judge(evidence)
    pictures = study.draw(evidence, out)
    origin = provenance(seconds, f"{jax.device_count()} x {jax.devices()[0].device_kind}")
    record = {
        "study": study.name,
        "lecture": study.lecture,
        "title": study.title,
        "dataset": evidence.options.dataset,
        "seeds": evidence.preset.seeds,
        "expected": evidence.preset.expected,
        "verdicts": [verdict.as_dict() for verdict in verdicts],
        "figures": [
            {"file": picture.path.name, "caption": picture.caption} for picture in pictures
        ],
        "arms": plain_values(dict(evidence.arms)),
        "wall_seconds": seconds,
    }
    write_text(out / "result.json", json.dumps(record | origin, indent=2) + "\n")
    page = Page(
        title=study.title,
        question=study.question,
        verdicts=verdicts,
        method=[
            *study.method(evidence),
            _data(evidence),
            f"Expected beforehand: {evidence.preset.expected}.",
        ],
        pictures=pictures,
        tables=[*study.tables(evidence), *_arm_tables(evidence)],
        limits=study.limits(evidence),
        provenance=origin,
    )
    write_text(out / "report.html", render(page))
    return verdicts


def _data(evidence: StudyResults) -> str:
    dataset = dataset_info(evidence.options.dataset)
    shape = "x".join(map(str, dataset.shape[:2]))
    trained = ", ".join(f"{name} {value}" for name, value in evidence.preset.training.items())
    how = (
        f" Training: {trained}; rates tried on the first seed: {', '.join(f'{r:g}' for r in evidence.preset.rates)}."
        if trained
        else ""
    )
    images = (
        f"{dataset.train_size:,} training and {dataset.test_size:,} test images of {shape} pixels"
    )
    return f"Data: {dataset.name} ({dataset.source}), {images}. {evidence.preset.seeds} seeds.{how}"


def _arm_tables(evidence: StudyResults) -> list[Table]:
    """Every final error by seed, and the sweep."""
    if not evidence.arms:
        return []
    rates, finals, sweep = evidence.preset.rates, [], []
    for name, arm in evidence.arms.items():
        errors = [arm.final("train_error"), arm.final("test_error")]
        known = (
            f"{name} ({arm.diverged} of {len(arm.rows)} diverged, and guess)"
            if arm.diverged
            else name
        )
        finals.append(
            [
                known,
                f"{arm.rate:g}",
                *[f"{percent(e)} ({', '.join(f'{100 * x:.2f}' for x in e)})" for e in errors],
            ]
        )
        tried = [
            f"{100 * e:.2f} %" if e != float("inf") else "not finite" for e in arm.sweep.values()
        ]
        sweep.append([name, *tried])
    return [
        Table("Final error: mean (seed by seed)", ("arm", "rate", "training", "test"), finals),
        Table(
            "Training error by rate, on the first seed; the best is used",
            ("arm", *[f"{r:g}" for r in rates]),
            sweep,
        ),
    ]


def _print(verdicts: Sequence[Verdict]) -> None:
    for verdict in verdicts:
        print(f"{'control' if verdict.control else verdict.outcome.upper():13} {verdict.claim}")
        for finding in ([format_outcome(verdict)] if verdict.control else []) + list(
            verdict.findings
        ):
            print(f"{'':13} - {finding}")


def _seconds(out: Path, now: float, ran: bool) -> float:
    """Wall time of the invocation that ran something; one that only draws again keeps what was recorded."""
    path = out / "result.json"
    return now if ran or not path.exists() else float(json.loads(path.read_text())["wall_seconds"])
