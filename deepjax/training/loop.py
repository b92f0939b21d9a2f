"""The training loop: steps, metrics, evaluation, checkpoints. `training.step` computes a step."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax

from deepjax.data import EncodedSplit
from deepjax.data.split_spec import SplitName
from deepjax.errors import Stopped, require
from deepjax.paths import AnyPath
from deepjax.progress import say_on_stderr
from deepjax.training.build import CompiledTraining, compile_training, require_kinds
from deepjax.training.checkpoint.manager import Checkpoints
from deepjax.training.config import TrainConfig
from deepjax.training.decode_errors import DecodeErrorLog
from deepjax.training.distributed.collectives import on_primary, sync_errors
from deepjax.training.evaluator import Evaluator
from deepjax.training.graceful_stop import GracefulStop
from deepjax.training.metrics.epoch_metrics import epoch_row, mean_by_layer
from deepjax.training.metrics.histograms import Histograms, requested_histograms
from deepjax.training.metrics.loop_clock import LoopClock
from deepjax.training.metrics.metrics_log import METRICS, read_rows
from deepjax.training.metrics.probe import Probe, requested_probe
from deepjax.training.metrics.profiler import PROFILE_FOLDER, Profiler, remaining_profile
from deepjax.training.metrics.run_log import RunLog, open_run_log
from deepjax.training.metrics.step_log import StepLog
from deepjax.training.metrics.throughput import ThroughputMeter
from deepjax.training.metrics.writer import Row
from deepjax.training.network import ModelFactory, starting_weights
from deepjax.training.plan import TrainPlan
from deepjax.training.preemption import call_all, stop_signals, watchdog
from deepjax.training.recovery import Recovery, restore_or_init
from deepjax.training.run_directory.data_identity import (
    pin_dataset,
    pin_description,
    stored_dataset,
)
from deepjax.training.run_directory.progress_file import ProgressFile
from deepjax.training.run_directory.run_identity import (
    claim_run,
    is_done,
    unclaimed_if_refused,
)
from deepjax.training.run_directory.run_place import RunPlace, open_place
from deepjax.training.run_directory.run_result import RunResult, run_result
from deepjax.training.run_directory.starts import record_start
from deepjax.training.run_directory.weights_identity import pin_weights
from deepjax.training.run_options import RunOptions
from deepjax.training.step.state import TrainState, eval_variables
from deepjax.training.steps import ResidentSteps, Steps, StreamedSteps
from deepjax.training.transfer.starting_weights import StartingWeights

Report = Callable[[int, int, str], None]  # (steps done, total steps, note)

SYNC_EVERY_STEPS = 20  # steps between two reads of the guard, which wait for the devices


def train(
    config: TrainConfig,
    out: AnyPath,
    options: RunOptions = RunOptions(),  # noqa: B008  # frozen
    *,
    programs: CompiledTraining | None = None,
    make: ModelFactory | None = None,
    report: Report = lambda done, total, note: None,
    say: Callable[[str], None] = say_on_stderr,
) -> RunResult:
    """Train one network in the run directory `out`, or resume bitwise from its newest checkpoint.

    `programs`: from `compile_training`; runs that differ in learning rate and seed alone share it.
    `make`: the maker of a network that is not in the registry, see `compile_training`.
    Raises InputError, NonFiniteError, and Stopped (after saving).
    """
    require_kinds(config, options)
    require(
        options.profile_steps.stop <= config.total_steps,
        "profile",
        options.profile,
        f"A:B with B at most {config.total_steps}, the steps of this run",
    )
    say = say if jax.process_index() == 0 else lambda line: None
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(open_place(out, say))
        out, say = place.folder, place.say
        is_new = not (out / "config.json").exists()
        claim_run(out, config)
        rows = read_rows(out / METRICS)
        if on_primary(lambda: is_done(rows)):
            remaining_profile(options.profile_steps, config.total_steps, say)
            return run_result(rows[-1], resumed_at=config.total_steps, was_done=True)
        preempted = stack.enter_context(stop_signals())
        heartbeat = call_all(
            stack.enter_context(watchdog(options.step_timeout)), place.confirm_lock
        )
        with unclaimed_if_refused(out, is_new):
            weights = _read_weights(place, config, programs.make if programs else make)
            heartbeat()
            if programs is None:
                stored = stored_dataset(out, config)
                programs = sync_errors(
                    lambda: compile_training(config, options, heartbeat, make, stored)
                )
                say(str(programs.cost))
            programs.require_same(config)
        for line in programs.warnings:
            say(f"warning: {line}")
        pin_dataset(out, programs.train_split, programs.dataset)
        on_primary(functools.partial(pin_description, out, programs.dataset, options.data_dir))
        place.publish()
        checkpoints = Checkpoints(
            out, options.keep_last, options.keep_best, say, options.verify_saves, place.store
        )
        stack.callback(checkpoints.close)
        heartbeat()
        decode_errors = DecodeErrorLog(programs.train_split, rows, say)
        clock = LoopClock()
        steps = _steps(programs, config, decode_errors, clock, stack)
        start = functools.partial(programs.starting_state, config, weights)
        state = restore_or_init(config, programs, checkpoints, steps, start)
        heartbeat()
        resumed_at = int(state.step)
        decode_errors.rewind(resumed_at)
        on_primary(lambda: record_start(out, resumed_at))
        log = open_run_log(out, rows, resumed_at, config, options, say)
        stack.callback(log.close)
        profiled = remaining_profile(options.profile_steps, resumed_at, say)
        profiler = Profiler(profiled, out / PROFILE_FOLDER, clock, say)
        stack.callback(profiler.close)
        recovery = Recovery(
            config=config,
            compiled=programs,
            checkpoints=checkpoints,
            log=log,
            decode_errors=decode_errors,
            say=say,
            start=start,
        )
        plan = programs.plan
        graceful_stop = GracefulStop(
            preempted=preempted, checkpoints=checkpoints, log=log, total_steps=plan.total_steps
        )
        loop = TrainLoop(
            plan=plan,
            options=options,
            compiled=programs,
            evaluator=Evaluator(programs, heartbeat),
            checkpoints=checkpoints,
            log=log,
            decode_errors=decode_errors,
            recovery=recovery,
            probe=requested_probe(programs, options),
            histograms=requested_histograms(programs, options),
            step_log=StepLog(log, config.batch_size, options.log_every),
            clock=clock,
            profiler=profiler,
            throughput=ThroughputMeter(config.batch_size, clock),
            graceful_stop=graceful_stop,
            heartbeat=heartbeat,
            report=_with_file(report, out),
        )
        final = loop.run(state, steps)
    return run_result(final, resumed_at=resumed_at, was_done=False)


def _steps(
    programs: CompiledTraining,
    config: TrainConfig,
    decode_errors: DecodeErrorLog,
    clock: LoopClock,
    stack: contextlib.ExitStack,
) -> Steps:
    if programs.resident is not None:
        return ResidentSteps(programs, programs.resident, config)
    batches = programs.batches(config, decode_errors.note_train)
    stack.callback(batches.close)
    return StreamedSteps(programs, batches, clock)


def _read_weights(
    place: RunPlace, config: TrainConfig, make: ModelFactory | None
) -> StartingWeights | None:
    """The weights that a run without a checkpoint starts from; None: at random, or it resumes."""
    resumes = on_primary(lambda: bool(place.store.steps()))
    if not config.transfer.weights or resumes:
        return None
    weights = sync_errors(lambda: starting_weights(config, make))
    pin_weights(place.folder, weights)
    place.say(weights.summary())
    for line in weights.warnings:
        place.say(f"warning: {line}")
    return weights


def _with_file(report: Report, out: Path) -> Report:
    """Reports to progress.json too, in process 0."""
    if jax.process_index() > 0:
        return report
    file = ProgressFile(out)

    def both(done: int, total: int, note: str) -> None:
        report(done, total, note)
        file.write(done, total, note)

    return both


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainLoop:
    """The loop of one run, with its collaborators."""

    plan: TrainPlan
    options: RunOptions
    compiled: CompiledTraining
    evaluator: Evaluator
    checkpoints: Checkpoints
    log: RunLog
    decode_errors: DecodeErrorLog
    recovery: Recovery
    probe: Probe | None
    histograms: Histograms | None
    step_log: StepLog
    clock: LoopClock
    profiler: Profiler
    throughput: ThroughputMeter
    graceful_stop: GracefulStop
    heartbeat: Callable[[], None]
    report: Report

    def run(self, state: TrainState, steps: Steps) -> Row:
        """Train from a state to the end, evaluate, and return the final row."""
        self.clock.start()
        self.graceful_stop.stop_if_preempted(int(state.step), "saved")
        self._finish_interrupted_epoch(state)
        state = self._train(state, steps)
        done = int(state.step)
        final = {"kind": "final", "step": done}
        final |= self._evaluate(state, "train") | self._evaluate(state, "test")

        def write_final() -> None:
            with self.clock.part("checkpoint"):
                final["digest"] = self.checkpoints.digest(done)
            final.update(self.clock.row())
            self.log.write(final)

        on_primary(write_final)
        return final

    def _train(self, state: TrainState, steps: Steps) -> TrainState:
        """Take every step that is left. The guard is read before anything is logged or saved."""
        plan, done = self.plan, int(state.step)
        began = time.monotonic()
        self._start_meters(done)
        while done < plan.total_steps:
            self.profiler.before_step(done, state)
            with jax.profiler.StepTraceAnnotation("train", step_num=done + 1):
                self._log_probe(state, steps, done)
                state, metrics = steps.take(state, done, self._next_stop(done) - done)
                self.clock.dispatched(metrics.values["loss"])
            done = metrics.done
            self.throughput.add(metrics.count)
            self.profiler.after_step(done, state)
            self.step_log.add(metrics)
            self.heartbeat()
            preempted, epoch_ends = self.graceful_stop.preempted(), plan.is_epoch_end(done)
            saves = done % self.save_every == 0 or done == plan.total_steps
            counts = self.histograms and done % self.options.histogram_every == 0
            syncs = done == 1 or done % SYNC_EVERY_STEPS == 0 or metrics.count > 1 or counts
            if epoch_ends or saves or preempted or syncs:
                halted_at = self._sync(state, metrics.last("loss"), done)
                if halted_at is not None:
                    with self.clock.part("checkpoint"):
                        state = self.recovery.rollback(state, steps, halted_at)
                    done = int(state.step)
                    self._start_meters(done)
                    continue
            if done == 1:
                norms = mean_by_layer(metrics.last("gradient_norms"), self.compiled.layers)
                self.log.write({"kind": "first", "step": 1, "gradient_norms": norms})
            if self.histograms and counts:
                with self.clock.part("instruments"):
                    self.log.write_histograms(done, self.histograms(state, steps.batch(done - 1)))
            if preempted:
                self.graceful_stop.save_and_stop(state, steps, done)
            row = None
            if epoch_ends:
                try:
                    row = self._log_epoch(state, time.monotonic() - began)
                except Stopped:
                    self.graceful_stop.save_and_stop(state, steps, done)
            if saves:
                self.log.flush()
                last = done == plan.total_steps
                save = self.checkpoints.save_last if last else self.checkpoints.save
                with self.clock.part("checkpoint"):
                    save(state, steps.get_state(), row["test_error"] if row else None)
            if epoch_ends:
                self._start_meters(done)
        return state

    @property
    def save_every(self) -> int:
        """Steps between checkpoints."""
        return self.options.save_every or self.plan.steps_per_epoch

    def _next_stop(self, done: int) -> int:
        """The steps done at the next one after which the state is needed, from `done` steps on."""
        options = self.options
        periods = [self.plan.steps_per_epoch, self.save_every]
        periods += [options.probe_every] if self.probe else []
        periods += [options.histogram_every] if self.histograms else []
        stops = [(done // period + 1) * period for period in periods]
        stops += [1, options.profile_steps.start, options.profile_steps.stop]
        return min(self.plan.total_steps, *(stop for stop in stops if stop > done))

    def _start_meters(self, done: int) -> None:
        """Measure throughput from here on: without compilation, evaluation and saving."""
        self.throughput.start()
        self.step_log.start(done)

    def _finish_interrupted_epoch(self, state: TrainState) -> None:
        """Log an epoch whose evaluation was interrupted, and add its error to its checkpoint."""
        done = int(state.step)
        if self.plan.is_epoch_end(done) and not self.log.has("epoch", done):
            row = self._log_epoch(state, 0.0)
            self.checkpoints.note_metric(done, row["test_error"])

    def _log_probe(self, state: TrainState, steps: Steps, done: int) -> None:
        """Every `probe_every` steps: measure the layers on the state and the next batch."""
        if self.probe is None or done % self.options.probe_every or self.log.has("trace", done):
            return
        with self.clock.part("device"):
            jax.block_until_ready(state)  # the probe would wait for it
        with self.clock.part("instruments"):
            self.log.write(
                {"kind": "trace", "step": done} | self.probe(state, steps.batch(done)).row()
            )

    def _sync(self, state: TrainState, loss: jax.Array, done: int) -> int | None:
        """Read the guard, log decode errors, report progress. Returns the step of a halt."""
        with self.clock.part("device"):
            guard = self.recovery.read_guard(state, loss, done)
        self.step_log.write(done if guard.halted_at is None else guard.halted_at + 1)
        self.decode_errors.flush(self.log.write)
        if guard.halted_at is None:
            note = f"loss {guard.loss:.3f}"
            note += f", {guard.skipped} steps skipped" if guard.skipped else ""
            self.report(done, self.plan.total_steps, note)
        return guard.halted_at

    def _log_epoch(self, state: TrainState, seconds: float) -> Row:
        times = {"seconds": round(seconds, 3)} | self.throughput.row()
        row = epoch_row(state, self.compiled, times) | self._evaluate(state, "test")
        row |= self.clock.row()
        self.log.write(row)
        return row

    def _evaluate(self, state: TrainState, split: SplitName) -> Row:
        done, stop = int(state.step), self.graceful_stop
        with self.clock.part("evaluation"):
            evaluation = self.evaluator(
                *eval_variables(state),
                split,
                limit=self._train_limit() if split == "train" else None,
                before_batch=lambda: stop.stop_if_preempted(done, "saved before evaluation"),
            )
        self.decode_errors.note(done, split, evaluation.decode_errors)
        self.decode_errors.flush(self.log.write)
        return evaluation.row(split)

    def _train_limit(self) -> int | None:
        """The number of training images to evaluate; None: all."""
        compiled = self.compiled
        if limit := compiled.config.data.eval_train_images:
            return limit
        encoded = isinstance(compiled.train_split, EncodedSplit)
        return len(compiled.test_split) if encoded else None
