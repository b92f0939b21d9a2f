"""One of two processes, two devices each, in an interleaved mesh: python -m tests.evaluation.pod.

Prints "equal" where the probabilities of all images are those of slow code, or what went wrong.
RECORD is corrupt; -1: none is.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from deepjax.data.image.decode import decode_rgb
from deepjax.errors import InputError
from deepjax.evaluation import EvalModel, predict, resolve_protocol
from deepjax.training.distributed.sharding import Partitioner
from tests.evaluation import reference


class Mean(nn.Module):
    """Channels on average, as scores of the classes in turns."""

    @nn.compact
    def __call__(self, images, train=False):
        return jnp.tile(images.mean((1, 2)), reference.CLASSES // 3) * self.param(
            "scale", nn.initializers.ones, (1,)
        )


def by_hand(image):
    view = reference.centre(reference.scaled(image, 37), reference.CROP).astype(np.float32)
    means = ((view - np.float32(reference.DATASET.mean)) / np.float32(reference.DATASET.std)).mean(
        (0, 1)
    )
    return reference.probabilities(np.tile(means, reference.CLASSES // 3))


def main():
    port, process, damaged = map(int, sys.argv[1:])
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
    split = reference.many(11)
    expected = [by_hand(decode_rgb(record["image"])) for record in split.records]
    if damaged >= 0:
        split.records[damaged]["image"] = split.records[damaged]["image"][:100]
    member = EvalModel(
        "mean",
        "made up",
        Mean(),
        {"params": {"scale": np.ones(1, np.float32)}},
        reference.DATASET,
        reference.CROP,
    )
    own = {
        process: [of for of in jax.devices() if of.process_index == process] for process in (0, 1)
    }
    mesh = jax.sharding.Mesh(np.array([own[1][0], own[0][0], own[1][1], own[0][1]]), "data")
    try:
        got = predict(
            member, split, resolve_protocol("1-crop", "mean", reference.CROP), Partitioner(mesh), 4
        )
        print("equal" if np.allclose(np.exp(got), expected, atol=1e-6) else "other images' scores")
    except InputError as error:
        print(error)


if __name__ == "__main__":
    main()
