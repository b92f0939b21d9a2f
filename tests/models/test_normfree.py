"""Normalisation-free networks.

Closed-form sizes, identity at the start, signals, first gradients.
"""

import json
import math
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import lax

from deepjax import list_models, model_info
from deepjax.errors import InputError
from deepjax.models.layers.basic import shortcut_a
from deepjax.models.layers.scanned_blocks import stack_blocks
from deepjax.models.nf_resnet import (
    GAMMA_RELU,
    NFResNet,
    ScaledStdConv,
    expected_variances,
    standardize,
)
from deepjax.models.normfree import NormFreeResNet
from deepjax.models.resnet import cifar_stages
from deepjax.models.weights.torch_names import nf_resnet_names

EXACT = json.loads((Path(__file__).parent / "exact_counts.json").read_text())
SCHEMES = ("fixup", "skipinit", "rezero", "nf")


def cifar(scheme, stages=(2, 1), width=4, **fields):
    """A network with the CIFAR stem, and the shortcut and norm that the scheme's authors used."""
    fields = {
        "stages": stages,
        "block": "basic",
        "num_classes": 5,
        "width": width,
        "stem": "cifar",
    } | fields
    if scheme == "nf":
        return NFResNet(**({"shortcut": "B"} | fields))
    own = {
        "fixup": {"shortcut": "A"},
        "skipinit": {"shortcut": "B"},
        "rezero": {"shortcut": "A", "norm": "batch"},
    }[scheme]
    return NormFreeResNet(scheme=scheme, **(own | fields))


# compiles in half the time
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@partial(quick_jit, static_argnums=(0, 1))
def initialize(model, shape):
    return model.init(jax.random.key(0), jnp.zeros((1, *shape)))


@partial(quick_jit, static_argnums=0)
def run(model, variables, images):
    return model.apply(variables, images, mutable=["features"])


@partial(quick_jit, static_argnums=0)
def gradients(model, variables, images):
    def loss(params):
        logits = model.apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )[0]
        return -jnp.mean(jax.nn.log_softmax(logits)[:, 0])

    return jax.grad(loss)(variables["params"])


def variables_of(model, shape=(8, 8, 3)):
    return jax.tree.map(np.asarray, initialize(model, shape))


def images_of(batch=2, size=8):
    return np.random.default_rng(1).normal(size=(batch, size, size, 3)).astype(np.float32)


def noisy(tree, deviation=0.1):
    """The tree with noise on every leaf, so that nothing is at its start."""
    rng = np.random.default_rng(2)
    return jax.tree.map(
        lambda leaf: leaf + rng.normal(scale=deviation, size=leaf.shape).astype(leaf.dtype), tree
    )


def features_of(model, variables, images):
    logits, state = run(model, variables, images)
    return state["features"] | {"logits": logits}


