"""Depth or width: budgets are equal where a claim says so."""

import pytest

from deepjax.study.arms.arm import TrainedArm, arm_config
from deepjax.study.cost import network_cost
from experiments.depth_or_width import ARMS, EQUAL_COST, EQUAL_WIDTH, equal_cost, name_of


def cost(name: str, dataset: str = "fashion_mnist_small"):
    arm = ARMS[name]
    return network_cost(
        TrainedArm(name, arm_config(arm, dataset, {}), 0.1, (0,), name, {}, arm.make)
    )


@pytest.mark.parametrize("dataset", ["digits", "fashion_mnist_small"])
def test_networks_of_equal_cost_have_equal_multiply_adds_and_parameters(dataset):
    found = [cost(name_of(*each), dataset) for each in EQUAL_COST.items()]
    middle = found[1]
    assert [each.macs / middle.macs for each in found] == pytest.approx([1, 1, 1], abs=0.061)
    assert [each.params / middle.params for each in found] == pytest.approx([1, 1, 1], abs=0.06)
    assert equal_cost()[0]


def test_at_equal_width_the_cost_grows_with_depth():
    """As 6n - 1 for n blocks a stage: two of the 6n convolutions cost half: they halve the map."""
    macs = [cost(name_of(*each)).macs for each in EQUAL_WIDTH.items()]
    assert [each / macs[0] for each in macs] == pytest.approx([1, 17 / 5, 41 / 5], rel=0.05)


def test_the_planted_defect_is_a_fifteenth_of_the_network():
    tiny, narrow = cost("8_layers_width2"), cost(name_of(8, EQUAL_WIDTH[8]))
    assert narrow.params / tiny.params == pytest.approx(15, rel=0.1)
