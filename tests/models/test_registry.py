"""Every name of the table: the papers' counts and shapes of stages, and their computations."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deepjax import create_model, list_models, model_info
from deepjax.analysis import count_macs, count_params
from deepjax.errors import InputError
from deepjax.models import features
from tests.numpy_variables import numpy_variables

EXACT = json.loads((Path(__file__).parent / "exact_counts.json").read_text())
# The stem of ResNet-D: 3x3 from 3 to 32, 32 to 32 and 32 to 64, with two norms of 32 more, where
# others have 7x7 from 3 to 64; its average pools have no parameters, and leave the projections'
# maps as large as strides do. The stem's map is 112x112.
D_KERNELS = 27 * 32 + 288 * 32 + 288 * 64 - 147 * 64
D_STEM = [D_KERNELS + 2 * 2 * 32, 112**2 * D_KERNELS]
# A scale and a bias a filter, as batch norm has them: those of group norm, or the gain and bias of
# a standardised kernel.
TWINS = {"resnet50_gn": "resnet50", "nf_resnet50": "resnet50", "nf_resnet101": "resnet101"}
# In no table of exact counts: pinned by test_googlenet.py, by hand, and test_normfree.py, in closed
# form.
PINNED_ELSEWHERE = (
    "googlenet_naive",
    "fixup_*",
    "cifar_fixup*",
    "cifar_skipinit*",
    "cifar_rezero*",
    "cifar_nf*",
)


def expected_counts(name: str) -> list[int]:
    """Parameters and multiply-adds from `exact_counts.json`.

    The network's, or a twin's plus a D-stem's.
    """
    if name in EXACT or name in TWINS:
        return EXACT[TWINS.get(name, name)]
    return [count + more for count, more in zip(EXACT[name.removesuffix("d")], D_STEM, strict=True)]


def scanned(name: str, **overrides):
    """The network with equal blocks scanned where it can: traced in no time at any depth."""
    model = create_model(name, **overrides)
    return model.clone(scan=True) if hasattr(model, "scan") else model


@pytest.mark.parametrize("name", list_models())
def test_params_and_macs_are_the_exact_integers(name):
    info = model_info(name)
    if not any(name in list_models(pattern) for pattern in PINNED_ELSEWHERE):
        assert [info.params, info.macs] == expected_counts(name)
    model = scanned(name)
    assert count_params(model, info.input_shape) == info.params
    assert count_macs(model, info.input_shape) == info.macs


def feature_shapes(model, input_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of the features for one image, in the order of the calls."""
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    order: list[str] = []

    def run(variables, images):
        found = features(model, variables, images)
        order.extend(found)  # JAX hands dicts back in alphabetical order
        return found

    shapes = jax.eval_shape(run, variables, images)
    return {name: shapes[name].shape[1:] for name in order}