def convolution(x, kernel, stride=1):
    padding = ((kernel.shape[0] // 2,) * 2,) * 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def relu(x):
    return np.maximum(np.asarray(x), np.float32(0))


def closed_form(scheme, block, stages, width, classes, stem):
    """Parameters: kernels, and what the scheme adds per convolution, per block and at the ends."""
    expansion = 4 if block == "bottleneck" else 1
    inside, projections, channels = [], [], width
    for stage, blocks in enumerate(stages):
        planes = width * 2**stage
        for number in range(blocks):
            basic = [(3, channels, planes), (3, planes, planes)]
            bottleneck = [(1, channels, planes), (3, planes, planes), (1, planes, 4 * planes)]
            inside += bottleneck if block == "bottleneck" else basic
            if number == 0 and (stage > 0 or channels != expansion * planes):
                projections.append((1, channels, expansion * planes))
            channels = expansion * planes
    first = (7 if stem == "imagenet" else 3, 3, width)
    if stem == "cifar" and scheme in ("fixup", "rezero"):
        projections = []
    total = (
        sum(k * k * i * o for k, i, o in [first, *inside, *projections])
        + channels * classes
        + classes
    )
    body = sum(out for _, _, out in inside + projections)
    depth, per_block = sum(stages), 5 if block == "basic" else 7
    norms = 2 * (width + body)  # or gain and bias
    return (
        total
        + {
            "fixup": 2 + per_block * depth,
            "skipinit": body + depth,
            "rezero": norms + depth,
            "nf": norms,
        }[scheme]
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_parameter_counts_have_a_closed_form(scheme, stem):
    stages, block = (cifar_stages(20), "basic") if stem == "cifar" else ((3, 4, 6, 3), "bottleneck")
    shape = {"stages": stages, "block": block, "width": 16, "num_classes": 10, "stem": stem}
    model = cifar(scheme, **(shape if stem == "cifar" else shape | {"shortcut": "B"}))
    tree = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) == closed_form(
        scheme, block, stages, 16, 10, stem
    )


@pytest.mark.parametrize(
    "name", [name for scheme in SCHEMES for name in list_models(f"cifar_{scheme}*")]
)
def test_the_cifar_rows_of_the_table(name):
    """Projections cost 16 * 16 * 16 * 32 and 8 * 8 * 32 * 64 multiply-adds more than padding."""
    scheme, depth = re.fullmatch(r"cifar_([a-z]+)(\d+)", name).groups()
    stages = ((int(depth) - 2) // 6,) * 3
    more = 262_144 if scheme in ("skipinit", "nf") else 0
    assert model_info(name).params == closed_form(scheme, "basic", stages, 16, 10, "cifar")
    assert model_info(name).macs == EXACT[f"cifar_resnet{depth}"][1] + more


def test_the_imagenet_row_of_fixup():
    assert list_models("fixup_*") == ["fixup_resnet50"]
    info = model_info("fixup_resnet50")
    assert info.params == closed_form("fixup", "bottleneck", (3, 4, 6, 3), 64, 1000, "imagenet")
    assert info.macs == EXACT["resnet50"][1]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_at_the_start_the_stages_are_their_shortcuts(scheme):
    model = cifar(scheme)
    variables, images = variables_of(model), images_of()
    features = features_of(model, variables, images)
    np.testing.assert_array_equal(features["stage1"], features["stem"])
    x, p = features["stage1"], variables["params"]["stage2_block1"]
    if scheme == "skipinit":
        x = convolution(relu(x), p["shortcut_conv"]["kernel"], 2)
    elif scheme == "nf":
        kernel = standardize(p["shortcut_conv"]["kernel"], p["shortcut_conv"]["gain"], GAMMA_RELU)
        x = convolution(relu(x) / np.float32(math.sqrt(1 + 2 * 0.2**2)), kernel, 2)
    else:
        x = shortcut_a(x, 8, 2)
    np.testing.assert_allclose(features["stage2"], x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheme", ["fixup", "skipinit", "rezero"])
def test_depths_20_and_110_begin_as_one_function(scheme):
    """The deeper one has the shallow one's ends, and its blocks over and over."""
    shallow, deep = (cifar(scheme, cifar_stages(depth), scan=True) for depth in (20, 110))
    start = variables_of(shallow)
    start["params"]["head"] = noisy(start["params"]["head"])
    shapes = jax.eval_shape(deep.init, jax.random.key(0), images_of())
    longer = jax.tree.map(lambda leaf, shape: np.resize(leaf, shape.shape), start, shapes)
    outputs = [
        features_of(model, variables, images_of())
        for model, variables in ((shallow, start), (deep, longer))
    ]
    for name in ("stage1", "stage2", "stage3", "logits"):
        np.testing.assert_allclose(outputs[0][name], outputs[1][name], rtol=1e-6, atol=1e-6)
    assert np.ptp(outputs[0]["logits"]) > 0


@pytest.mark.parametrize(("block", "depth"), [("basic", 2), ("bottleneck", 3)])
def test_fixup_scales_the_first_convolutions(block, depth):
    """L^(-1/2) for two convolutions per branch, L^(-1/4) for three, relative to one block, where L
    = 1.
    """
    alone, one_of_five = (
        flatten_dict(
            variables_of(cifar("fixup", stages, block=block, shortcut="B"))["params"][
                "stage1_block1"
            ]
        )
        for stages in ((1,), (2, 3))
    )
    for number in range(1, depth):
        path = (f"conv{number}", "kernel")
        np.testing.assert_allclose(
            one_of_five[path], alone[path] * 5 ** (-1 / (2 * depth - 2)), rtol=1e-5
        )
    assert not one_of_five[(f"conv{depth}", "kernel")].any()
    assert one_of_five[("scale",)] == 1
    if block == "bottleneck":
        np.testing.assert_array_equal(
            one_of_five[("shortcut_conv", "kernel")], alone[("shortcut_conv", "kernel")]
        )
    wide = variables_of(cifar("fixup", (1,), width=64))["params"]["stage1_block1"]["conv1"][
        "kernel"
    ]
    np.testing.assert_allclose(np.std(wide), math.sqrt(2 / (9 * 64)), rtol=0.02)


@pytest.mark.parametrize("scheme", ["fixup", "skipinit", "rezero"])
def test_forward_pass_equals_one_written_without_flax(scheme):
    model = cifar(scheme, (1, 2), shortcut="B", **({"norm": "none"} if scheme == "rezero" else {}))
    variables, images = noisy(variables_of(model)), images_of()
    p = jax.tree.map(np.asarray, variables["params"])

    def conv(x, p, stride=1):
        return np.asarray(convolution(x, p["kernel"], stride)) + p.get("bias", np.float32(0))

    def around(x, source, b, stride):
        return conv(source, b["shortcut_conv"], stride) if "shortcut_conv" in b else x

    def fixup(x, b, stride):
        y = relu(conv(x + b["bias1a"], b["conv1"], stride) + b["bias1b"])
        y = conv(y + b["bias2a"], b["conv2"]) * b["scale"] + b["bias2b"]
        return relu(y + around(x, x + b["bias1a"], b, stride))

    def skipinit(x, b, stride):
        y = conv(relu(conv(relu(x), b["conv1"], stride)), b["conv2"])
        return b["alpha"] * y + around(x, relu(x), b, stride)

    def rezero(x, b, stride):
        y = relu(conv(relu(conv(x, b["conv1"], stride)), b["conv2"]))
        return b["alpha"] * y + around(x, x, b, stride)

    x = conv(images, p["stem_conv"])
    x = x if scheme == "skipinit" else relu(x + p.get("stem_bias", np.float32(0)))
    block = {"fixup": fixup, "skipinit": skipinit, "rezero": rezero}[scheme]
    for name, stride in (("stage1_block1", 1), ("stage2_block1", 2), ("stage2_block2", 1)):
        x = block(x, p[name], stride)
    x = (relu(x) if scheme == "skipinit" else x).mean((1, 2)) + p.get("head_bias", np.float32(0))
    expected = x @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(run(model, variables, images)[0], expected, rtol=1e-4, atol=1e-5)


def test_standardised_kernels_have_zero_mean_and_the_stated_variance():
    rng = np.random.default_rng(0)
    kernel = (0.1 + 0.1 * rng.normal(size=(3, 3, 8, 6))).astype(np.float32)
    gain = rng.uniform(1, 2, 6).astype(np.float32)
    standard = np.asarray(standardize(kernel, gain, GAMMA_RELU), np.float64)
    np.testing.assert_allclose(standard.mean((0, 1, 2)), 0, atol=1e-6)
    own = np.var(kernel.astype(np.float64), (0, 1, 2))
    expected = (gain * GAMMA_RELU) ** 2 / 72 * own / (own + 1e-5)
    np.testing.assert_allclose(standard.var((0, 1, 2)), expected, rtol=1e-4)


def test_gamma_makes_the_variance_after_a_relu_one():
    """Var relu(z) = (1 - 1 / pi) / 2; the released constant is 0.06 % above the exact one."""
    assert math.isclose(GAMMA_RELU**2 * (1 - 1 / math.pi) / 2, 1, rel_tol=2e-3)


def test_expected_variances():
    assert np.allclose(
        np.concatenate(expected_variances((3, 2, 1), 0.2)), [1, 1.04, 1.08, 1.12, 1.04, 1.08]
    )


@pytest.mark.parametrize(("block", "alpha"), [("basic", 1.0), ("bottleneck", 0.2)])
def test_nf_signals_follow_the_mean_field_prediction(block, alpha):
    """Variance 1 + n alpha^2 after n blocks of a stage, less what zero padding takes.

    Channel means near 0; Gaussian images.

    On 16 pixels padding takes 1 - (46 / 48)^2 = 8 % of what a 3x3 sees, on 8 pixels 16 %: so up to
    15 % less with one 3x3 in a branch (bottleneck), 30 % with two (basic). With alpha = 1 and beta
    left out, the variance would double in each block, to 8.
    """
    model = cifar("nf", (3, 3), width=32, block=block, alpha=alpha, zero_init=False)
    features = features_of(model, variables_of(model), images_of(8, 16))
    expected, low = 1 + 3 * alpha**2, {"basic": 0.7, "bottleneck": 0.85}[block]
    for name, lowest, highest in (
        ("stem", 0.89, 0.95),
        ("stage1", low * expected, expected),
        ("stage2", low * expected, expected),
    ):
        x = np.asarray(features[name])
        variance, square_mean = (
            np.mean(np.var(x, (0, 1, 2))),
            np.mean(np.square(np.mean(x, (0, 1, 2)))),
        )
        assert lowest < variance < highest
        assert square_mean < 0.03 * variance


def zero_at_the_start(scheme, path):
    """Zero gradients at step 0 although the head is not zero.

    Behind a zero scalar, kernel or gain.
    """
    if not path[0].startswith("stage") or "shortcut_conv" in path:
        return False
    if scheme == "fixup":
        opens_a_stage = path[0] == "stage2_block1"  # its bias1a also shifts the shortcut
        return path[1] in ("conv1", "bias1b", "bias2a", "scale") or (
            path[1] == "bias1a" and not opens_a_stage
        )
    if scheme == "nf":
        return path[1] == "conv1" or path[1:] == ("conv2", "kernel")
    return path[1] != "alpha"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_at_step_0_and_after(scheme):
    model, images = cifar(scheme), images_of(4)
    variables = variables_of(model)
    if scheme in ("fixup", "skipinit"):  # a zero classifier: at step 0 it alone has gradients
        start = flatten_dict(gradients(model, variables, images))
        assert {path[0] for path, gradient in start.items() if np.any(gradient != 0)} == {"head"}
        variables["params"]["head"] = noisy(variables["params"]["head"])
    for path, gradient in flatten_dict(gradients(model, variables, images)).items():
        assert np.all(np.isfinite(gradient))
        assert bool(np.any(gradient != 0)) != zero_at_the_start(scheme, path), path
    later = variables | {"params": noisy(variables["params"])}
    for path, gradient in flatten_dict(gradients(model, later, images)).items():
        assert np.all(np.isfinite(gradient))
        assert np.any(gradient != 0), path


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scanned_jitted_and_bfloat16_twins(scheme):
    model, images = cifar(scheme, (2, 1)), images_of()
    variables = variables_of(model)
    variables = variables | {"params": noisy(variables["params"])}
    logits = model.apply(variables, images)  # op by op
    np.testing.assert_allclose(run(model, variables, images)[0], logits, rtol=1e-4, atol=1e-5)
    scanned = run(cifar(scheme, (2, 1), scan=True), stack_blocks(variables), images)[0]
    np.testing.assert_allclose(scanned, logits, rtol=1e-4, atol=1e-5)
    half = variables | {
        "params": jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), variables["params"])
    }
    rough = run(cifar(scheme, (2, 1), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16), half, images)[
        0
    ]
    assert rough.dtype == logits.dtype == jnp.float32
    np.testing.assert_allclose(rough, logits, atol=0.02 * float(np.max(np.abs(logits))))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_imagenet_stem_takes_any_size(scheme):
    shortcut = {"shortcut": "D" if scheme == "nf" else "B"}
    model = cifar(scheme, (1, 1), block="bottleneck", stem="imagenet", **shortcut)
    images = jnp.ones((2, 19, 30, 3))
    logits, state = jax.eval_shape(
        lambda: model.apply(model.init(jax.random.key(0), images), images, mutable=["features"])
    )
    assert {name: leaf.shape[1:] for name, leaf in state["features"].items()} == {
        "stem": (5, 8, 4),
        "stage1": (5, 8, 16),
        "stage2": (3, 4, 32),
        "pooled": (32,),
    }
    assert logits.shape == (2, 5)


def test_a_constant_or_a_factor_on_the_kernel_changes_nothing():
    """Adding a constant to a kernel, or scaling it, changes the output only as epsilon allows."""
    conv, x = ScaledStdConv(6), images_of()
    params = variables_of(conv)["params"]
    other = params | {"kernel": np.float32(2) * params["kernel"] + np.float32(0.5)}
    np.testing.assert_allclose(
        *(run(conv, {"params": each}, x)[0] for each in (params, other)), rtol=1e-3, atol=1e-3
    )


def test_choices_that_are_not_allowed_are_refused():
    for field, value in (
        ("scheme", "batch"),
        ("stem", "deep"),
        ("block", "wide"),
        ("shortcut", "C"),
        ("norm", "batch"),
    ):
        with pytest.raises(InputError, match=f"{field} is '{value}'"):
            jax.eval_shape(
                NormFreeResNet(**({"stages": (1, 1)} | {field: value})).init,
                jax.random.key(0),
                images_of(),
            )


def test_names_of_timm_are_distinct_and_complete():
    tree = jax.eval_shape(NFResNet(width=8).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))[
        "params"
    ]
    names = {nf_resnet_names("/".join(path[:-1])) for path in flatten_dict(tree)}
    expected = {
        f"stages.{s}.{b}.conv{i}"
        for s, blocks in enumerate((3, 4, 6, 3))
        for b in range(blocks)
        for i in (1, 2, 3)
    }
    assert names == expected | {f"stages.{s}.0.downsample.conv" for s in range(4)} | {
        "stem.conv",
        "head.fc",
    }
    with pytest.raises(ValueError, match="stage1_blocks/conv1"):
        nf_resnet_names("stage1_blocks/conv1")
