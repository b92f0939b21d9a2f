"""The loop around the pure step: data, logs, checkpoints, and nothing that changes what is computed."""

import contextlib
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np

from deepjax.data import EncodedSplit, Split, eval_batches
from deepjax.data.loader import batch_index
from deepjax.errors import NonFiniteError, Stopped
from deepjax.paths import AnyPath, run_directory
from deepjax.training.build import CompiledTraining, compile_training, require_kinds
from deepjax.training.checkpoint.manager import Checkpoints
from deepjax.training.config import TrainConfig
from deepjax.training.data_identity import pin_dataset, pin_description
from deepjax.training.decode_errors import DecodeErrorLog
from deepjax.training.diagnosis import explain
from deepjax.training.distributed.collectives import allgather_strings, on_primary, sync_errors
from deepjax.training.metrics_log import MetricsLog, Row, Tensorboard, read_rows
from deepjax.training.preemption import PreemptionSignal, stop_signals, watchdog
from deepjax.training.probe import Tracer, make_tracer
from deepjax.training.run_identity import claim_run, is_done, locked, unclaimed_if_refused
from deepjax.training.run_options import RunOptions
from deepjax.training.step.state import TrainState, eval_variables
from deepjax.training.throughput import ThroughputMeter

Report = Callable[[int, int, str], None]  # (steps done, steps in all, what to say beside)
Log = Callable[[str], None]
Heartbeat = Callable[[], None]

DIGEST_CHARACTERS = 12  # characters of a digest that a message shows
SYNC_EVERY_STEPS = 20  # steps between looks at the device: the guard's flag, the progress display


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The end of a run: errors are fractions, measured in evaluation mode over every image of the set once.

    Of photographs the training error is that of the first ones, as many as there are test images: an epoch more would cost much.
    """

    steps: int
    train_error: float
    train_loss: float
    train_images: int
    test_error: float
    test_loss: float
    test_images: int
    resumed_at: int
    was_done: bool
    digest: str = ""
    """Of the last checkpoint, read back from the disk, as `python -m deepjax.training.checkpoint digest` gives it."""


def say_on_stderr(line: str) -> None:
    """A line for the one who watches: what a step needs, warnings; nothing where stderr is gone or its disk is full."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def train(
    config: TrainConfig,
    out: AnyPath,
    options: RunOptions = RunOptions(),  # noqa: B008  # frozen
    *,
    programs: CompiledTraining | None = None,
    report: Report = lambda done, total, note: None,
    say: Log = say_on_stderr,
) -> RunResult:
    """Train one network on one data set in the run directory `out`, or carry on from its newest whole checkpoint to the same bits.

    `programs` (from `build`) may be shared by runs that differ in learning rate and seed alone. Raises InputError, NonFiniteError,
    Stopped (after saving).
    """
    require_kinds(config, options)
    out = run_directory(out)
    primary = jax.process_index() == 0
    say = say if primary else lambda line: None
    with contextlib.ExitStack() as stack:
        confirm = stack.enter_context(locked(out, say))
        is_new = not (out / "config.json").exists()
        claim_run(out, config)
        rows = read_rows(out / "metrics.jsonl")
        if on_primary(lambda: is_done(rows)):
            return _result(rows[-1], resumed_at=config.total_steps, was_done=True)
        stopping = stack.enter_context(stop_signals())
        beat = _both(stack.enter_context(watchdog(options.step_timeout)), confirm)
        if programs is None:
            with unclaimed_if_refused(out, is_new):
                programs = sync_errors(lambda: compile_training(config, options, beat))
            say(str(programs.cost))
        for line in programs.warnings:
            say(f"warning: {line}")
        pin_dataset(out, programs.train_split)
        on_primary(functools.partial(pin_description, out, programs.dataset))
        shared = dataclasses.replace(
            programs.config, learning_rate=config.learning_rate, seed=config.seed
        )
        if shared != config:
            raise ValueError("programs were built for another configuration")
        checkpoints = Checkpoints(
            out, options.keep_last, options.keep_best, say, options.verify_saves
        )
        stack.callback(checkpoints.close)
        beat()
        state, batches = _start(config, programs, checkpoints)
        stack.callback(batches.close)
        beat()
        first = int(state.step)
        log = (
            stack.enter_context(contextlib.closing(MetricsLog(out / "metrics.jsonl", first, say)))
            if primary
            else None
        )
        boards = [Tensorboard(out / "tensorboard")] if options.tensorboard and primary else []
        for board in boards:
            stack.callback(board.close)
        tracer = make_tracer(programs, options.probe) if options.probe_every else None
        rows = [row for row in rows if row["step"] <= first]
        damages = DecodeErrorLog(rows, config.data.max_decode_errors, say)
        said = (report, say, stopping, beat)
        run = TrainLoop(
            config,
            options,
            programs,
            checkpoints,
            log,
            boards,
            *said,
            _noted(rows),
            tracer,
            damages,
            ThroughputMeter(),
        )
        final = run.whole(state, batches)
    return _result(final, resumed_at=first, was_done=False)


