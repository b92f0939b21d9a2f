"""Dense evaluation (deepjax/evaluation/dense.py) compared with loops over windows and images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.data.image.decode import decode_rgb
from deepjax.errors import InputError
from deepjax.evaluation.dense import (
    apply_to_valid_region,
    array_size,
    as_fully_convolutional,
    needs_filled_arrays,
)
from deepjax.evaluation.predict import EvalModel, predict
from deepjax.evaluation.protocols import resolve_protocol
from deepjax.models import create_model, features
from deepjax.models.layers.valid_region import valid_region
from deepjax.models.stochastic_depth import stochastic_depth
from deepjax.training.distributed.sharding import Partitioner, make_mesh
from tests.evaluation import reference

RNG = np.random.default_rng(0)
VGG = {"width": 2, "num_classes": 12}


def drawn(model, size, channels=3):
    """Random variables, statistics too, so that nothing is zero beyond an image's edge."""
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(_numbers(path[-1].key, leaf.shape)), shapes
    )


def _numbers(name, shape):
    numbers = RNG.standard_normal(shape).astype(np.float32)
    if name == "kernel":
        return numbers * np.float32(np.sqrt(2 / np.prod(shape[:-1])))
    return 1 + 0.2 * np.abs(numbers) if name in ("var", "scale", "gain") else 0.3 * numbers


def last_map(model, variables, x, stage):
    return jax.jit(lambda v, x: features(model, v, x, [stage])[stage])(variables, x)


def images(*shape):
    return jnp.asarray(RNG.standard_normal(shape).astype(np.float32))


def test_vgg_on_224_pixels_is_the_plain_network():
    plain = create_model("vgg11", **VGG)
    variables, x = drawn(plain, 224), images(2, 224, 224, 3)
    dense = jax.jit(as_fully_convolutional(plain).apply)(variables, x)
    np.testing.assert_allclose(dense, jax.jit(plain.apply)(variables, x), rtol=1e-4, atol=1e-5)


def test_vgg_scores_each_7x7_window_of_its_map_and_takes_the_mean():
    """The plain layers applied to each window; 290 x 301 pixels have a map of 9 x 9."""
    model = as_fully_convolutional(create_model("vgg11", **VGG))
    variables = drawn(model, 224)
    x, weights = images(1, 290, 301, 3), variables["params"]
    (last,) = np.asarray(last_map(model, variables, x, "stage5"))
    windows = [
        last[i : i + 7, j : j + 7].ravel()
        for i in range(last.shape[0] - 6)
        for j in range(last.shape[1] - 6)
    ]
    assert len(windows) == 9
    scores = np.stack(windows)
    for layer in ("head_fc6", "head_fc7", "head_fc8"):
        scores = scores @ np.asarray(weights[layer]["kernel"]) + np.asarray(weights[layer]["bias"])
        scores = np.maximum(scores, 0) if layer != "head_fc8" else scores
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, x)[0], scores.mean(axis=0), rtol=1e-4, atol=1e-5
    )


def test_places_with_equal_receptive_fields_have_one_score():
    """An image, and its part that begins 32 pixels further in.

    Places next to the new edges see zeros there, others do not. Vgg11's map sees 150 pixels (Table
    1, A; by recurrence), 59 of them before the 32 of a place: at two places of an edge.
    """
    model = create_model("vgg11", **VGG)
    variables, x = drawn(model, 224), images(1, 256, 288, 3)
    last = [np.asarray(last_map(model, variables, of, "stage5"))[0] for of in (x, x[:, 32:, 32:])]
    same = np.isclose(last[0][1:, 1:], last[1], rtol=1e-4, atol=1e-5).all(axis=-1)
    assert same[2:, 2:].all()
    assert not same[0].all() and not same[1].all() and not same[:, 0].all() and not same[:, 1].all()


@pytest.mark.parametrize(
    ("name", "stage", "overrides"),
    [
        ("resnet18", "stage4", {"stages": (1, 1, 1, 1)}),
        pytest.param("googlenet", "inception5b", {}, marks=pytest.mark.slow),
    ],
)
def test_a_linear_classifier_at_every_place_then_the_mean_is_the_network(name, stage, overrides):
    model = create_model(name, width=4, num_classes=12, **overrides)
    assert as_fully_convolutional(model) is model
    variables, x = drawn(model, 64), images(1, 97, 161, 3)
    (places,) = np.asarray(last_map(model, variables, x, stage))
    head = variables["params"]["head"]
    scores = [
        places[i, j] @ head["kernel"] + head["bias"]
        for i in range(places.shape[0])
        for j in range(places.shape[1])
    ]
    assert len(scores) > 10
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, x)[0], np.mean(scores, axis=0), rtol=1e-4, atol=1e-5
    )


ONE = (1, 1, 1, 1)
FAMILIES = {
    "resnet18_a": {"stages": ONE},
    "vgg11_lrn": {"head": "conv"},
    "resnet50d": {"stages": ONE},
    "resnetv2_50": {"stages": ONE},
    "nf_resnet50": {"stages": ONE},
    "resnet50_v1": {"stages": (1, 3, 1, 1), "scan": True},
    "googlenet": {},
    "googlenet_tv": {},
    "inception_v3": {},
}
QUICK = ("resnet18_a", "vgg11_lrn")
SIZES = {
    "vgg11_lrn": ((260, 231), (224, 288)),
    "inception_v3": ((151, 170), (150, 199), (180, 160)),
}


