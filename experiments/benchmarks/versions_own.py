"""Step, loop, instruments and saves of one checkout, as a contender of versions.py."""

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from block_server import Block, serve

from deepjax.analysis import hessian_trace, per_example_gradients, trace
from deepjax.data.augment.basic import normalize, resize
from deepjax.training import RunOptions, compile_training, train
from deepjax.training.checkpoint.manager import Checkpoints
from deepjax.training.config import train_config


class EndOfBlock(Exception):
    """The loop has taken its steps."""


def main() -> None:
    """Compile, then serve blocks. Arguments: network, images per step, calls per block, blocks."""
    model, batch_size, calls, names = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    config = train_config(model, batch_size=batch_size, image_size=32)
    programs = compile_training(config)
    state = programs.fresh_state(config)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 17, (batch_size, *programs.dataset.shape), np.uint8)
    labels = rng.integers(0, programs.dataset.num_classes, batch_size).astype(np.int32)
    batch = programs.partitioner.put_batch({"image": images, "label": labels})
    kept = {"params": state.params, "batch_stats": state.batch_stats}
    variables = jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf)), kept)
    inputs = (
        resize(normalize(batch["image"], programs.dataset), config.data.image_size),
        batch["label"],
    )

    def step() -> int:
        nonlocal state
        for _ in range(calls):
            state, _ = programs.train_step(state, batch)
        jax.block_until_ready(state)
        return calls * batch_size

    def repeated(act: Callable[[], object]) -> Block:
        def block() -> int:
            for _ in range(calls):
                act()
            return calls * batch_size

        return block

    def loop() -> int:
        steps = 0

        def end(done: int, total: int, note: str) -> None:
            nonlocal steps
            steps = done
            if done >= calls:
                raise EndOfBlock

        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(EndOfBlock):
            options = RunOptions(save_every=config.total_steps)
            train(config, Path(folder) / "run", options, programs=programs, report=end)
        return steps * batch_size

    def save() -> int:
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = Checkpoints(Path(folder))
            checkpoints.save(state, {})
            checkpoints.wait_until_finished()
            checkpoints.close()
        return batch_size

    blocks: dict[str, Block] = {
        "step": step,
        "loop": loop,
        "trace": repeated(lambda: trace(programs.model, variables, inputs)),
        "per_example_gradients": repeated(
            lambda: per_example_gradients(programs.model, variables, inputs)
        ),
        "hessian_trace": repeated(
            lambda: hessian_trace(programs.model, variables, inputs, probes=2)
        ),
        "save": save,
    }
    serve({name: blocks[name] for name in names}, f"jax {jax.__version__}")


if __name__ == "__main__":
    main()