@pytest.mark.parametrize("name", list_models())
def test_stages_have_the_shapes_of_their_tables(name):
    """Sides halve from stage to stage and channels double: the papers' tables."""
    info = model_info(name)
    shapes = feature_shapes(scanned(name), info.input_shape)
    pooled = shapes.pop("pooled")
    last = list(shapes.values())[-1][-1]
    assert pooled == ((4096,) if name.startswith("vgg") else (last,))  # what the classifier takes
    sides = {stage: shape[0] for stage, shape in shapes.items()}
    channels = {stage: shape[-1] for stage, shape in shapes.items()}
    if name.startswith("vgg"):  # Table 1; the side is that after the pool
        assert sides == {"stage1": 112, "stage2": 56, "stage3": 28, "stage4": 14, "stage5": 7}
        assert list(channels.values()) == [64, 128, 256, 512, 512]
    elif name.startswith("googlenet"):  # Table 1
        assert list(sides.values()) == [28] * 3 + [14] * 5 + [7] * 2
        naive = [192, 416, 832, 1280, 1728, 2176, 2640, 3344, 4048, 4944]
        assert list(channels.values()) == (
            naive if "naive" in name else [192, 256, 480, 512, 512, 512, 528, 832, 832, 1024]
        )
    # Table 1: 3 modules at 35, 5 (and the reduction) at 17, 3 at 8
    elif name.startswith("inception"):
        assert list(sides.values()) == [35] * 4 + [17] * 5 + [8] * 3
        assert list(channels.values()) == [192, 256, 288, 288] + [768] * 5 + [1280, 2048, 2048]
    elif name.startswith("cifar"):
        wrn = 64 * int(name.split("_")[-1]) if "wrn" in name else 0
        widest = {"wrn": wrn, "resnext": 1024, "preact164": 256, "preact1001": 256}
        last = next((width for kind, width in widest.items() if kind in name), 64)
        assert list(sides.values()) == [32, 32, 16, 8]
        assert list(channels.values())[1:] == [last // 4, last // 2, last]
    else:  # He et al. 2015, Table 1
        basic = any(
            f"{kind}{depth}" in name for kind in ("resnet", "plain", "v2_") for depth in (18, 34)
        )
        assert list(sides.values()) == [56, 56, 28, 14, 7]
        assert list(channels.values()) == [
            64,
            *(width * (1 if basic else 4) for width in (64, 128, 256, 512)),
        ]


def narrow(name: str):
    """The same kind of network, as thin and shallow as it goes: equal ones run once."""
    fields = {field.name for field in dataclasses.fields(create_model(name))}
    model = create_model(name, num_classes=5)
    if name.startswith("inception"):
        return model.clone(width=2), 299  # what its auxiliary head takes
    if "stages" not in fields:
        return model.clone(width=4), 32
    thin = 16 if "resnext" in name else 4
    groups = {"groups": 4, "group_width": 16} if "resnext" in name else {}
    stem = {"stem_width": 4} if "stem_width" in fields else {}
    return model.clone(width=thin, stages=(2, 1), **groups, **stem), 16


NARROW = {narrow(name): name for name in reversed(list_models())}
# One of each kind runs in the suite; all the others are slow, and CI runs them too.
QUICK = ("vgg11_bn", "resnet18", "resnetv2_50", "cifar_plain20", "nf_resnet50", "cifar_rezero20")


def narrow_cases():
    return [
        pytest.param(*case, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for case, name in NARROW.items()
    ]


def test_quick_names_are_kinds():
    assert set(QUICK) <= set(NARROW.values())


@functools.cache
def problem(size: int):
    rng = np.random.default_rng(size)
    return rng.standard_normal((8, size, size, 3), dtype=np.float32), rng.integers(0, 5, 8)


QUICK_COMPILER = {"xla_backend_optimization_level": 0}


@pytest.mark.eight_devices
@pytest.mark.parametrize(("model", "size"), narrow_cases())
def test_eight_devices_agree_with_one_and_gradients_are_finite(model, size):
    """The loss is that of training, with 0.3 of each auxiliary head's."""
    images, labels = problem(size)
    variables = numpy_variables(model, (size, size, 3))
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    key = jax.random.key(1)

    def loss(params, images, labels):
        rngs = {"dropout": key}
        logits, updated = model.apply(
            {"params": params, **rest},
            images,
            train=True,
            mutable=["batch_stats", "auxiliary"],
            rngs=rngs,
        )
        scores = {"main": logits, **updated.get("auxiliary", {})}
        losses = {
            head: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(of, labels))
            for head, of in scores.items()
        }
        return sum(
            (1.0 if head == "main" else 0.3) * value for head, value in losses.items()
        ), scores

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    whole, shares = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    step = jax.jit(
        jax.value_and_grad(loss, has_aux=True),
        in_shardings=(whole, shares, shares),
        out_shardings=whole,
    )
    compiled = step.lower(variables["params"], images, labels).compile(QUICK_COMPILER)
    on_eight = jax.device_put((variables["params"], images, labels), (whole, shares, shares))
    (value, scores), gradients = compiled(*on_eight)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradients))
    heads = [tree for name, tree in gradients.items() if name.startswith("auxiliary")]
    assert len(heads) == len(scores) - 1
    assert all(
        any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(tree))
        for tree in (gradients, *heads)
    )
    forward = jax.jit(loss).lower(variables["params"], images, labels).compile(QUICK_COMPILER)
    alone, scores_alone = forward(variables["params"], images, labels)
    np.testing.assert_allclose(value, alone, rtol=1e-4)
    for head, expected in scores_alone.items():
        assert np.linalg.norm(scores[head] - expected) <= 2e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize(("model", "size"), narrow_cases())
def test_logits_are_equal_with_and_without_jit(model, size):
    images = problem(size)[0][:2]
    variables = numpy_variables(model, (size, size, 3))
    compiled = (
        jax.jit(model.apply).lower(variables, images).compile(QUICK_COMPILER)(variables, images)
    )
    op_by_op = model.apply(variables, images)
    assert np.linalg.norm(compiled - op_by_op) <= 1e-4 * np.linalg.norm(op_by_op)


@pytest.mark.parametrize(("model", "size"), NARROW, ids=NARROW.values())
@pytest.mark.parametrize("policy", [("bfloat16", "float32"), ("bfloat16", "bfloat16")])
def test_logits_are_float32_under_every_policy(model, size, policy):
    """By abstract evaluation with strict promotion: a silent promotion raises here."""
    dtype, param_dtype = map(jnp.dtype, policy)
    model = model.clone(dtype=dtype, param_dtype=param_dtype)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {param_dtype}
    logits = jax.eval_shape(model.apply, variables, images)
    assert (logits.shape, logits.dtype) == ((2, 5), jnp.float32)