def _both(one: Heartbeat, other: Heartbeat) -> Heartbeat:
    def act() -> None:
        one()
        other()

    return act


def _start(
    config: TrainConfig, programs: CompiledTraining, checkpoints: Checkpoints
) -> tuple[TrainState, Any]:
    """The state to go on from and the batches after it."""
    state = programs.fresh_state(config)
    batches = programs.batches(config)
    if checkpoints.latest() is not None:
        state, position = checkpoints.restore(state)
        batches.set_state(position)
    return state, batches


def _noted(rows: list[Row]) -> set[tuple[str, int]]:
    """Epochs, skipped steps and looks that the log has already."""
    return {(row["kind"], row["step"]) for row in rows}


@dataclasses.dataclass(frozen=True)
class TrainLoop:
    """The loop of one run."""

    config: TrainConfig
    options: RunOptions
    programs: CompiledTraining
    checkpoints: Checkpoints
    log: MetricsLog | None
    boards: list[Tensorboard]
    report: Report
    say: Log
    stopping: PreemptionSignal
    beat: Heartbeat
    noted: set[tuple[str, int]]
    tracer: Tracer | None
    damages: DecodeErrorLog
    pace: ThroughputMeter

    def whole(self, state: TrainState, batches: Any) -> Row:
        """From the state to the final row."""
        self._stop_if_asked(int(state.step), "saved")
        if self._epoch_ends(int(state.step)) and ("epoch", int(state.step)) not in self.noted:
            row = self._log_epoch(
                state, 0.0
            )  # evaluation was interrupted there, and its checkpoint knows no error yet
            self.checkpoints.note_metric(int(state.step), row["test_error"])
        state = self._steps(state, batches)
        final = (
            {"kind": "final", "step": int(state.step)}
            | self.evaluate(state, "train")
            | self.evaluate(state, "test")
        )

        def conclude() -> None:
            final["digest"] = self.checkpoints.digest(int(state.step))
            self.write(final)

        on_primary(conclude)
        return final

    def _steps(self, state: TrainState, batches: Any) -> TrainState:
        """Every step from the state's on. The order matters: the guard is read before anything is logged or saved."""
        total, step = self.config.total_steps, int(state.step)
        every = self.options.save_every or self.config.steps_per_epoch
        began = time.monotonic()
        metrics: Any = {"loss": None}
        self.pace.start()
        while step < total:
            batch, damaged = self._taken(
                functools.partial(
                    self.pace.next_batch, batches, metrics["loss"], self.config.batch_size
                )
            )
            self._trace(state, batch, step)
            state, metrics = self.programs.train_step_at(step)(state, batch)
            step += 1
            self.damages.note(step, "train", damaged)
            self.beat()
            stops, ends = self.stopping(), self._epoch_ends(step)
            saves = step % every == 0 or step == total
            if ends or saves or stops or step == 1 or step % SYNC_EVERY_STEPS == 0:
                halted = self._look(state, metrics, step)
                if halted is not None:
                    state = self._go_back(state, batches, halted)
                    step = int(state.step)
                    self.pace.start()
                    continue
            if step == 1:
                self.write(
                    {
                        "kind": "first",
                        "step": 1,
                        "gradient_norms": self._by_layer(metrics["gradient_norms"], 1),
                    }
                )
            if stops:
                self._save_and_stop(state, batches, step)
            row = None
            if ends:
                try:
                    row = self._log_epoch(state, time.monotonic() - began)
                except Stopped:
                    self._save_and_stop(state, batches, step)
            if saves:
                self._catch_up()
                save = self.checkpoints.save_last if step == total else self.checkpoints.save
                save(state, batches.get_state(), row["test_error"] if row else None)
            if ends:
                self.pace.start()
        return state

    def _taken(self, take: Callable[[], Any]) -> Any:
        """The next batch. Of photographs all processes wait for each other's: one that cannot read its share ends all of them."""
        return sync_errors(take) if isinstance(self.programs.train_split, EncodedSplit) else take()

    def _trace(self, state: TrainState, batch: Any, step: int) -> None:
        """Every so often, what the layers do with the batch that comes next."""
        if self.tracer is None or step % self.options.probe_every or ("trace", step) in self.noted:
            return
        self.write({"kind": "trace", "step": step} | self.tracer(state, batch).row())

    def _epoch_ends(self, step: int) -> bool:
        return step > 0 and (
            step % self.config.steps_per_epoch == 0 or step == self.config.total_steps
        )

    def _save_and_stop(self, state: TrainState, batches: Any, step: int) -> NoReturn:
        self._catch_up()
        self.checkpoints.save_last(state, batches.get_state())
        self._stop(step, "saved")

    def _stop_if_asked(self, step: int, what: str) -> None:
        if self.stopping():
            self._stop(step, what)

    def _stop(self, step: int, what: str) -> NoReturn:
        digest = self.checkpoints.digest(step) if step else ""
        what += f" (digest {digest[:DIGEST_CHARACTERS]})" if digest else ""
        where = (
            f"after step {step} of {self.config.total_steps}, {what}"
            if step
            else "before the first step"
        )
        raise Stopped(
            f"stopped by {self.stopping.signal.name} {where}; the same command carries on"
        )

    def _look(self, state: TrainState, metrics: Any, step: int) -> int | None:
        """Read the guard; note the steps that were left out; show progress. Returns the step at which training halted."""
        halted, skipped, loss = jax.device_get(
            (state.guard.halted, state.guard.skipped, metrics["loss"])
        )
        for left_out in skipped[(skipped >= 0) & (skipped < step)].tolist():
            if ("skipped", left_out + 1) not in self.noted:
                self.noted.add(("skipped", left_out + 1))
                self.write(
                    {
                        "kind": "skipped",
                        "step": left_out + 1,
                        "images": self._ids(left_out).tolist(),
                    }
                )
        self._tell_damages(self.programs.train_split)
        if halted >= 0:
            return int(halted)
        left = int(np.sum(skipped >= 0))
        self.report(
            step,
            self.config.total_steps,
            f"loss {loss:.3f}" + (f", {left} steps left out" if left else ""),
        )
        return None

    def _tell_damages(self, split: Split | EncodedSplit) -> None:
        if isinstance(split, EncodedSplit) and self.config.data.on_decode_error == "skip":
            self.damages.flush(self.write)

    def _go_back(self, state: TrainState, batches: Any, halted: int) -> TrainState:
        """Back to the newest checkpoint, with the bad step on the list of those to leave out; or raise NonFiniteError."""
        budget, skipped = self.config.guard.max_skipped_steps, state.guard.skipped
        count = int(np.sum(jax.device_get(skipped) >= 0))
        if self.config.guard.on_nonfinite != "rollback" or count >= budget:
            self._halt(state, halted, count)
        fresh = self.programs.fresh_state(self.config)
        position = self.programs.batches(self.config).get_state()
        self.checkpoints.wait_until_finished()
        if self.checkpoints.latest() is not None:
            fresh, position = self.checkpoints.restore(fresh, before=halted + 1)
        batches.set_state(position)
        guard = fresh.guard.replace(skipped=skipped.at[count].set(halted))
        step = int(fresh.step)
        if self.log is not None:
            self.log.rewind(step)
        self.noted.difference_update({(kind, at) for kind, at in self.noted if at > step})
        self.damages.rewind(step)
        self.write({"kind": "rollback", "step": step, "bad_step": halted + 1})
        self.say(
            f"step {halted + 1} was bad; back to step {step}, and on without it ({count + 1} of {budget} such steps)"
        )
        return fresh.replace(
            guard=jax.device_put(guard, self.programs.partitioner.state_shardings(guard))
        )

    def _halt(self, state: TrainState, halted: int, left_out: int) -> NoReturn:
        self.write({"kind": "halted", "step": halted + 1})
        ids = self._ids(halted)
        why = explain(self.programs, state, self.programs.batch_at(self.config, halted), ids)
        shown = ", ".join(map(str, ids[:8].tolist())) + (", ..." if len(ids) > 8 else "")
        spent = f"; {left_out} steps were left out before it" if left_out else ""
        raise NonFiniteError(
            f"step {halted + 1} had {why} (training images {shown}){spent}; the last checkpoint is from before it. "
            f"Try a lower learning_rate than {self.config.learning_rate:g}, or on_nonfinite='skip'"
        )

    def _ids(self, step: int) -> np.ndarray:
        return batch_index(
            len(self.programs.train_split),
            self.config.batch_size,
            self.config.seed,
            step,
            self.config.data.repeated_augmentation,
        )

    def _log_epoch(self, state: TrainState, seconds: float) -> Row:
        totals = jax.device_get(state.totals)
        step = int(state.step)
        steps, images = max(1.0, float(totals["steps"])), max(1.0, float(totals["images"]))
        row = {
            "kind": "epoch",
            "step": step,
            "epoch": step / self.config.steps_per_epoch,
            "running_loss": float(totals["loss"]) / steps,
            "running_error": float(totals["errors"]) / images,
            "learning_rate": float(state.learning_rate * self.programs.schedule(step - 1)),
            "gradient_norms": self._by_layer(totals["gradient_norms"], steps),
            "seconds": round(seconds, 3),
        } | self.pace.row()
        if totals["auxiliary"]:
            row["auxiliary"] = {
                head: {
                    "running_loss": float(sums["loss"]) / steps,
                    "running_error": float(sums["errors"]) / images,
                }
                for head, sums in totals["auxiliary"].items()
            }
        row |= self.evaluate(state, "test")
        self.write(row)
        return row

    def _by_layer(self, sums: dict[str, Any], steps: float) -> dict[str, float]:
        """Mean norms in the order of the forward pass."""
        return {layer: float(sums[layer]) / steps for layer in self.programs.layers}

    def evaluate(self, state: TrainState, name: str) -> Row:
        """Error, loss and number of images of a split, each image counted once. Raises Stopped when a stop signal arrives."""
        split = self.programs.train_split if name == "train" else self.programs.test_split
        params, batch_stats = eval_variables(state)
        parts, lost = [], []
        batches = self._eval_batches(split, name)
        for batch in iter(lambda: self._taken(functools.partial(next, batches, None)), None):
            self._stop_if_asked(int(state.step), "saved before evaluation")
            lost += batch.pop("damaged", ())
            parts.append(
                self.programs.eval_step(
                    params, batch_stats, self.programs.partitioner.put_batch(batch)
                )
            )
            self.beat()
        self.damages.note(int(state.step), name, lost)
        self._tell_damages(split)
        whole: Any = jax.tree.map(
            lambda *numbers: math.fsum(map(float, numbers)), *jax.device_get(parts)
        )
        return _scores(name, whole, sum(map(int, allgather_strings(str(len(lost))))))

    def _eval_batches(self, split: Split | EncodedSplit, name: str) -> Iterator[Any]:
        """This process's share; of photographs that were trained on only the first, as many as there are test images."""
        config, most = self.config, None
        if name == "train" and isinstance(split, EncodedSplit):
            most = len(self.programs.test_split)
        share = (jax.process_index(), jax.process_count())
        return eval_batches(
            split, config.batch_size, *share, config.eval_shape[0], config.data.eval_crop, most
        )

    def _catch_up(self) -> None:
        """Before a checkpoint: rows that wait for room would be lost to the run that starts from it."""
        if self.log is not None:
            self.log.flush()

    def write(self, row: Row) -> None:
        """One row to every log, by the first process."""
        if self.log is not None:
            self.log.write(row)
        for board in self.boards:
            board.write(row)


def _scores(name: str, sums: Any, lost: int) -> Row:
    """Means over the images; of those that could not be decoded each counts as an error and has no loss."""
    decoded, images = max(1.0, sums["images"]), sums["images"] + lost

    def of(head: Any) -> Row:
        return {"error": (head["errors"] + lost) / images, "loss": head["loss"] / decoded}

    row = {f"{name}_{what}": value for what, value in of(sums).items()} | {
        f"{name}_images": round(images)
    }
    if "top5_errors" in sums:
        row[f"{name}_top5_error"] = (sums["top5_errors"] + lost) / images
    heads = {head: of(its) for head, its in sums["auxiliary"].items()}
    return row | ({f"{name}_auxiliary": heads} if heads else {})


def _result(row: Row, resumed_at: int, was_done: bool) -> RunResult:
    fields = {f.name for f in dataclasses.fields(RunResult)}
    values = {name: value for name, value in row.items() if name in fields}
    return RunResult(steps=row["step"], resumed_at=resumed_at, was_done=was_done, **values)
