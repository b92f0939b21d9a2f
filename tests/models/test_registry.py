"""The table of names against the papers: counts by abstract evaluation and from the traced computation."""

import pytest

from deepjax import create_model, list_models, model_info
from deepjax.analysis import count_macs, count_params
from deepjax.errors import InputError

# He et al. 2015, Table 6: 0.27, 0.46, 0.66, 0.85, 1.7 and 19.4 M parameters; the exact integers of option A worked out by hand.
# The plain twin of Figure 6 has no projection to lose: equal counts.
PARAMS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}
MACS = {20: 40_551_040, 32: 68_862_592, 44: 97_174_144, 56: 125_485_696, 110: 252_887_680, 1202: 2_829_238_912}
CASES = [(f"cifar_{kind}{depth}", depth) for kind in ("resnet", "plain") for depth in PARAMS]


def closed_form_params(depth: int, width: int = 16, classes: int = 10, channels: int = 3) -> int:
    """6n+2 layers: stem, 2n convolutions a stage, a scale and a bias a filter, the classifier."""
    n = (depth - 2) // 6
    convolutions = 9 * channels * width
    norms = 2 * width
    for stage in range(3):
        out, into = width * 2**stage, width * 2 ** max(stage - 1, 0)
        convolutions += 9 * into * out + (2 * n - 1) * 9 * out * out
        norms += 2 * n * 2 * out
    return convolutions + norms + 4 * width * classes + classes


def test_the_table_holds_exactly_these_names():
    assert sorted(list_models()) == sorted(name for name, _ in CASES)


@pytest.mark.parametrize(("name", "depth"), CASES)
def test_params_equal_paper_closed_form_and_module(name, depth):
    info = model_info(name)
    assert info.params == PARAMS[depth] == closed_form_params(depth)
    if depth <= 110:  # 1202 layers are traced by the slow test below
        assert count_params(create_model(name), info.input_shape) == PARAMS[depth]


@pytest.mark.parametrize(("name", "depth"), CASES)
def test_macs_equal_the_traced_computation(name, depth):
    info = model_info(name)
    assert info.macs == MACS[depth]
    if depth <= 56:
        assert count_macs(create_model(name), info.input_shape) == MACS[depth]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar_resnet1202", "cifar_plain1202"])
def test_1202_layers_by_abstract_evaluation(name):
    info = model_info(name)
    assert count_params(create_model(name), info.input_shape) == 19_421_274
    assert count_macs(create_model(name), info.input_shape) == 2_829_238_912


@pytest.mark.parametrize("overrides", [{"num_classes": 100}, {"width": 8}, {"num_classes": 7, "width": 4}])
def test_overrides_change_the_count_as_the_closed_form_says(overrides):
    model = create_model("cifar_resnet20", **overrides)
    expected = closed_form_params(20, overrides.get("width", 16), overrides.get("num_classes", 10), channels=1)
    assert count_params(model, (28, 28, 1)) == expected


def test_unknown_names_give_the_nearest_one():
    with pytest.raises(InputError, match="did you mean 'cifar_resnet20'"):
        model_info("cifar_resnet_20")
    with pytest.raises(InputError, match="field of cifar_resnet20 'widht' is unknown; did you mean 'width'"):
        create_model("cifar_resnet20", widht=8)
