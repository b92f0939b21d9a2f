"""What a step compiles to: the convolutions of the table, the right precision, and no copies."""

import collections

import jax
import jax.numpy as jnp
import pytest

from deepjax.data import Dataset
from deepjax.models import create_model
from deepjax.training.build import step_options
from deepjax.training.config import train_config
from deepjax.training.step.optimizers import make_optimizer, make_schedule
from deepjax.training.step.state import init_state
from deepjax.training.step.step import make_train_step

IMAGENET = Dataset(
    "imagenet2012", (224, 224, 3), 1000, 1_281_167, 50_000, (0.0,) * 3, (1.0,) * 3, True, 0, ""
)
BATCH = 2


def traced(name, precision):
    config = train_config(
        name,
        "imagenet2012",
        batch_size=BATCH,
        precision=precision,
        augment=False,
        auxiliary_weight=0.0,
    )
    optimizer = make_optimizer(config)
    model = create_model(name, dtype=jnp.dtype(precision))
    state = jax.eval_shape(lambda: init_state(model, optimizer, IMAGENET.shape, 0.1, 0))
    step = make_train_step(model, optimizer, make_schedule(config), IMAGENET, step_options(config))
    batch = {
        "image": jax.ShapeDtypeStruct((BATCH, *IMAGENET.shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
    }
    return jax.jit(step, donate_argnums=0).trace(state, batch)


def equations(jaxpr):
    """Those of a computation and of what it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns")
        ):
            if hasattr(inner, "eqns"):
                yield from equations(inner)


# Of each layer: forward, the kernel's gradient, and the input's gradient (not of the first layer).
# On a CPU 1x1 convolutions are matrix products.
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet50", 54),
        ("resnet18", 21),
        ("vgg16_bn", 16),
        ("googlenet_tv", 58),
        ("cifar_resnet20", 20),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_each_layer_once_forward_and_twice_backward_in_its_precision(name, layers, precision):
    products = [
        equation
        for equation in equations(traced(name, precision).jaxpr)
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
        and equation.outvars[0].aval.ndim > 1  # a product of two vectors is the guard's
    ]
    assert len(products) == 3 * layers - 1
    types = [
        {variable.aval.dtype.name for variable in (*product.invars, *product.outvars)}
        for product in products
    ]
    others = [kinds for kinds in types if kinds != {precision}]
    assert others == ([{"float32"}] * 3 if precision == "bfloat16" else []), (
        "the classifier alone is float32, and its gradients"
    )


@pytest.mark.parametrize(
    "name",
    [
        "vgg16",
        "googlenet",
        "inception_v3",
        "resnet50d",
        "resnetv2_50",
        "nf_resnet50",
        "fixup_resnet50",
        "cifar_skipinit20",
    ],
)
def test_no_sum_is_added_up_in_16_bits(name):
    """Biases and scalars too: in bfloat16 their gradients, sums over maps, would stop growing.

    `layers.broadcast_like` prevents it.
    """
    sums = [
        each
        for each in equations(traced(name, "bfloat16").jaxpr)
        if each.primitive.name in ("reduce_sum", "reduce_window_sum")
    ]
    narrow = [each.invars[0].aval for each in sums if each.invars[0].aval.dtype == jnp.bfloat16]
    assert sums
    # A sum over one number adds nothing up.
    assert [aval.shape for aval in narrow if aval.shape[1:3] != (1, 1)] == []


def test_no_array_of_the_state_is_there_twice():
    lowered = traced("resnet18", "float32").lower()
    arrays = len(jax.tree.leaves(lowered.args_info[0][0]))
    assert lowered.as_text().count("tf.aliasing_output") == arrays


@pytest.mark.parametrize(("name", "gigaflops"), [("resnet50", 24.30), ("vgg16_bn", 92.65)])
def test_as_many_operations_an_image_as_the_table_says(name, gigaflops):
    # 3 x 2 x the multiply-adds of convolutions and linear layers, less the gradient of the images.
    # All else is below 2 %.
    flops = traced(name, "float32").lower().cost_analysis()["flops"] / BATCH
    assert flops / 1e9 == pytest.approx(gigaflops, rel=0.02)


def test_on_a_gpu_every_layer_is_a_convolution_and_no_map_is_transposed_scattered_or_dilated(
    monkeypatch,
):
    # The backend decides whether convolutions become matrix products, as on a CPU.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = list(equations(traced("resnet50", "bfloat16").jaxpr))
    # 53 three times, less the gradient of the images.
    assert sum(each.primitive.name == "conv_general_dilated" for each in found) == 158
    of_maps = collections.Counter(
        each.primitive.name for each in found if each.outvars and each.outvars[0].aval.ndim == 4
    )
    assert of_maps["transpose"] == of_maps["scatter-add"] == of_maps["select_and_scatter_add"] == 0
    pads = [each for each in found if each.primitive.name == "pad"]
    assert not any(within for pad in pads for *_, within in pad.params["padding_config"]), (
        "nor the gradient of the max pool"
    )
    assert sum(pad.invars[0].aval.shape[-1] in (3, 4) for pad in pads) == 1, (
        "of the images alone, not before convolutions of maps"
    )
    stems = [each.invars[0] for each in found if each.primitive.name == "conv_general_dilated"]
    assert sum(x.aval.shape[-1] == 16 for x in stems) == 2, (
        "of the images in 2x2 blocks of 4 channels, and its gradient"
    )
