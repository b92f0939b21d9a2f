"""Accuracy and preprocessing of public weights, compared with timm's and torchvision's own data."""

import math
import warnings

import pytest

from deepjax.models import model_info
from deepjax.models.weights_table import PUBLIC_WEIGHTS
from tests.models.torch_reference import library, needs_torch

WEIGHTS = [(name, source) for name, rows in PUBLIC_WEIGHTS.items() for source in rows]
OTHER_TEST_SIZE = {"timm/resnet50.a1h_in1k", "timm/wide_resnet50_2.racm_in1k"}
"""Trained at another size than 224: timm's crop ratio at 224 is only in its results table."""


def test_top5_is_above_top1_and_the_table_of_models_lists_every_weight():
    for name, rows in PUBLIC_WEIGHTS.items():
        assert model_info(name).weights == tuple((source, row.top1) for source, row in rows.items())
        assert all(row.top1 < row.top5 < 100 for row in rows.values())


@needs_torch
@pytest.mark.parametrize(("name", "source"), WEIGHTS, ids=str)
def test_preprocessing_is_that_of_the_source(name, source):
    expected = PUBLIC_WEIGHTS[name][source]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if source.startswith("timm/"):
            library("timm")
            from timm.models import get_pretrained_cfg

            config = get_pretrained_cfg(source.removeprefix("timm/"))
            assert config.interpolation == expected.interpolation
            assert (config.mean == (0.5, 0.5, 0.5)) == expected.half
            tested = (
                {config.test_input_size[1]: config.test_crop_pct} if config.test_input_size else {}
            )
            ratios = {config.input_size[1]: config.crop_pct} | tested
            assert expected.resize_288 == (math.floor(288 / ratios[288]) if 288 in ratios else 0)
            size = 299 if name == "inception_v3" else 224
            if size in ratios and source not in OTHER_TEST_SIZE:
                assert expected.resize == math.floor(size / ratios[size])
        else:
            models = library("torchvision")
            theirs = {"googlenet_tv": "googlenet"}.get(name, name)
            weights = models.get_model_weights(theirs)[source.split()[-1]]
            transform = weights.transforms()
            assert transform.resize_size == [expected.resize]
            assert transform.interpolation.value == expected.interpolation
            assert weights.meta["_metrics"]["ImageNet-1K"]["acc@5"] == expected.top5
            # The builders of these two set transform_input where weights are given.
            assert expected.half == (name in ("googlenet_tv", "inception_v3"))
