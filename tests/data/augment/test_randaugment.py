"""Sampling of operations and strengths, compared with timm's RandAugment and torchvision's
TrivialAugment.
"""

import collections
import importlib
import random
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deepjax.data.augment import randaugment
from deepjax.data.augment.basic import BatchSlice
from deepjax.data.augment.erasing import random_erase, random_erasing_box
from deepjax.data.augment.lighting import COMPONENTS, EIGENVALUES, shift_colors
from deepjax.data.augment.operations import OPERATIONS
from deepjax.data.augment.randaugment import (
    rand_augment,
    randaugment_arguments,
    trivial_augment,
    trivialaugment_arguments,
)
from tests.models.torch_reference import library, needs_torch

SIZE = (100, 200)  # height, width
STRENGTHS = jax.jit(lambda level, sign: randaugment_arguments(level, sign, SIZE))
OF_TIMM = {
    "AutoContrast": "auto_contrast", "Equalize": "equalize", "Invert": "invert",
    "Rotate": "rotate", "SolarizeAdd": "solarize_add", "PosterizeIncreasing": "posterize",
    "SolarizeIncreasing": "solarize", "ColorIncreasing": "color", "ShearX": "shear_x",
    "ContrastIncreasing": "contrast", "BrightnessIncreasing": "brightness",
    "SharpnessIncreasing": "sharpness", "ShearY": "shear_y",
    "TranslateXRel": "translate_x", "TranslateYRel": "translate_y",
}  # fmt: skip


def of_library(name: str, module: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library(name)
        return importlib.import_module(module)


def recorded(monkeypatch):
    """What `operate` is given, in place of what it does."""
    given = []

    def operate(images, places, arguments, fill):
        jax.debug.callback(
            lambda p, a: given.append((np.asarray(p), np.asarray(a))), places, arguments
        )
        return images

    monkeypatch.setattr(randaugment, "apply_operations", operate)
    return given


@needs_torch
@pytest.mark.parametrize("level", [0.0, 2.6, 6.0, 7.0, 9.3, 10.0])
def test_strengths_are_timm_s(level, monkeypatch):
    timm = of_library("timm", "timm.data.auto_augment")
    ours = {}
    for sign, draw in ((1.0, 0.0), (-1.0, 1.0)):
        monkeypatch.setattr(random, "random", lambda draw=draw: draw)  # timm negates above one half
        ours = dict(zip(OPERATIONS, np.asarray(STRENGTHS(level, sign)), strict=True))
        for name, mine in OF_TIMM.items():
            if timm.LEVEL_TO_ARG[name] is None:
                continue
            (theirs,) = timm.LEVEL_TO_ARG[name](level, {})
            scale = {"translate_x": SIZE[1], "translate_y": SIZE[0]}.get(mine, 1)
            assert ours[mine] == pytest.approx(theirs * scale, rel=1e-5, abs=1e-6), name


@needs_torch
def test_operations_are_timm_s():
    timm = of_library("timm", "timm.data.auto_augment")
    mine = {OPERATIONS[place] for place in randaugment.RANDAUGMENT_OPS}
    assert {OF_TIMM[name] for name in timm.rand_augment_choices("", increasing=True)} == mine
    transform = timm.rand_augment_transform("rand-m7-mstd0.5-inc1", {})
    assert (
        transform.num_layers,
        {op.prob for op in transform.ops},
        {op.magnitude_std for op in transform.ops},
    ) == (
        2,
        {0.5},
        {0.5},
    )


@needs_torch
def test_strengths_and_operations_are_torchvision_s():
    of_library("torchvision", "torchvision.models")
    space = (
        importlib.import_module("torchvision.transforms")
        .TrivialAugmentWide()
        ._augmentation_space(31)
    )
    names = {
        name.replace("X", "_x").replace("Y", "_y").replace("toC", "to_c").lower(): name
        for name in space
    }
    assert set(names) == {OPERATIONS[place] for place in randaugment.TRIVIALAUGMENT_OPS}
    ours = jax.jit(jax.vmap(trivialaugment_arguments))(jnp.arange(31.0), jnp.ones(31))
    for name, place in ((name, OPERATIONS.index(name)) for name in names):
        theirs = np.broadcast_to(space[names[name]][0].numpy().astype(np.float32), 31)
        # torch's 16th of 31 from 0 to 32 is below 16, and its warp takes whole numbers
        pixels = name.startswith("translate")
        if name in ("brightness", "color", "contrast", "sharpness"):
            theirs = 1 + theirs
        expected = np.floor(theirs + 1e-4) if pixels else theirs
        np.testing.assert_allclose(ours[:, place], expected, rtol=1e-5, atol=1e-4, err_msg=name)


def test_rand_augment_draws_evenly_and_leaves_half_out(monkeypatch):
    given, count = recorded(monkeypatch), 3000
    images = jnp.zeros((count, 2, 2, 3), jnp.uint8)
    jax.jit(lambda: rand_augment(jax.random.key(0), images, jnp.zeros(3, jnp.uint8), 2, 6.0))()
    jax.effects_barrier()
    assert len(given) == 2
    drawn = collections.Counter(OPERATIONS[place] for places, _ in given for place in places)
    # 2 count draws of probability 1/2
    assert drawn.pop("identity") == pytest.approx(count, abs=5 * np.sqrt(count / 2))
    assert all(
        number == pytest.approx(count / 15, abs=5 * np.sqrt(count / 15))
        for number in drawn.values()
    )
    turned = np.concatenate(
        [arguments[places == OPERATIONS.index("rotate")] for places, arguments in given]
    )
    assert np.mean(np.abs(turned)) == pytest.approx(18.0, abs=0.5)  # 6 of 10 times 30 degrees
    assert np.std(np.abs(turned)) == pytest.approx(1.5, abs=0.3)  # 0.5 of 10 times 30
    assert np.mean(turned > 0) == pytest.approx(0.5, abs=0.15)


def test_trivial_augment_draws_one_operation_at_any_strength(monkeypatch):
    given, count = recorded(monkeypatch), 3000
    jax.jit(lambda: trivial_augment(jax.random.key(0), jnp.zeros((count, 2, 2, 3), jnp.uint8)))()
    jax.effects_barrier()
    ((places, arguments),) = given
    numbers = np.bincount(places, minlength=len(OPERATIONS))[randaugment.TRIVIALAUGMENT_OPS]
    assert numbers.sum() == count
    assert numbers == pytest.approx(count / 14, abs=5 * np.sqrt(count / 14))
    assert len(set(np.abs(arguments[places == OPERATIONS.index("rotate")]).round(1))) == 31


def test_each_image_is_changed_by_its_own_operations():
    images = np.repeat(
        np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1), np.uint8), 32, axis=0
    )
    changed = np.asarray(jax.jit(rand_augment)(jax.random.key(3), images, jnp.zeros(1, jnp.uint8)))
    assert changed.dtype == np.uint8
    assert len({image.tobytes() for image in changed}) > 16
    # both left out
    assert np.mean(np.all(changed == images, axis=(1, 2, 3))) == pytest.approx(0.25, abs=0.2)


