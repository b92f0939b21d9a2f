"""The training step and the instruments of one checkout, as a contender of versions.py."""

import sys
from collections.abc import Callable

import jax
import numpy as np
from contender import Block, serve

from deepjax.analysis import hessian_trace, per_example_gradients, trace
from deepjax.data.augment import normalize, resize
from deepjax.training import TrainConfig, build


def main() -> None:
    """Compile, then serve blocks. Arguments: network, images of a step, steps of a block."""
    model, batch_size, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    config = TrainConfig(model, batch_size=batch_size, image_size=32)
    programs = build(config)
    state = programs.fresh_state(config)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 17, (batch_size, *programs.dataset.shape), np.uint8)
    labels = rng.integers(0, programs.dataset.num_classes, batch_size).astype(np.int32)
    batch = programs.spread.put_batch({"image": images, "label": labels})
    kept = {"params": state.params, "batch_stats": state.batch_stats}
    variables = jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf)), kept)
    inputs = (resize(normalize(batch["image"], programs.dataset), config.image_size), batch["label"])

    def step() -> int:
        nonlocal state
        for _ in range(steps):
            state, _ = programs.train_step(state, batch)
        jax.block_until_ready(state)
        return steps * batch_size

    def repeated(act: Callable[[], object]) -> Block:
        def block() -> int:
            for _ in range(steps):
                act()
            return steps * batch_size

        return block

    blocks = {
        "training step": step,
        "trace": repeated(lambda: trace(programs.model, variables, inputs)),
        "per_example_gradients": repeated(lambda: per_example_gradients(programs.model, variables, inputs)),
        "hessian_trace, 2 probes": repeated(lambda: hessian_trace(programs.model, variables, inputs, probes=2)),
    }
    serve(blocks, f"jax {jax.__version__}")


if __name__ == "__main__":
    main()
