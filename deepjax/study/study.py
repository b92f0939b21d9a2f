"""Runs the arms of a study: each arm at the best of a few learning rates, over several seeds; finished runs are not repeated."""

import contextlib
import dataclasses
import math
import multiprocessing
import os
import queue
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from deepjax.errors import InputError, NonFiniteError, Stopped, require
from deepjax.training.config import TrainConfig
from deepjax.training.logs import Row, read_rows

ArmReport = Callable[[str, int, int], None]  # (arm, steps done, steps in all)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One condition of a study: every rate is tried on the first seed, and the best one is repeated on the others."""

    name: str
    config: TrainConfig
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    save_every: int = 0
    """Steps between checkpoints of a run; 0 for once an epoch."""

    def __post_init__(self) -> None:
        named = re.fullmatch(r"\w[\w.-]*", self.name, re.ASCII) is not None  # it names a folder, and must stay in its own
        require(named, "arm", self.name, "letters, digits, '_', and after the first '.' and '-'")

    @property
    def total_steps(self) -> int:
        """Steps of all its runs."""
        return (len(self.rates) + len(self.seeds) - 1) * self.config.total_steps

    def run(self, rate: float, seed: int) -> TrainConfig:
        """The configuration of one run."""
        return dataclasses.replace(self.config, learning_rate=rate, seed=seed)

    def folder(self, out: Path, rate: float, seed: int) -> Path:
        """The run directory of one run."""
        return out / "runs" / self.name / f"lr{rate:g}-seed{seed}"


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """What an arm gave: training error by rate in the sweep, the rate chosen, and the rows of every seed's run."""

    sweep: dict[float, float]
    rate: float
    rows: list[list[Row]]

    def final(self, name: str) -> list[float]:
        """A value of the final row, seed by seed."""
        return [rows[-1][name] for rows in self.rows]

    def first(self) -> list[dict[str, float]]:
        """Gradient norms by layer at the first step, seed by seed."""
        return [rows[0]["gradient_norms"] for rows in self.rows]

    def last(self) -> list[dict[str, float]]:
        """Gradient norms by layer, mean over the last epoch, seed by seed."""
        return [self.epochs(i)[-1]["gradient_norms"] for i in range(len(self.rows))]

    def epochs(self, seed: int) -> list[Row]:
        """The epochs of one seed's run."""
        return [row for row in self.rows[seed] if row["kind"] == "epoch"]


def run_arm(arm: Arm, out: Path, data_dir: str | None, report: ArmReport) -> None:
    """Every run of one arm, one after the other in this process; the network is compiled once. Resumes and skips what is done."""
    from deepjax.training import RunOptions, build, train

    programs = None
    options = RunOptions(save_every=arm.save_every, keep_best=0, data_dir=data_dir)
    done = 0

    def run(rate: float, seed: int) -> None:
        nonlocal done, programs
        folder = arm.folder(out, rate, seed)
        if programs is None and not _finished(folder):
            programs = build(arm.config, options)
        train(
            arm.run(rate, seed),
            folder,
            options,
            programs=programs,
            report=lambda step, total, note: report(arm.name, done + step, arm.total_steps),
        )

    for rate in arm.rates:
        with contextlib.suppress(NonFiniteError):  # a rate that diverges is a result of the sweep: it is not chosen
            run(rate, arm.seeds[0])
        done += arm.config.total_steps
    rate = best_rate(sweep_errors(arm, out))
    for seed in arm.seeds[1:]:
        run(rate, seed)
        done += arm.config.total_steps
    report(arm.name, arm.total_steps, arm.total_steps)


def sweep_errors(arm: Arm, out: Path) -> dict[float, float]:
    """Final training error by rate; infinity where training halted; rates whose run is missing are left out."""
    errors = {}
    for rate in arm.rates:
        rows = read_rows(arm.folder(out, rate, arm.seeds[0]) / "metrics.jsonl")
        if rows and rows[-1]["kind"] in ("final", "halted"):
            errors[rate] = rows[-1].get("train_error", math.inf)
    return errors


def best_rate(sweep: dict[float, float]) -> float:
    """The rate of the lowest training error; of equals the highest rate."""
    return min(sweep, key=lambda rate: (sweep[rate], -rate))


def collect(arm: Arm, out: Path) -> ArmResult | None:
    """The result of an arm from its run directories, or None while runs are missing."""
    sweep = sweep_errors(arm, out)
    if len(sweep) < len(arm.rates):
        return None
    rate = best_rate(sweep)
    folders = [arm.folder(out, rate, seed) for seed in arm.seeds]
    if not all(map(_finished, folders)):
        return None
    return ArmResult(sweep, rate, [read_rows(folder / "metrics.jsonl") for folder in folders])


def _finished(folder: Path) -> bool:
    rows = read_rows(folder / "metrics.jsonl")
    return bool(rows) and rows[-1]["kind"] == "final"


def default_jobs() -> int:
    """One process a core on a machine of CPUs; one in all where an accelerator is, which a process would have to itself."""
    accelerators = any(Path("/dev").glob("nvidia[0-9]*")) or any(Path("/dev").glob("accel*"))
    if accelerators and "cpu" not in os.environ.get("JAX_PLATFORMS", ""):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_arms(arms: Sequence[Arm], out: Path, jobs: int, data_dir: str | None, report: ArmReport) -> None:
    """Run every arm in `jobs` processes, the deepest network first; raises the first error of any of them.

    Workers take arms from one queue, so a process that is done early takes the next. Leaving early, by an error or a signal,
    stops the workers, each after saving its step.
    """
    context = multiprocessing.get_context("spawn")
    tasks, messages = context.SimpleQueue(), context.Queue()
    jobs = min(jobs, len(arms))
    for arm in [*arms, *[None] * jobs]:
        tasks.put(arm)
    workers = [context.Process(target=_work, args=(tasks, messages, out, data_dir), daemon=True) for _ in range(jobs)]
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        with _one_thread_each():
            for worker in workers:
                worker.start()
        while any(worker.is_alive() for worker in workers) or not messages.empty():
            _hear(messages, report)
            for worker in workers:
                if worker.exitcode:
                    _hear(messages, report)
                    raise RuntimeError(f"a process of the study died (exit {worker.exitcode}); its message stands above")
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(timeout=60)
        signal.signal(signal.SIGTERM, before)


def _stop(*_: object) -> None:
    raise Stopped("stopped by SIGTERM; the running arms saved their step; the same command carries on")


def _hear(messages: Any, report: ArmReport) -> None:
    """One message of the workers, if one comes within a moment: progress is handed on, an error is raised."""
    try:
        message = messages.get(timeout=0.3)
    except queue.Empty:
        return
    if isinstance(message, Exception):
        raise message
    report(*message)


def _work(tasks: Any, messages: Any, out: Path, data_dir: str | None) -> None:
    """The life of a worker: arms from the queue until there are none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops the workers in order
    try:
        while (arm := tasks.get()) is not None:
            run_arm(arm, out, data_dir, lambda *progress: messages.put(progress))
    except (InputError, NonFiniteError) as error:
        messages.put(error)
    except Stopped:
        pass


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Workers started inside compute with one thread each.

    The work is then shared without waiting, and the number of cores changes no bit of the result: XLA:CPU sums in another order
    for another number of threads.
    """
    before = os.environ.get("NPROC")
    os.environ["NPROC"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["NPROC"]
        else:
            os.environ["NPROC"] = before
