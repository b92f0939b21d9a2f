"""What shortcuts do to the signal: the measurements on networks and numbers that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.models import create_model
from experiments.residual_signal import (
    ARMS,
    SUMS,
    block_names,
    gradient_paths,
    growth_factors,
    lesion_rises,
    linear_fit,
    mean_squares,
    tower,
)


@pytest.mark.parametrize("name", ARMS)
def test_the_blocks_are_those_of_the_network(name):
    model = create_model(ARMS[name].model, width=2)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    names = block_names(model)
    assert set(names) == {each for each in params if each.startswith("stage")}
    assert len(names) == (SUMS if name == "resnet44" else 9)


def test_without_branches_nothing_is_lost():
    """With branches of zero; 3, 2 and 2 blocks keep their input's shape."""
    model = create_model("cifar_resnet20", width=2, zero_init=True)
    images = jax.random.normal(jax.random.key(0), (8, 8, 8, 1))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    assert lesion_rises(model, variables, (images, jnp.arange(8))) == ([0.0] * 7, 0.0)


def test_paths_of_an_untrained_network_without_branches_have_no_length():
    model = tower(normed=False, blocks=2, width=2)
    images = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    for name in ("stage1_block1", "stage1_block2"):
        variables["params"][name]["conv2"]["kernel"] *= 0
    fractions, ratio = gradient_paths(
        model, variables, (images, jnp.arange(2)), 4, jax.random.key(2)
    )
    assert fractions == [1.0, 0.0, 0.0]
    assert ratio == 0.0


def test_the_signal_of_branches_of_zero_does_not_grow():
    images = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    model = tower(normed=False, blocks=4, width=4)
    squares = mean_squares(model, jax.random.key(1), images, samples=2, gain=0.0)
    assert squares.shape == (2, 4)
    assert np.ptp(squares, axis=1) == pytest.approx([0, 0])
    assert growth_factors(squares) == pytest.approx([1, 1])
    grown = mean_squares(model, jax.random.key(1), images, samples=2)
    assert (np.diff(grown) > 0).all()


def test_growth_and_line_of_known_numbers():
    blocks = np.arange(1, 9)
    assert growth_factors(np.array([2.0**blocks, 3.0**blocks])) == pytest.approx([2, 3])
    line = {"slope": 0.5, "intercept": 2.0, "r2": 1.0, "bend": 1.0}
    assert linear_fit(2 + 0.5 * blocks) == pytest.approx(line)
    assert linear_fit(2.0**blocks)["bend"] == pytest.approx(2**4)