@pytest.mark.parametrize(
    "augment",
    [lambda k, i, s: rand_augment(k, i, jnp.zeros(1, jnp.uint8), 2, 9.0, s), trivial_augment],
)
def test_slices_of_a_batch_are_augmented_as_the_global_batch(augment, monkeypatch):
    given = recorded(monkeypatch)
    for count, share in ((8, BatchSlice()), (4, BatchSlice(1, 2))):
        augment(jax.random.key(3), jnp.zeros((count, 4, 4, 1), jnp.uint8), share)
        jax.effects_barrier()
    whole, second = given[: len(given) // 2], given[len(given) // 2 :]
    for (places, arguments), (of_second, to_second) in zip(whole, second, strict=True):
        np.testing.assert_array_equal(of_second, places[4:])
        np.testing.assert_array_equal(to_second, arguments[4:])


@pytest.mark.eight_devices
@pytest.mark.parametrize(
    "augment",
    [lambda key, images: rand_augment(key, images, jnp.zeros(3, jnp.uint8)), trivial_augment],
)
def test_devices_augment_their_own_images(augment):
    """Split over eight devices the program sends nothing from one to another."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    of_key, of_images = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    split = jax.jit(augment, in_shardings=(of_key, of_images), out_shardings=of_images)
    compiled = split.lower(
        jax.random.key(0), jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.uint8)
    ).compile()
    assert not re.search(r"all-gather|all-reduce|all-to-all|collective-permute", compiled.as_text())


def test_erased_boxes_have_the_stated_areas_and_ratios():
    """2 to 33 % of the area, sides 0.3 to 3.3 to each other, any place.

    Torchvision's, up to a pixel.
    """
    boxes = np.asarray(
        jax.jit(jax.vmap(lambda key: random_erasing_box(key, 100, 80)))(
            jax.random.split(jax.random.key(0), 400)
        )
    )
    rows, columns = boxes.any(2).sum(1), boxes.any(1).sum(1)
    np.testing.assert_array_equal(boxes.sum((1, 2)), rows * columns)
    area, ratio = rows * columns / 8000, rows / columns
    assert 0.018 < area.min() < 0.04 < 0.3 < area.max() < 0.35
    assert 0.27 < ratio.min() < 0.4 < 2.5 < ratio.max() < 3.6
    assert boxes.any((0, 1)).all() and boxes.any((0, 2)).all()


def test_a_fraction_of_images_is_erased_and_slices_equal_the_global_batch():
    half = jax.jit(
        lambda part: random_erase(
            jax.random.key(0), jnp.ones((200, 10, 10, 1)), 0.25, BatchSlice(part, 2)
        )
    )
    halves = np.stack([half(0), half(1)])
    assert set(np.unique(halves)) == {0.0, 1.0}
    assert np.mean(halves.min((2, 3, 4)) == 0) == pytest.approx(0.25, abs=0.1)
    assert not np.array_equal(*halves)


def test_shifted_colours_have_alexnet_s_covariance():
    """Krizhevsky et al. 2012, section 4.1: [p1 p2 p3] [a1 l1, a2 l2, a3 l3], with a of std 0.1."""
    images = jnp.zeros((4000, 2, 2, 3))
    shifted = np.asarray(jax.jit(shift_colors, static_argnums=2)(jax.random.key(0), images, 0.1))
    assert np.ptp(shifted, axis=(1, 2)).max() == 0
    expected = (
        25.5**2 * np.array(COMPONENTS) @ np.diag(np.square(EIGENVALUES)) @ np.array(COMPONENTS).T
    )
    np.testing.assert_allclose(np.cov(shifted[:, 0, 0].T), expected, rtol=0.1)
    # as printed: orthonormal
    np.testing.assert_allclose(np.array(COMPONENTS).T @ np.array(COMPONENTS), np.eye(3), atol=1e-3)
