"""Parameter efficiency: exact counts, of the papers' networks and of the narrow ones."""

import numpy as np
import pytest

from deepjax.analysis import count_params
from deepjax.study.arms.arm import EVAL_TRAIN_IMAGES
from deepjax.study.arms.rates import SelectedRate
from deepjax.study.arms.result import ArmResult
from deepjax.study.results import StudyResults
from deepjax.study.study import trained_arms
from deepjax.training.network import model_from
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


def test_parameters_of_the_small_networks():
    """GoogLeNet has less than a fifth of VGG-11's parameters, and fewer than the half-wide one.

    The linear layers of VGG see what two pools leave of the image: 8 width channels.
    """
    for preset in ("small", "gpu"):
        arms = trained(preset)
        params = {
            name: count_params(model_from(arm.config, arm.make), arm.config.input_shape)
            for name, arm in arms.items()
        }
        assert 5 * params["googlenet"] < params["vgg11"]
        assert params["googlenet"] < params["vgg11_half"]
        width, (side, _, _) = arms["vgg11"].config.width, arms["vgg11"].config.input_shape
        features, hidden = (side // 4) ** 2 * 8 * width, 64 * width
        linear = sum(
            (n_in + 1) * out for n_in, out in ((features, hidden), (hidden, hidden), (hidden, 10))
        )
        assert params["vgg11"] - params["vgg11_pooled"] == linear - (8 * width + 1) * 10


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
    assert [len(line.get_xdata()) for line in test.lines[:3]] == [2, 1, 1]
    assert np.concatenate([line.get_ydata() for line in train.lines[:3]]) == pytest.approx(10)
