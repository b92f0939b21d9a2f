"""The loop around the pure step: data, logs, checkpoints, and nothing that changes what is computed."""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh

from deepjax.analysis import kernel_order
from deepjax.data import Dataset, Split, dataset_info, eval_batches, load_split, train_batches
from deepjax.data.loader import batch_index
from deepjax.errors import NonFiniteError, Stopped
from deepjax.models import create_model
from deepjax.training import parallel
from deepjax.training.checkpoint import Checkpoints
from deepjax.training.config import TrainConfig, claim_directory
from deepjax.training.logs import MetricsLog, Row, Tensorboard, read_rows
from deepjax.training.optimizers import make_optimizer, make_schedule
from deepjax.training.state import TrainState, auxiliary_heads, init_state, zero_totals
from deepjax.training.step import make_eval_step, make_train_step

Report = Callable[[int, int, str], None]  # (steps done, steps in all, what to say beside)

LOOK_EVERY = 20  # steps between looks at the device: the guard's flag, the progress display


@dataclasses.dataclass(frozen=True)
class Programs:
    """What a configuration compiles to; the learning rate and the seed are not in it, so runs that differ in them share one."""

    config: TrainConfig
    model: nn.Module
    dataset: Dataset
    optimizer: optax.GradientTransformation
    mesh: Mesh
    layers: tuple[str, ...]
    heads: tuple[str, ...]
    train_step: Callable[..., Any]
    eval_step: Callable[..., Any]
    train: Split
    test: Split


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The end of a run: errors are fractions, measured in evaluation mode over every image of the set once."""

    steps: int
    train_error: float
    train_loss: float
    train_images: int
    test_error: float
    test_loss: float
    test_images: int
    resumed_at: int
    was_done: bool


def build(config: TrainConfig, data_dir: str | None = None) -> Programs:
    """Model, data and the two steps of a configuration, ready to be compiled at their first call."""
    dataset = dataset_info(config.dataset)
    mesh = parallel.make_mesh()
    parallel.check_batch_size(config.batch_size, mesh)
    width = {"width": config.width} if config.width else {}
    model = create_model(config.model, num_classes=dataset.num_classes, **width)
    optimizer = make_optimizer(config)
    heads = auxiliary_heads(model, config.input_shape) if config.auxiliary_weight else ()
    extras = {"image_size": config.image_size, "auxiliary_weight": config.auxiliary_weight}
    train_step = make_train_step(model, optimizer, make_schedule(config), dataset, config.augment, **extras)
    return Programs(
        config=config,
        model=model,
        dataset=dataset,
        optimizer=optimizer,
        mesh=mesh,
        layers=tuple(kernel_order(model, config.input_shape)),
        heads=heads,
        train_step=parallel.compile_train_step(train_step, mesh),
        eval_step=parallel.compile_eval_step(make_eval_step(model, dataset, **extras), mesh),
        train=load_split(dataset, "train", data_dir),
        test=load_split(dataset, "test", data_dir),
    )


def train(
    config: TrainConfig,
    out: Path,
    *,
    programs: Programs | None = None,
    data_dir: str | None = None,
    save_every: int = 0,
    tensorboard: bool = False,
    report: Report = lambda done, total, note: None,
) -> RunResult:
    """Train one network on one data set in the run directory `out`, or carry on from its newest checkpoint to the same bits.

    `save_every`: steps between checkpoints, 0 for once an epoch; the last step is always saved. `programs` (from `build`) may be
    shared by runs that differ in learning rate and seed alone. Raises InputError, NonFiniteError, Stopped (after saving).
    """
    claim_directory(out, config)
    rows = read_rows(out / "metrics.jsonl")
    if rows and rows[-1]["kind"] == "final":
        return _result(rows[-1], resumed_at=config.total_steps, was_done=True)
    programs = programs or build(config, data_dir)
    shared = dataclasses.replace(programs.config, learning_rate=config.learning_rate, seed=config.seed)
    if shared != config:
        raise ValueError("programs were built for another configuration")
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(out)
        stack.callback(checkpoints.close)
        stopping = stack.enter_context(_sigterm())
        state, batches = _start(config, programs, checkpoints)
        first = int(state.step)
        log = MetricsLog(out / "metrics.jsonl", first)
        stack.callback(log.close)
        writers = [log.write]
        if tensorboard:
            board = Tensorboard(out / "tensorboard")
            stack.callback(board.close)
            writers.append(board.write)
        run = _Run(config, programs, checkpoints, writers, report, stopping, save_every or config.steps_per_epoch)
        state = run.steps(state, batches)
        final = {"kind": "final", "step": int(state.step)} | run.evaluate(state, "train") | run.evaluate(state, "test")
        run.write(final)
    return _result(final, resumed_at=first, was_done=False)


def _start(config: TrainConfig, programs: Programs, checkpoints: Checkpoints) -> tuple[TrainState, Any]:
    """The state to go on from and the batches after it."""
    rate, seed = config.learning_rate, config.seed
    state = init_state(programs.model, programs.optimizer, config.input_shape, rate, seed, programs.heads)
    state = jax.device_put(state, parallel.replicated(programs.mesh))
    batches = train_batches(
        programs.train, config.batch_size, config.seed, config.total_steps, jax.process_index(), jax.process_count()
    )
    if checkpoints.latest() is not None:
        state, position = checkpoints.restore(state)
        batches.set_state(position)
    return state, batches


@dataclasses.dataclass(frozen=True)
class _Run:
    """The loop of one run."""

    config: TrainConfig
    programs: Programs
    checkpoints: Checkpoints
    writers: list[Callable[[Row], None]]
    report: Report
    stopping: Callable[[], bool]
    save_every: int

    def steps(self, state: TrainState, batches: Any) -> TrainState:
        """Every step from the state's on. The order matters: the guard is read before anything is logged or saved."""
        config, total = self.config, self.config.total_steps
        began = time.monotonic()
        for step in range(int(state.step) + 1, total + 1):
            batch = parallel.put_batch(next(batches), self.programs.mesh)
            state, metrics = self.programs.train_step(state, batch)
            epoch_ends = step % config.steps_per_epoch == 0 or step == total
            saves = step % self.save_every == 0 or step == total
            if epoch_ends or saves or step == 1 or step % LOOK_EVERY == 0 or self.stopping():
                self._look(state, metrics, step)
            if step == 1:
                self.write({"kind": "first", "step": 1, "gradient_norms": self._by_layer(metrics["gradient_norms"], 1)})
            if epoch_ends:
                self._log_epoch(state, metrics, step, time.monotonic() - began)
                empty = zero_totals(state.params, self.programs.heads)
                state = state.replace(totals=jax.device_put(empty, parallel.replicated(self.programs.mesh)))
            if saves or self.stopping():
                self.checkpoints.save(state, batches.get_state())
            if self.stopping() and step < total:
                raise Stopped(f"stopped by SIGTERM after step {step} of {total}, saved; the same command carries on")
        return state

    def _look(self, state: TrainState, metrics: Any, step: int) -> None:
        """Read the guard's flag; show progress."""
        halted, loss = jax.device_get((state.halted, metrics["loss"]))
        if halted >= 0:
            self.write({"kind": "halted", "step": int(halted) + 1})
            ids = batch_index(len(self.programs.train), self.config.batch_size, self.config.seed, int(halted))
            shown = ", ".join(map(str, ids[:8].tolist())) + (", ..." if len(ids) > 8 else "")
            raise NonFiniteError(
                f"step {int(halted) + 1} gave a loss, gradient or batch statistic that is not finite (training images {shown}); "
                f"the last checkpoint is from before it. Try a lower learning_rate than {self.config.learning_rate:g}"
            )
        self.report(step, self.config.total_steps, f"loss {loss:.3f}")

    def _log_epoch(self, state: TrainState, metrics: Any, step: int, seconds: float) -> None:
        totals = jax.device_get(state.totals)
        row = {
            "kind": "epoch",
            "step": step,
            "epoch": step / self.config.steps_per_epoch,
            "running_loss": float(totals["loss"] / totals["steps"]),
            "running_error": float(totals["errors"] / totals["images"]),
            "learning_rate": float(metrics["learning_rate"]),
            "gradient_norms": self._by_layer(totals["gradient_norms"], float(totals["steps"])),
            "seconds": round(seconds, 3),
        }
        if totals["auxiliary"]:
            row["auxiliary"] = {
                head: {
                    "running_loss": float(sums["loss"] / totals["steps"]),
                    "running_error": float(sums["errors"] / totals["images"]),
                }
                for head, sums in totals["auxiliary"].items()
            }
        self.write(row | self.evaluate(state, "test"))

    def _by_layer(self, sums: dict[str, Any], steps: float) -> dict[str, float]:
        """Mean norms in the order of the forward pass."""
        return {layer: float(sums[layer]) / steps for layer in self.programs.layers}

    def evaluate(self, state: TrainState, name: str) -> Row:
        """Error, loss and number of images of a split, each image counted once."""
        split = self.programs.train if name == "train" else self.programs.test
        size = self.config.batch_size
        sums = jax.device_get([self._eval_batch(state, batch) for batch in eval_batches(split, size)])
        whole: Any = jax.tree.map(lambda *parts: math.fsum(map(float, parts)), *sums)
        images = whole["images"]
        row = {f"{name}_error": whole["errors"] / images, f"{name}_loss": whole["loss"] / images, f"{name}_images": round(images)}
        heads = {head: {"error": of["errors"] / images, "loss": of["loss"] / images} for head, of in whole["auxiliary"].items()}
        return row | ({f"{name}_auxiliary": heads} if heads else {})

    def _eval_batch(self, state: TrainState, batch: dict[str, np.ndarray]) -> Any:
        processes, process = jax.process_count(), jax.process_index()
        share = {name: value.reshape(processes, -1, *value.shape[1:])[process] for name, value in batch.items()}
        return self.programs.eval_step(state.params, state.batch_stats, parallel.put_batch(share, self.programs.mesh))

    def write(self, row: Row) -> None:
        """One row to every log."""
        for writer in self.writers:
            writer(row)


def _result(row: Row, resumed_at: int, was_done: bool) -> RunResult:
    fields = {f.name for f in dataclasses.fields(RunResult)}
    values = {name: value for name, value in row.items() if name in fields}
    return RunResult(steps=row["step"], resumed_at=resumed_at, was_done=was_done, **values)


@contextlib.contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """A flag that SIGTERM raises, so that the running step ends and is saved; only the main thread can listen."""
    stopped = []
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    except ValueError:
        yield lambda: False
        return
    try:
        yield lambda: bool(stopped)
    finally:
        signal.signal(signal.SIGTERM, before)
