"""What public weights expect, against timm's and torchvision's own words where they are installed."""

import math
import warnings

import pytest

from deepjax.evaluation.weights_preprocessing import PUBLIC
from deepjax.models.weights_table import KNOWN_WEIGHTS
from tests.models.torch_reference import library, needs_torch

OTHER_TEST_SIZE = {"timm/resnet50.a1h_in1k", "timm/wide_resnet50_2.racm_in1k"}
"""Trained at another size than 224: timm's crop at 224 stands in its results alone."""


def test_every_known_weight_has_a_row():
    assert list(PUBLIC) == [
        (name, source) for name, rows in KNOWN_WEIGHTS.items() for source, _ in rows
    ]
    accuracy = {
        (name, source): top1 for name, rows in KNOWN_WEIGHTS.items() for source, top1 in rows
    }
    assert all(accuracy[key] < expected.top5 < 100 for key, expected in PUBLIC.items())


@needs_torch
@pytest.mark.parametrize(("name", "source"), PUBLIC, ids=str)
def test_images_are_made_ready_as_the_weights_expect(name, source):
    expected = PUBLIC[name, source]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if source.startswith("timm/"):
            library("timm")
            from timm.models import get_pretrained_cfg

            config = get_pretrained_cfg(source.removeprefix("timm/"))
            assert (config.interpolation, config.mean == (0.5, 0.5, 0.5)) == (
                expected.interpolation,
                expected.half,
            )
            tested = (
                {config.test_input_size[1]: config.test_crop_pct} if config.test_input_size else {}
            )
            at = {config.input_size[1]: config.crop_pct} | tested
            assert expected.at_288 == (math.floor(288 / at[288]) if 288 in at else 0)
            size = 299 if name == "inception_v3" else 224
            if size in at and source not in OTHER_TEST_SIZE:
                assert expected.resize == math.floor(size / at[size])
        else:
            models = library("torchvision")
            weights = models.get_model_weights({"googlenet_tv": "googlenet"}.get(name, name))[
                source.split()[-1]
            ]
            transform = weights.transforms()
            assert (transform.resize_size, transform.interpolation.value) == (
                [expected.resize],
                expected.interpolation,
            )
            assert weights.meta["_metrics"]["ImageNet-1K"]["acc@5"] == expected.top5
            assert expected.half == (
                name in ("googlenet_tv", "inception_v3")
            )  # whose builders set transform_input for weights