def closed_form_params(depth: int, width: int, classes: int, channels: int) -> int:
    """6n+2 layers: stem, 2n convolutions a stage, a scale and a bias a filter, the classifier."""
    n = (depth - 2) // 6
    convolutions = 9 * channels * width
    norms = 2 * width
    for stage in range(3):
        out, into = width * 2**stage, width * 2 ** max(stage - 1, 0)
        convolutions += 9 * into * out + (2 * n - 1) * 9 * out * out
        norms += 2 * n * 2 * out
    return convolutions + norms + 4 * width * classes + classes


@pytest.mark.parametrize(
    "overrides", [{"num_classes": 100}, {"width": 8}, {"num_classes": 7, "width": 4}]
)
def test_overrides_change_the_count_as_the_closed_form_says(overrides):
    expected = closed_form_params(
        20, overrides.get("width", 16), overrides.get("num_classes", 10), channels=1
    )
    assert count_params(create_model("cifar_resnet20", **overrides), (28, 28, 1)) == expected


# Facts beyond the table: option C (He et al. 2015, Table 3), plain bottlenecks, and the popular 3x3
# stem on CIFAR.
@pytest.mark.parametrize(
    ("name", "overrides", "params"),
    [
        ("resnet18", {"shortcut": "C"}, 12_043_816),
        ("resnet34", {"shortcut": "C"}, 22_716_840),
        ("resnet50", {"residual": False}, 22_780_456),
        ("resnet101", {"residual": False}, 41_772_584),
        ("resnet152", {"residual": False}, 57_416_232),
        ("resnet18", {"stem": "cifar", "num_classes": 10}, 11_173_962),
        ("resnet50", {"stem": "cifar", "num_classes": 10}, 23_520_842),
        ("cifar_resnet56", {"shortcut": "B"}, 855_770),
        ("cifar_resnet110", {"num_classes": 100}, 1_733_812),
        ("cifar_preact164", {"num_classes": 100}, 1_726_388),
        ("googlenet", {"auxiliary": False}, 6_998_552),
        ("googlenet_bn", {"auxiliary": False}, 7_005_832),
        ("googlenet_tv", {"auxiliary": False}, 6_624_904),
        ("googlenet_naive", {"auxiliary": False}, 97_521_848),
        ("inception_v3", {"auxiliary": False}, 23_834_568),
    ],
)
def test_switches_give_the_known_counts(name, overrides, params):
    assert count_params(scanned(name, **overrides), model_info(name).input_shape) == params


def shapes_of(model, name: str):
    return jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, *model_info(name).input_shape))
    )


CHOICES = (
    "bn_scope",
    "block",
    "stem",
    "shortcut",
    "stride_in",
    "norm",
    "initialization",
    "configuration",
    "head",
    "pool4",
    "scheme",
)


@pytest.mark.parametrize(
    "name",
    [
        "vgg11",
        "googlenet",
        "inception_v3",
        "resnet18",
        "cifar_preact164",
        "cifar_fixup20",
        "nf_resnet50",
    ],
)
def test_a_choice_that_is_not_allowed_is_refused_by_name(name):
    model = create_model(name)
    fields = [field for field in CHOICES if hasattr(model, field)]
    assert fields
    for field in fields:
        with pytest.raises(InputError, match=f"^{field} is 'other'; allowed: '"):
            shapes_of(create_model(name, **{field: "other"}), name)


@pytest.mark.parametrize(
    "name",
    [
        "vgg11",
        "googlenet",
        "inception_v3",
        "resnet18",
        "cifar_preact164",
        "cifar_fixup20",
        "nf_resnet50",
    ],
)
@pytest.mark.parametrize(("field", "given"), [("width", 0), ("width", -4), ("num_classes", 0)])
def test_a_size_below_one_is_refused_by_name(name, field, given):
    with pytest.raises(InputError, match=f"^{field} is {given}; allowed: an integer, 1 or more"):
        shapes_of(create_model(name, **{field: given}), name)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "resnext50_32x4d",
            {"width": 4},
            r"width is 4; .*group_width=4 a multiple of 16: .* width \* group_width / 64 filters",
        ),
        ("resnext50_32x4d", {"width": 24}, "width is 24; .* a multiple of 16"),
        (
            "resnext50_32x4d",
            {"group_width": 0},
            "group_width is 0; allowed: an integer, 1 or more",
        ),
        ("resnet18", {"groups": 3}, "width is 64; allowed: a multiple of groups=3"),
        ("resnet50d", {"width": 1}, "width is 1; allowed: 2 or more with stem='deep'"),
        ("resnetv2_50d", {"stem_width": 1}, "stem_width is 1; allowed: 2 or more with stem='deep'"),
    ],
)
def test_widths_with_fractional_filters_are_refused(name, fields, message):
    with pytest.raises(InputError, match=message):
        shapes_of(create_model(name, **fields), name)


def test_unknown_names_give_the_nearest_one():
    with pytest.raises(InputError, match="did you mean 'cifar_resnet20'"):
        model_info("cifar_resnet_20")
    with pytest.raises(
        InputError, match="field of cifar_resnet20 'widht' is unknown; did you mean 'width'"
    ):
        create_model("cifar_resnet20", widht=8)
