"""Parameter efficiency: exact counts, of the papers' networks and of the narrow ones."""

import numpy as np
import pytest

from deepjax.analysis import count_params
from deepjax.study.arms.arm import EVAL_TRAIN_IMAGES
from deepjax.study.arms.rates import SelectedRate
from deepjax.study.arms.result import ArmResult
from deepjax.study.results import StudyResults
from deepjax.study.study import trained_arms
from deepjax.training.build import model_from
from experiments.parameter_efficiency import (
    ARMS,
    STUDY,
    error_over_parameters,
    fully_connected,
    twelve_times,
)


def trained(preset: str):
    """The arms of a preset, at any rate."""
    return trained_arms(STUDY, STUDY.presets[preset], dict.fromkeys(ARMS, SelectedRate(0.1)))


def test_exact_claims():
    """VGG-16: 123,642,856 in linear layers; AlexNet's 61.0 M over 6,998,552 is 8.7, not 12."""
    holds, found = fully_connected()
    assert holds
    assert found == "123,642,856 of 138,357,544 parameters: 89.4 %"
    holds, found = twelve_times()
    assert not holds
    assert "GoogLeNet 6,998,552, with the heads that it is trained with 13,378,280" in found
    assert "AlexNet (2012, grouped) 60,965,224: 8.7 and 4.6 times as many" in found
    assert "AlexNet (torchvision's) 61,100,840: 8.7 and 4.6 times as many" in found
    assert "VGG-16 has 19.8 times" in found


def alexnet(groups: int) -> int:
    """Parameters of AlexNet by its table: kernels and filters, then three linear layers."""
    convolutions = ((11, 3, 96, 1), (5, 96, 256, groups), (3, 256, 384, 1), (3, 384, 384, groups),
                    (3, 384, 256, groups))  # fmt: skip
    linear = ((256 * 6 * 6, 4096), (4096, 4096), (4096, 1000))
    found = sum(kernel**2 * n_in // g * out + out for kernel, n_in, out, g in convolutions)
    return found + sum(n_in * out + out for n_in, out in linear)


def test_parameters_of_alexnet():
    """Krizhevsky et al. 2012, section 3.5: the second, fourth and fifth layer have two groups."""
    assert alexnet(groups=2) == 60_965_224


def test_parameters_of_the_narrow_networks():
    """GoogLeNet has at most a fifth of VGG-11's parameters, and no more than the half-wide one."""
    for preset in ("small", "gpu"):
        arms = trained(preset)
        names = ("vgg11", "vgg11_half", "vgg11_pooled", "googlenet", "googlenet_single_filter")
        params = {
            name: count_params(model_from(arm.config, arm.make), arm.config.input_shape)
            for name, arm in arms.items()
            if name in names
        }
        assert 5 * params["googlenet"] <= params["vgg11"]
        assert params["googlenet"] <= params["vgg11_half"]
        assert params["googlenet_single_filter"] == 1929
        width = arms["vgg11"].config.width
        linear = 49 * 8 * width * 64 * width + (64 * width) ** 2 + 2 * 64 * width + 640 * width + 10
        pooled = 8 * width * 10 + 10
        assert params["vgg11"] - params["vgg11_pooled"] == linear - pooled


def test_figure_has_a_line_for_each_family():
    arms = trained("small")
    wrong = {
        "train": np.full((2, EVAL_TRAIN_IMAGES), 0.1),
        "test": np.full((2, EVAL_TRAIN_IMAGES), 0.2),
    }
    results = StudyResults(
        STUDY.presets["small"], (100, 101),
        {name: ArmResult(0.1, [[], []], wrong, "fashion_mnist_small") for name in arms},
        trained=arms,
    )  # fmt: skip
    train, test = error_over_parameters(results, "a title").axes
    assert [len(line.get_xdata()) for line in test.lines[:4]] == [2, 1, 2, 1]
    assert np.concatenate([line.get_ydata() for line in train.lines[:4]]) == pytest.approx(10)
