"""Parameter efficiency: exact counts, and rules that can fail."""

import pytest

from deepjax.study.arm_result import ArmResult
from deepjax.study.cost import cost_curves, network_costs
from deepjax.study.report.format import format_count
from deepjax.study.study import Options
from experiments.parameter_efficiency import PRESETS, STUDY, judge, make_arms
from tests.study.results import arm, results


def near(error: float, noise: float = 0.001) -> ArmResult:
    """An arm of three seeds with test errors around the given one."""
    return arm(0.0, error, (-2 * noise, noise, noise))


BASE = {name: near(0.02, 0.0) for name in make_arms(Options(), PRESETS["digits"])} | {
    "googlenet_1": near(0.5),
    "vgg11_2": near(0.1),
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ["supported", "supported", "supported"]),
        # Within the margin.
        ({"googlenet_8": near(0.025)}, ["supported", "supported", "supported"]),
        ({"googlenet_8": near(0.03)}, ["inconclusive", "supported", "supported"]),  # on the margin
        ({"googlenet_8": near(0.2)}, ["refuted", "refuted", "supported"]),
        ({"vgg11_pooled_8": near(0.2)}, ["supported", "supported", "refuted"]),
        ({"vgg11_2": near(0.02)}, ["supported", "inconclusive", "supported"]),
    ],
)
def test_each_verdict_can_come_out_either_way(change, expected):
    verdicts = judge(results(STUDY, BASE | change))
    assert [verdict.outcome for verdict in verdicts[2:5]] == expected
    assert [(verdict.outcome, verdict.is_as_expected) for verdict in verdicts[5:]] == [
        ("refuted", True)
    ] * 2


def test_exact_claims():
    """VGG-16: 123,642,856 in linear layers; AlexNet's 61.1 M over 6,998,552 is 8.7, not 12."""
    fully_connected, twelve, *_, resnet, _ = judge(results(STUDY, BASE))
    assert (fully_connected.outcome, twelve.outcome, resnet.outcome) == (
        "supported",
        "refuted",
        "refuted",
    )
    assert fully_connected.findings == ("123,642,856 of 138,357,544 parameters: 89.4 %",)
    assert (
        "GoogLeNet 6,998,552: 8.7 times" in twelve.findings[0]
        and "13,378,280: 4.6 times" in twelve.findings[0]
    )
    assert resnet.findings == ("2,049,000 of 25,557,032 parameters: 8.0 %",)


def test_exact_costs():
    """Narrow networks at 32 pixels; at the papers' widths VGG-11 loses only its linear layers."""
    cost = network_costs(make_arms(Options(), PRESETS["digits"]))
    counts = {
        "vgg11_8": 2_019_034,
        "vgg11_pooled_8": 145_754,
        "googlenet_8": 96_578,
        "vgg11_2": 127_558,
        "googlenet_1": 1_929,
    }
    assert {name: cost[name].params for name in counts} == counts
    assert (cost["vgg11_8"].macs, cost["googlenet_8"].macs, cost["resnet18_8"].macs) == (
        4_305_920,
        568_352,
        641_664,
    )
    whole = network_costs(make_arms(Options(dataset="cifar100"), PRESETS["cifar100"]))
    # Convolutions, their norms, one linear layer.
    assert whole["vgg11_pooled_8"].params == 9_220_480 + 5_504 + 513 * 100


def test_lines_over_cost():
    cost = network_costs({"googlenet_1": make_arms(Options(), PRESETS["digits"])["googlenet_1"]})[
        "googlenet_1"
    ]
    line, seeds = cost_curves({"one": [(cost, [0.1, 0.2]), (cost, [0.3, 0.4])]}, "params")
    assert (line.x, line.y) == ([1929.0, 1929.0], [[10.0, 30.0], [20.0, 40.0]])
    assert (seeds.x, seeds.y) == ([1929.0] * 4, [[10.0, 30.0, 20.0, 40.0]])
    assert [format_count(count) for count in (999, 67_906, 1_958_720, 1_582_671_872)] == [
        "999",
        "67.9 k",
        "1.96 M",
        "1.58 G",
    ]


def test_preset_of_the_papers():
    """The papers' widths and size of image."""
    config = make_arms(Options(dataset="cifar100"), PRESETS["cifar100"])["googlenet_8"].config
    assert (config.width, config.data.image_size, config.epochs) == (64, 224, 200)
