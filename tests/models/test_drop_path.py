"""Stochastic depth: names, exact at survival 1, unbiased up to a scale, dropped branches'
gradients.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis import kernel_order
from deepjax.errors import InputError
from deepjax.models import create_model
from deepjax.models.layers.basic import Sum
from deepjax.models.stochastic_depth import StochasticDepth, stochastic_depth

SMALL = {"width": 4, "num_classes": 10}
IMAGES = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))


class Chain(nn.Module):
    """Sums whose branch is a parameter: the output is what the gates pass. images.

    (batch, features).
    """

    stages: tuple[int, ...] = (4,)

    @nn.compact
    def __call__(self, images, train=False):
        x = images * 0
        for i in range(sum(self.stages)):
            branch = self.param(f"branch{i}", nn.initializers.ones, images.shape[1:])
            x = Sum(name=f"sum{i}")(x, jnp.broadcast_to(branch, images.shape))
        return x


def drawn(model, variables, images, seeds: int):
    """Outputs in training for several seeds: (seeds, batch, features)."""
    apply = jax.jit(lambda key: model.apply(variables, images, train=True, rngs={"dropout": key}))
    return np.array([apply(jax.random.key(seed)) for seed in range(seeds)])


@pytest.mark.parametrize(
    "name", ["cifar_resnet20", "cifar_preact110", "cifar_wrn16_1", "cifar_fixup20", "cifar_nf20"]
)
def test_parameters_keep_their_names_and_values(name):
    network = create_model(name)
    model = StochasticDepth(network)
    shapes = [jax.eval_shape(each.init, jax.random.key(0), IMAGES) for each in (model, network)]
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])
    assert kernel_order(model, (8, 8, 3)) == kernel_order(network, (8, 8, 3))


@pytest.mark.parametrize("train", [False, True])
def test_survival_one_is_bitwise_the_network(train):
    network = create_model("cifar_resnet20", **SMALL)
    variables = network.init(jax.random.key(1), IMAGES)
    outputs = [
        each.apply(
            variables,
            IMAGES,
            train=train,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(2)},
        )
        for each in (StochasticDepth(network, survival=1.0), network)
    ]
    jax.tree.map(np.testing.assert_array_equal, *outputs)


def test_survival_falls_linearly_and_evaluation_expects_it():
    """Branches of ones: the output counts the kept ones, 7/8 + 6/8 + 5/8 + 4/8, on average in
    training.
    """
    model, images = StochasticDepth(Chain(), survival=0.5), jnp.zeros((2, 1))
    variables = model.init(jax.random.key(0), images)
    np.testing.assert_allclose(model.apply(variables, images), 22 / 8)
    counts = drawn(model, variables, images, 2000)
    assert set(np.unique(counts)) <= {0.0, 1.0, 2.0, 3.0, 4.0}
    error = np.sqrt(sum(p * (1 - p) for p in (7 / 8, 6 / 8, 5 / 8, 4 / 8)) / 2000)
    assert abs(counts[:, 0].mean() - 22 / 8) < 4 * error


@pytest.mark.parametrize(("per", "shared"), [("batch", True), ("example", False)])
def test_a_draw_is_the_batch_s_or_the_example_s(per, shared):
    model, images = StochasticDepth(Chain(), 0.5, per), jnp.zeros((16, 1))
    counts = drawn(model, model.init(jax.random.key(0), images), images, 4)
    assert all((each == each[0]).all() for each in counts) == shared


def test_a_dropped_branch_has_no_gradient_and_others_have_theirs():
    model, images = StochasticDepth(Chain(), 0.5), jnp.zeros((2, 3))
    params = model.init(jax.random.key(0), images)["params"]

    def output(params, key):
        return jnp.sum(
            jnp.asarray(model.apply({"params": params}, images, train=True, rngs={"dropout": key}))
        )

    for seed in range(8):
        value, gradients = jax.value_and_grad(output)(params, jax.random.key(seed))
        each = [np.unique(leaf).item() for leaf in jax.tree.leaves(gradients)]
        assert set(each) <= {0.0, 2.0}  # 0, or one for each of the two examples
        assert 3 * sum(each) == value


def test_steps_of_equal_keys_are_equal_and_of_others_differ():
    model = stochastic_depth("cifar_resnet20", width=4, num_classes=10)
    variables = model.init(jax.random.key(1), IMAGES)
    one, again, other = (
        model.apply(
            variables,
            IMAGES,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(seed)},
        )[0]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)


@pytest.mark.parametrize(
    ("network", "fields", "message"),
    [
        (create_model("cifar_resnet20"), {"survival": 0.0}, "survival"),
        (create_model("cifar_resnet20"), {"survival": 1.5}, "survival"),
        (create_model("cifar_resnet20"), {"per": "pixel"}, "per"),
        (create_model("cifar_resnet20", scan=True), {}, "scan"),
        (create_model("cifar_plain20"), {}, "ResNet without residual sums"),
        (create_model("vgg11"), {}, "VGG without residual sums"),
    ],
)
def test_what_it_cannot_do_is_refused(network, fields, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(
            StochasticDepth(network, **fields).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
        )