@pytest.mark.parametrize(
    "name",
    [
        *QUICK,
        *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name not in QUICK),
    ],
)
def test_images_of_several_shapes_in_one_array_are_as_if_alone(name):
    """Any values outside: here noise.

    Odd and even sizes, so that pools and strides end in each way.
    """
    check_within(name, SIZES.get(name, ((75, 94), (96, 73), (97, 74))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("googlenet", ((24, 31), (25, 32))), ("inception_v3", ((96, 108), (97, 100)))],
)
def test_small_images_in_one_array_are_as_if_alone(name, sizes):
    """Maps smaller than a pool's window; and image lengths that occur in no image fit no window."""
    check_within(name, sizes)


def check_within(name, sizes):
    model = create_model(name, width=4, num_classes=12, **FAMILIES[name])
    variables = drawn(model, 224)
    alone = [images(1, *size, 3) for size in sizes]
    height, width = (
        max(axis) + extra for axis, extra in zip(zip(*sizes, strict=True), (2, 1), strict=True)
    )
    filled = [
        jnp.pad(
            x,
            ((0, 0), (0, height - x.shape[1]), (0, width - x.shape[2]), (0, 0)),
            constant_values=9.0,
        )
        for x in alone
    ]
    got = jax.jit(lambda v, x, ends: apply_to_valid_region(model, v, x, ends))(
        variables, jnp.concatenate(filled), jnp.asarray(sizes, jnp.int32)
    )
    for one, x in zip(got, alone, strict=True):
        np.testing.assert_allclose(one, jax.jit(model.apply)(variables, x)[0], rtol=1e-3, atol=1e-4)
    without = jax.jit(model.apply)(variables, jnp.concatenate(filled))
    assert np.abs(without - got).max() > 0.01  # the noise would be seen


def test_group_normalisation_is_seen_inside_of_stochastic_depth():
    for norm in ("group", "batch"):
        assert needs_filled_arrays(stochastic_depth("cifar_resnet20", norm=norm)) == (
            norm == "group"
        )


def test_what_would_not_be_exact_is_refused():
    model = create_model("resnet50_gn", width=32, stages=ONE)
    x, ends = images(1, 64, 64, 3), jnp.array([[64, 60]], jnp.int32)
    with pytest.raises(InputError, match="group normalisation takes statistics of full maps"):
        jax.eval_shape(lambda v: apply_to_valid_region(model, v, x, ends), drawn(model, 64))
    plain = create_model("vgg11", **VGG)
    with pytest.raises(InputError, match="regions that cover a map depend on its size"):
        jax.eval_shape(
            lambda v: apply_to_valid_region(plain, v, images(1, 256, 256, 3), ends),
            drawn(plain, 224),
        )


def test_layers_are_unchanged_outside_of_valid_region():
    model = create_model("resnet50d", width=4, stages=ONE)
    variables, x = drawn(model, 64), images(1, 64, 64, 3)
    before = str(jax.make_jaxpr(model.apply)(variables, x))
    with valid_region(x.shape, jnp.array([[64, 60]], jnp.int32)):
        assert str(jax.make_jaxpr(model.apply)(variables, x)) != before
    assert str(jax.make_jaxpr(model.apply)(variables, x)) == before


@pytest.mark.parametrize(
    ("width", "height"),
    [(341, 256), (256, 256), (256, 257), (2560, 256), (500, 333), (7, 211), (640, 32_000)],
)
def test_arrays_are_of_few_shapes_and_little_more_than_filled(width, height):
    got = array_size((width, height))
    assert got[0] >= width and got[1] >= height and min(got) == min(width, height)
    assert width * height >= 0.88 * got[0] * got[1]
    shapes = {array_size((224, long)) for long in range(224, 8 * 224 + 1)}
    assert len(shapes) == 3 * 8 + 1  # of the longer side, in three doublings


@pytest.mark.parametrize("norm", ["batch", pytest.param("group", marks=pytest.mark.slow)])
def test_dense_predictions_equal_slow_code(norm):
    """Scaled, mirrored, one at a time.

    Mean of softmax outputs over two scales (VGG, section 4.2).
    """
    model = create_model(
        "cifar_plain20", width=4, stages=(1, 1), norm=norm, num_classes=reference.CLASSES
    )
    variables, data = drawn(model, 64), reference.DATASET
    split = reference.split_of(reference.pictures(((47, 101), (64, 64), (9, 13))))
    member = EvalModel("cifar_plain20", "made up", model, variables, data, reference.CROP)
    # of group norm, a program for each shape
    protocol = resolve_protocol("dense", "cifar_plain20", reference.CROP, sides=(32, 41))
    got = np.exp(predict(member, split, protocol, Partitioner(make_mesh()), 8))
    apply = jax.jit(model.apply)

    def logits(view):
        normal = (view.astype(np.float32) - np.float32(data.mean)) / np.float32(data.std)
        return np.asarray(apply(variables, jnp.asarray(normal[None])))[0]

    for one, record in zip(got, split.records, strict=True):
        views = [reference.scaled(decode_rgb(record["image"]), side) for side in (32, 41)]
        expected = np.mean(
            [reference.probabilities(logits(view)) for view in reference.with_mirrors(views)],
            axis=0,
        )
        np.testing.assert_allclose(one, expected, atol=1e-5)
