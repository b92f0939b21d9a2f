"""Data order over interruptions, and equal results on any devices; needs 8 simulated devices."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from deepjax.data import Split, dataset_info, train_batches
from deepjax.models import create_model
from deepjax.training import TrainConfig
from deepjax.training.build import step_options
from deepjax.training.checkpoint.manager import Checkpoints
from deepjax.training.config import replace_options, train_config
from deepjax.training.distributed.sharding import Partitioner, Strategy
from deepjax.training.step.optimizers import make_optimizer, make_schedule
from deepjax.training.step.state import TrainState, init_state
from deepjax.training.step.step import make_train_step
from tests.faults.kills import pair
from tests.faults.runs import finish, outcome, start
from tests.faults.tally import Tally

DIGITS = dataset_info("digits")
BATCH = 64
# Thin networks of five kinds. Dropout draws other masks on each device of pmap, so it is off.
NETWORKS = {
    "vgg11_bn": {"width": 2, "dropout": 0.0},
    "googlenet_bn": {"width": 2, "dropout": 0.0, "auxiliary": False},
    "cifar_plain20": {"width": 2},
    "cifar_resnet20": {"width": 2},
    "cifar_preact164": {"width": 2, "stem_width": 2, "stages": (2, 2, 2)},
}

# Each with two filters.
TRAINED = ("cifar_plain20", "cifar_resnet20", "cifar_wrn16_1", "vgg11_bn", "googlenet_bn")


def resumed_order(tries: int, work: Path, seed: int = 0) -> Tally:
    """Cut at every step of two epochs, for one process and each of two: the same ids follow."""
    tally = Tally(
        "resume at every step of two epochs, 1 and 2 processes",
        "the exact list of example ids, none lost or doubled",
    )
    size, batch, steps = 96, 12, 16
    split = Split(
        np.arange(size, dtype=np.uint8).reshape(size, 1, 1, 1), np.arange(size, dtype=np.int32)
    )

    def ids(
        processes: int, process: int, at: int, position: object = None
    ) -> tuple[list[list[int]], object]:
        batches = train_batches(split, batch, seed, steps, process, processes)
        if position is not None:
            batches.set_state(position)
        seen = [next(batches)["label"].tolist() for _ in range(at)]
        return seen, batches.get_state()

    for processes in (1, 2):
        shares = [ids(processes, process, steps)[0] for process in range(processes)]
        together = [sorted(id_ for share in shares for id_ in share[step]) for step in range(steps)]
        for epoch in (together[:8], together[8:]):
            assert sorted(id_ for ids_ in epoch for id_ in ids_) == list(range(size))
        for process, share in enumerate(shares):
            for cut in range(steps + 1)[: tries or None]:
                seen, position = ids(processes, process, cut)
                rest, _ = ids(processes, process, steps - cut, position)
                tally.count(seen + rest == share, f"process {process} of {processes}, cut at {cut}")
    return tally


def mesh_of(devices: int) -> Mesh:
    """A mesh of the first devices."""
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


@dataclasses.dataclass(frozen=True)
class Thin:
    """A thin network in training, spread in some way."""

    name: str
    spread: Partitioner
    config: TrainConfig = train_config(
        model="cifar_resnet20", batch_size=BATCH, steps=64, warmup_epochs=0.0, learning_rate=0.001
    )

    def start(self) -> tuple[TrainState, object]:
        """The first state and the compiled step."""
        model = create_model(self.name, num_classes=10, **NETWORKS[self.name])
        optimizer = make_optimizer(self.config)
        options = step_options(replace_options(self.config, image_size=32), self.spread.axis)
        step = make_train_step(model, optimizer, make_schedule(self.config), DIGITS, options)
        state = init_state(model, optimizer, (32, 32, 1), self.config.learning_rate, 0)
        return self.spread.put_state(state), self.spread.compile_train(step, state)

    def run(self, state: TrainState, step, steps: int, first: int = 0) -> TrainState:
        """Steps on random images."""
        for number in range(first, first + steps):
            rng = np.random.default_rng(number)
            batch = {
                "image": rng.integers(0, 17, (BATCH, 8, 8, 1), np.uint8),
                "label": rng.integers(0, 10, BATCH).astype(np.int32),
            }
            state, _ = step(state, self.spread.put_batch(batch))
        return state


def numbers(state: TrainState) -> list[np.ndarray]:
    """All that a run carries on from but for counters."""
    return [
        np.asarray(leaf)
        for leaf in jax.tree.leaves((state.params, state.batch_stats, state.opt_state))
    ]


def apart(a: TrainState, b: TrainState) -> float:
    """||a - b|| / ||b|| over all parameters, and over all statistics: the larger."""

    def error(x: Any, y: Any) -> float:
        flat = [
            np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])
            for tree in (x, y)
        ]
        return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))

    return max(error(a.params, b.params), error(a.batch_stats, b.batch_stats))


def on_host(state: TrainState) -> TrainState:
    """A copy that no step donates."""
    words = np.array(jax.random.key_data(state.key))
    return jax.tree.map(np.array, state.replace(key=words)).replace(
        key=jax.random.wrap_key_data(jnp.asarray(words))
    )


def put(thin: "Thin", state: TrainState) -> TrainState:
    """A copy of it on the devices of a spread, to be donated."""
    return thin.spread.put_state(jax.tree.map(jnp.copy, state))


def path_of(
    thin: "Thin", ready: tuple[TrainState, Any], steps: int, first: int = 0
) -> list[TrainState]:
    """The states of a training, the one before the first step included."""
    states = [on_host(ready[0])]
    state = put(thin, states[0])
    for number in range(first, first + steps):
        state = thin.run(state, ready[1], 1, number)
        states.append(on_host(state))
    return states


def largest_apart(thin: "Thin", step: Any, path: list[TrainState], first: int = 0) -> float:
    """The largest difference after one step from each state of `path`, of another partitioning.

    Two whole trainings would tell less: a rounding that moves an activation across ReLU's kink
    grows fivefold per step.

    """
    ends = [thin.run(put(thin, state), step, 1, first + i) for i, state in enumerate(path[:-1])]
    return max(apart(end, expected) for end, expected in zip(ends, path[1:], strict=True))


def moved(tries: int, work: Path, seed: int = 0) -> Tally:
    """Save on 1, 2, 4, 8 devices, restore bitwise on each; then five steps from equal states."""
    tally = Tally(
        "save on 1, 2, 4, 8 devices, restore on each",
        "bitwise equal state; five further steps within 1e-5 each",
    )
    counts = (1, 2, 4, 8)[: tries or None]
    thin = {count: Thin("cifar_resnet20", Partitioner(mesh_of(count))) for count in counts}
    ready = {count: each.start() for count, each in thin.items()}
    worst = 0.0
    for saver in counts:
        path = path_of(thin[saver], ready[saver], 7)
        checkpoints = Checkpoints(work / f"saved-{saver}")
        checkpoints.save(put(thin[saver], path[2]), {"next_index": 2})
        checkpoints.wait_until_finished()
        for count in counts:
            restored, _ = checkpoints.restore(ready[count][0])
            same = all(
                a.tobytes() == b.tobytes()
                for a, b in zip(numbers(restored), numbers(path[2]), strict=True)
            )
            error = largest_apart(
                thin[count], ready[count][1], [on_host(restored), *path[3:]], first=2
            )
            worst = max(worst, error)
            tally.count(
                same and error <= 1e-5, f"{saver} -> {count}: bitwise {same}, then {error:.1e}"
            )
        checkpoints.close()
    tally.note = f"(largest {worst:.1e})"
    return tally


def strategies(tries: int, work: Path, seed: int = 0) -> Tally:
    """Ten steps of five networks by jit on 8 devices, each compared with jit on 1 and pmap on 8."""
    tally = Tally(
        "jit = pmap, 1 versus 8 devices, 10 steps of 5 networks",
        "at most 1e-5 apart after each step from equal states",
    )
    errors = []
    for name in list(NETWORKS)[: tries or None]:
        thin = Thin(name, Partitioner(mesh_of(8)))
        path = path_of(thin, thin.start(), 10)
        ways: list[tuple[str, int, Strategy]] = [("1 device", 1, "jit"), ("pmap", 8, "pmap")]
        for way, devices, strategy in ways:
            other = Thin(name, Partitioner(mesh_of(devices), strategy))
            ready = other.start()
            error = largest_apart(other, ready[1], path)
            free = apart(path_of(other, ready, 10)[-1], path[-1])
            errors.append(f"{name}, {way} {error:.1e} (side by side {free:.1e})")
            tally.count(error <= 1e-5, errors[-1])
    tally.note = f"({'; '.join(errors)})"
    return tally


def processes(tries: int, work: Path, seed: int = 0) -> Tally:
    """Two devices of one process, and two processes of one device each."""
    tally = Tally("2 devices = 2 processes, 5 networks", "bitwise equal: state and logs")
    for model in TRAINED[: tries or None]:
        flags = ["--model", model, "--steps", "6", "--image-size", "32"]
        out = work / model
        assert finish(start(out / "devices", *flags, JAX_NUM_CPU_DEVICES="2"), 600)[0] == 0
        both = [code for code, _ in pair(out / "processes", 60, *flags)]
        tally.count(
            both == [0, 0] and outcome(out / "devices") == outcome(out / "processes"),
            f"{model}: exits {both}",
        )
    return tally
