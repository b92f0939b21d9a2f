"""A path is refused, or absolute and what was given; a name is refused, or keeps checkpoints."""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from hypothesis import example, given
from hypothesis import strategies as st

from deepjax.errors import InputError
from deepjax.paths import run_directory, user_path
from deepjax.training import TrainConfig
from deepjax.training.checkpoint.manager import Checkpoints
from deepjax.training.step.optimizers import make_optimizer
from deepjax.training.step.state import TrainState, init_state
from tests.properties.examples import examples

SPECIAL = "*?[]{}()!~\\:%$&|;<>'\"`# =,@^+-._"
NAME = st.one_of(
    st.text(st.sampled_from(SPECIAL + "ab1"), min_size=1, max_size=12),
    # Surrogates too, which bytes that are not UTF-8 are decoded to.
    st.text(st.characters(exclude_characters="/"), min_size=1, max_size=20),
    st.builds(
        lambda letter, size: letter * size, st.sampled_from("a\u00e9\u65e5"), st.integers(80, 260)
    ),
).filter(lambda name: name not in (".", ".."))


@examples(few=200, many=10_000)
@given(
    st.lists(NAME, min_size=1, max_size=4),
    st.sampled_from(["", "/", "./", "../", "~/", "gs://", "s3:/", "/gs/", "file://"]),
)
@example(["\U00018d09:"], "")  # a name that is not printable: found by the search
def test_a_path_is_absolute_and_the_same_or_refused_in_a_line(names, start):
    given_path = start + "/".join(names)
    try:
        path = user_path(given_path, "out")
    except InputError as error:
        assert str(error).startswith("out is ") and str(error).isprintable()
        return
    assert path.is_absolute() and path == user_path(path, "out")
    assert (
        ":/" not in str(path)
        and str(path).encode().decode() == str(path)
        and len(str(path).splitlines()) == 1
    )
    if not given_path.startswith("~"):
        assert path == Path.cwd() / given_path


class Small(nn.Module):
    """A network with parameters and statistics."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        hidden = nn.BatchNorm(use_running_average=not train)(nn.Conv(2, (3, 3))(images))
        return nn.Dense(10)(hidden.mean((1, 2)))


@functools.cache
def state() -> TrainState:
    """A state of few bytes with every kind of leaf that a run has."""
    return init_state(
        Small(), make_optimizer(TrainConfig(model="cifar_resnet20")), (4, 4, 1), 0.1, 0
    )


@examples(few=12, many=1_000)
@given(NAME, st.booleans())
def test_checkpoints_in_a_folder_of_any_name_are_restored_bitwise_or_the_name_is_refused(
    name, is_parent
):
    with tempfile.TemporaryDirectory() as root:
        run = Path(root) / name / "run" if is_parent else Path(root) / name
        try:
            run_directory(run)
        except InputError:
            assert list(Path(root).iterdir()) == []
            return
        warned: list[str] = []
        opened = Checkpoints(run, warn=warned.append)
        saved = state().replace(step=jnp.asarray(3, jnp.int32))
        opened.save(saved, {"next_index": 7})
        assert opened.wait_until_finished(), warned
        restored, position = opened.restore(state())
        opened.close()
        assert position == {"next_index": 7} and not warned
        words = [
            jax.tree.leaves(each.replace(key=jax.random.key_data(each.key)))
            for each in (saved, restored)
        ]
        assert all(
            np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(*words, strict=True)
        )
