"""Each protocol compared with slow code: one crop, one network call at a time, means in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.data import Split
from deepjax.data.image.decode import decode_rgb
from deepjax.errors import InputError
from deepjax.evaluation.images import ShapeBucket
from deepjax.evaluation.predict import (
    EvalModel,
    _ScoreSums,
    average_views,
    ensemble,
    log_softmax,
    mirror_views,
    predict,
    restrict_to_classes,
)
from deepjax.evaluation.protocols import PROTOCOLS, resolve_protocol
from deepjax.evaluation.reader import ViewReader
from deepjax.models.layers import valid_region
from deepjax.training.distributed.sharding import Partitioner, make_mesh
from tests.evaluation import reference
from tests.evaluation.reference import CLASSES, CROP, DATASET, Small
from tests.training.distributed.test_sharding import mesh_of

SPREAD = Partitioner(make_mesh())


class Mean(nn.Module):
    """A network on full images: channels' means."""

    @nn.compact
    def __call__(self, images, train=False):
        return jnp.tile(valid_region.masked_mean(images), CLASSES // 3)


MODEL = Small()
VARIABLES = jax.tree.map(np.asarray, MODEL.init(jax.random.key(0), jnp.zeros((1, CROP, CROP, 3))))
MEMBER = EvalModel("small", "made up", MODEL, VARIABLES, DATASET, CROP)
SLOW = {
    "1-crop": lambda image: [reference.centre(reference.scaled(image, 37), CROP)],
    "10-crop": reference.ten_crop,
    "10-crop-whole": lambda image: reference.with_mirrors(
        reference.five(reference.scaled(image, 37), CROP)
    ),
    "144-crop": reference.hundred_and_forty_four,
    "multi-crop": reference.fifty_a_scale,
}


@jax.jit
def logits_of_one(view):
    normal = (view.astype(jnp.float32) - jnp.asarray(DATASET.mean)[None, None, :]) / jnp.asarray(
        DATASET.std
    )[None, None, :]
    return MODEL.apply(VARIABLES, normal[None])[0]


def by_hand(split, slow, of):
    """The probabilities of each image, view by view."""
    found = []
    for record in split.records:
        logits = np.stack(
            [
                logits_of_one(np.ascontiguousarray(view))
                for view in slow(decode_rgb(record["image"]))
            ]
        )
        one = np.mean([reference.probabilities(each) for each in logits], axis=0)
        found.append(one if of == "probabilities" else reference.probabilities(logits.mean(axis=0)))
    return np.array(found)


@pytest.mark.parametrize(
    ("name", "views"),
    [("1-crop", 1), ("10-crop", 10), ("10-crop-whole", 10), ("144-crop", 144), ("multi-crop", 150)],
)
def test_crops_against_slow_code(name, views):
    """Odd sizes, sides below the crop, ratios of 1:40. Numbers of views: the papers'."""
    split, protocol = (
        reference.split_of(reference.pictures()),
        resolve_protocol(name, "small", CROP),
    )
    assert protocol.views == views == len(SLOW[name](reference.pictures()[0]))
    assert protocol.average == ("logits" if name == "10-crop-whole" else "probabilities")
    got = np.exp(predict(MEMBER, split, protocol, SPREAD))
    np.testing.assert_allclose(got, by_hand(split, SLOW[name], protocol.average), atol=2e-6)
    assert np.ptp(got, axis=0).max() > 0.01  # the network does not say the same of every image


def test_what_is_averaged_matters_and_can_be_chosen():
    split, whole = reference.split_of(reference.pictures()), {}
    for of in ("probabilities", "logits"):
        protocol = resolve_protocol("10-crop", "small", CROP, average=of)
        whole[of] = np.exp(predict(MEMBER, split, protocol, SPREAD))
        np.testing.assert_allclose(whole[of], by_hand(split, SLOW["10-crop"], of), atol=2e-6)
    assert np.abs(whole["logits"] - whole["probabilities"]).max() > 1e-3


@pytest.mark.eight_devices
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(("name", "batch_size"), [("10-crop", 1), ("10-crop", 200), ("1-crop", 16)])
def test_devices_and_batches_change_nothing(name, batch_size, devices):
    """11 images: on 8 devices the last batch has three, on two devices at 16 crops it has 11."""
    split, protocol = reference.many(11), resolve_protocol(name, "small", CROP)
    whole = predict(MEMBER, split, protocol, SPREAD, 64)
    other = predict(MEMBER, split, protocol, Partitioner(mesh_of(devices)), batch_size)
    assert whole.shape == (11, CLASSES)
    np.testing.assert_allclose(np.exp(other), np.exp(whole), atol=1e-6)


class Pod(Partitioner):
    """Rows of a batch come back in the order of the devices in a mesh of several processes."""

    def put_batch(self, batch):
        return super().put_batch(
            {name: np.roll(rows[::-1], 3, axis=0) for name, rows in batch.items()}
        )


@pytest.mark.eight_devices
@pytest.mark.parametrize("name", ["1-crop", "dense"])
def test_scores_are_those_of_their_images_in_whatever_order_a_mesh_has_them(name):
    """Of 11 images on 8 devices, so that padding moves too."""
    split, protocol = reference.many(11), resolve_protocol(name, "small", CROP)
    member = (
        dataclasses.replace(MEMBER, model=Mean(), variables={"params": {}})
        if name == "dense"
        else MEMBER
    )
    pod = predict(member, split, protocol, Pod(jax.sharding.Mesh(jax.devices()[::-1], "data")), 8)
    np.testing.assert_allclose(
        np.exp(pod), np.exp(predict(member, split, protocol, SPREAD, 8)), atol=1e-6
    )


def test_padding_is_no_image():
    sums = _ScoreSums("logits", 3)
    sums.add(np.array([2, -1, 0]), np.array([[2.0], [9.0], [0.0]]))
    sums.add(np.array([-1, 1]), np.array([[9.0], [1.0]]))
    assert sums._scores.tolist() == [[0.0], [1.0], [2.0]] and sums._seen.tolist() == [1, 1, 1]


def test_of_a_small_group_no_more_rows_are_computed_than_devices_need():
    """Group normalisation has a program for each shape, and mostly one image in it."""
    reader = ViewReader(
        reference.many(3),
        resolve_protocol("dense", "small", CROP),
        "bilinear",
        pixels=10**7,
        devices=2,
    )
    (batch,) = reader.batches([ShapeBucket(np.arange(3), (CROP,), 1, 200, 200)])
    assert batch.arrays["id"].tolist() == [0, 1, 2, -1]


def test_progress_counts_every_image_once():
    told = []
    predict(
        MEMBER,
        reference.many(11),
        resolve_protocol("1-crop", "small", CROP),
        SPREAD,
        8,
        lambda *numbers: told.append(numbers),
    )
    assert told == [(8, 11), (11, 11)]


def test_an_ensemble_is_the_mean_of_probabilities():
    split, protocol = reference.many(3), resolve_protocol("1-crop", "small", CROP)
    other = dataclasses.replace(MEMBER, variables=jax.tree.map(lambda leaf: -leaf, VARIABLES))
    each = [predict(member, split, protocol, SPREAD) for member in (MEMBER, other)]
    np.testing.assert_allclose(np.exp(ensemble(each)), np.mean(np.exp(each), axis=0), atol=1e-6)
    np.testing.assert_array_equal(ensemble(each[:1]), each[0])


def test_among_some_classes_is_their_own_softmax():
    """ImageNet-A and -R: of one view, the softmax of the logits of the classes that occur."""
    logits = np.random.default_rng(0).standard_normal((4, 9)).astype(np.float32) * 5
    classes = np.array([1, 4, 8])
    got = np.exp(restrict_to_classes(log_softmax(logits), classes))
    np.testing.assert_allclose(
        got[:, classes], [reference.probabilities(row[classes]) for row in logits], atol=1e-6
    )
    assert not got[:, [0, 2, 3, 5, 6, 7]].any()


def test_mirrors_end_where_the_image_does():
    views = np.arange(12, dtype=np.uint8).reshape(2, 1, 1, 6, 1)
    got = mirror_views(jnp.asarray(views), jnp.array([[1, 6], [1, 4]], jnp.int32))
    assert got[:, 0, 0, :, 0].tolist() == [[5, 4, 3, 2, 1, 0], [9, 8, 7, 6, 11, 10]]


def test_the_mean_of_probabilities_does_not_underflow():
    """Of two views, one sure of class 0, one of class 1.

    Half each, and e^-500, below float32, for 2.
    """
    got = average_views(
        jnp.array([[[0.0, -1000.0, -500.0], [-1000.0, 0.0, -500.0]]]), "probabilities"
    )
    np.testing.assert_allclose(got, [[np.log(0.5), np.log(0.5), -500.0]], rtol=1e-6)


@pytest.mark.parametrize("crop", [32, 224, 299])
def test_sides_are_the_papers_in_proportion(crop):
    assert resolve_protocol("144-crop", "googlenet", crop).sides == tuple(
        round(side * crop / 224) for side in (256, 288, 320, 352)
    )
    assert resolve_protocol("1-crop", "resnet50", crop, resize=crop + 8).sides == (crop + 8,)
    assert resolve_protocol("multi-scale", "vgg16", 224).sides == (224, 256, 288)
    assert resolve_protocol("multi-scale", "resnet50", 224).sides == (224, 256, 384, 480, 640)
    assert PROTOCOLS["dense"].dense and not PROTOCOLS["10-crop"].dense


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="protocol 'ten-crop' is unknown; did you mean"):
        resolve_protocol("ten-crop", "resnet50", 224)
    with pytest.raises(InputError, match=r"sides is .*200.*; allowed: 224"):
        resolve_protocol("dense", "resnet50", 224, sides=(200, 256))
    with pytest.raises(InputError, match="resize is 200; allowed: 224"):
        resolve_protocol("1-crop", "resnet50", 224, resize=200)
    stored = Split(np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, np.int32))
    with pytest.raises(InputError, match="protocol is '10-crop'; allowed: '1-crop'"):
        predict(MEMBER, stored, resolve_protocol("10-crop", "small", CROP), SPREAD)


def test_an_undecodable_image_is_named():
    split = reference.many(3)
    split.records[1]["image"] = split.records[1]["image"][:100]
    for name in ("1-crop", "dense"):
        with pytest.raises(InputError, match=r"record 1 is corrupt .*every image counts"):
            predict(MEMBER, split, resolve_protocol(name, "small", CROP), SPREAD)
