"""Variables of flax's ImageNet example in our ResNets: equal logits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax import create_model
from deepjax.errors import InputError
from deepjax.models.weights.flax_names import from_flax


class TheirBlock(nn.Module):
    """A bottleneck by the definition of flax's example: padding SAME, automatic names."""

    filters: int
    stride: int
    train: bool

    @nn.compact
    def __call__(self, x):
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not self.train, epsilon=1e-5)
        y = nn.relu(norm()(conv(self.filters, (1, 1))(x)))
        y = nn.relu(norm()(conv(self.filters, (3, 3), strides=self.stride)(y)))
        y = norm(scale_init=nn.initializers.zeros)(conv(4 * self.filters, (1, 1))(y))
        if x.shape != y.shape:
            x = conv(4 * self.filters, (1, 1), strides=self.stride, name="conv_proj")(x)
            x = norm(name="norm_proj")(x)
        return nn.relu(x + y)


class Theirs(nn.Module):
    """The network around it."""

    stages: tuple[int, ...]
    width: int

    @nn.compact
    def __call__(self, x, train=False):
        pads = ((3, 3), (3, 3))
        x = nn.Conv(self.width, (7, 7), 2, padding=pads, use_bias=False, name="conv_init")(x)
        x = nn.relu(nn.BatchNorm(not train, epsilon=1e-5, name="bn_init")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        number = 0
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                name = f"BottleneckResNetBlock_{number}"
                x = TheirBlock(self.width * 2**stage, stride, train, name=name)(x)
                number += 1
        return nn.Dense(1000)(x.mean((1, 2)))


def varied(variables):
    """No scale or statistic is at its initial value."""
    leaves, structure = jax.tree.flatten(variables)
    rng = np.random.default_rng(0)
    moved = [leaf + jnp.asarray(rng.uniform(0.1, 0.5, leaf.shape), leaf.dtype) for leaf in leaves]
    scaled = [m if leaf.ndim == 1 else leaf for m, leaf in zip(moved, leaves, strict=True)]
    return jax.tree.unflatten(structure, scaled)


@pytest.mark.parametrize("size", [64, 70])
def test_logits_and_statistics_are_equal(size):
    """Maps of 70, 35, 18, 9 and 5 pixels are padded on one side and on both."""
    theirs = Theirs((3, 4, 6, 3), 8)
    images = jax.random.normal(jax.random.key(1), (2, size, size, 3))
    variables = varied(theirs.init(jax.random.key(0), images))
    ours = create_model("resnet50", width=8, strided_padding="SAME")
    found = from_flax("resnet50", variables)
    wanted = theirs.apply(variables, images)
    logits = ours.apply(found, images)
    assert float(jnp.abs(logits - wanted).max()) < 1e-5 * float(jnp.abs(wanted).max())
    symmetric = create_model("resnet50", width=8).apply(found, images)
    assert float(jnp.abs(symmetric - wanted).max()) > 1e-3 * float(jnp.abs(wanted).max())


def test_what_does_not_fit():
    params = {"BottleneckResNetBlock_0": {"Conv_0": {"kernel": jnp.ones(1)}}}
    for name, tree, message in (
        ("vgg16", params, "allowed: a ResNet"),
        ("resnet50", params, "variables have 1 blocks; resnet50 has 16"),
        ("resnet50", {"conv1": {"kernel": jnp.ones(1)}}, "variables have 'conv1'; allowed"),
        ("resnet50", {"BottleneckResNetBlock_0": {"SE_0": {"kernel": 0}}}, "'SE_0' in Bottleneck"),
        ("resnet18", {"ResNetBlock_9": {"Conv_0": {"kernel": jnp.ones(1)}}}, "up to number 7"),
    ):
        with pytest.raises(InputError, match=message):
            from_flax(name, {"params": tree})
