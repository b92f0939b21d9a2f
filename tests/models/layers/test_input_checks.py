"""Input checks of networks: images of another layout, dtype or channels, and invalid dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax import create_model, list_models, model_info
from deepjax.errors import InputError
from deepjax.models.layers.input_checks import as_images
from deepjax.models.stochastic_depth import stochastic_depth

THIN = {
    "cifar_resnet20": 4,
    "vgg11": 4,
    "googlenet": 4,
    "inception_v3": 4,
    "resnetv2_18": 4,
    "nf_resnet50": 4,
    "cifar_fixup20": 4,
}


def shapes_of(name, shape, dtype=jnp.float32, **fields):
    model = create_model(name, width=THIN[name], **fields)
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, dtype))


@pytest.mark.parametrize("name", THIN)
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (3, 96, 96),
            r"images are \(3, 96, 96\); allowed: 4 axes, .*; one image needs .* images\[None\]",
        ),
        ((96, 96), r"images are \(96, 96\); allowed: 4 axes"),
        (
            (8, 3, 96, 96),
            r"images are \(8, 3, 96, 96\), which looks like \(batch, channels, .*\(0, 2, 3, 1\)",
        ),
        ((8, 1, 96, 96), "which looks like"),
        ((8, 4, 96, 96), "which looks like"),
        ((8, 3, 96, 128), "which looks like"),
    ],
)
def test_other_layouts_are_refused_at_initialisation(name, shape, message):
    with pytest.raises(InputError, match=message):
        shapes_of(name, shape)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13, 32, 200])
def test_images_have_any_number_of_channels(channels):
    kernel = shapes_of("cifar_resnet20", (2, 32, 40, channels))["params"]["stem_conv"]["kernel"]
    assert kernel.shape == (3, 3, channels, 4)


@pytest.mark.parametrize(
    "shape", [(2, 3, 3, 3), (2, 4, 4, 4), (2, 1, 64, 5), (2, 2, 9, 9), (1, 8, 8, 8)]
)
def test_small_maps_are_images(shape):
    assert as_images(np.zeros(shape, np.float32), jnp.float32).shape == shape


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool", "complex64"])
def test_pixels_are_no_input(dtype):
    with pytest.raises(InputError, match=f"images are {dtype}; allowed: floats, normalised"):
        as_images(np.zeros((2, 8, 8, 3), dtype), jnp.float32)


@pytest.mark.parametrize("name", ["cifar_resnet20", "nf_resnet50"])
def test_other_channels_than_those_of_the_variables_are_named(name):
    model = create_model(name, width=4)
    variables = shapes_of(name, (1, 32, 32, 3))
    with pytest.raises(
        InputError, match=r"stem_conv is given \(2, 32, 32, 1\), its weights are for 3 channels"
    ):
        jax.eval_shape(model.apply, variables, jnp.zeros((2, 32, 32, 1)))


@pytest.mark.parametrize("given", [0, "5", 7.0, True, None])
def test_a_number_of_classes_is_an_integer(given):
    with pytest.raises(InputError, match=r"num_classes is .*; allowed: an integer, 1 or more"):
        create_model("resnet18", num_classes=given)


def test_numpy_integers_are_sizes():
    assert shapes_of("cifar_resnet20", (1, 8, 8, 3), num_classes=np.int64(7))["params"]["head"][
        "bias"
    ].shape == (7,)


@pytest.mark.parametrize("field", ["dtype", "param_dtype"])
def test_types_that_cannot_be_are_refused(field):
    with pytest.raises(
        InputError,
        match=f"{field} is float64, of which JAX would make float32; set JAX_ENABLE_X64=1",
    ):
        create_model("cifar_resnet20", **{field: jnp.float64})
    with pytest.raises(InputError, match=f"{field} is 'int32'; allowed: a floating type"):
        create_model("cifar_resnet20", **{field: "int32"})


@pytest.mark.parametrize("name", ["cifar_plain20", "vgg11"])
def test_stochastic_depth_needs_residual_sums(name):
    model = stochastic_depth(name, width=4)
    with pytest.raises(InputError, match=r"network is a \w+ without residual sums"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def equations(jaxpr):
    """All equations, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from equations(getattr(inner, "jaxpr", inner))


# A network of each kind of layer.
SHALLOW = {"stages": (1, 1)}
KINDS = [
    ("vgg11_lrn", True, {}),
    ("googlenet_tv", True, {}),
    ("inception_v3", True, {}),
    ("resnet18d", True, SHALLOW),
    ("resnet18d", False, SHALLOW),
    ("resnet50_gn", True, SHALLOW),
    ("resnetv2_18", True, SHALLOW),
    ("nf_resnet50", True, SHALLOW),
    ("cifar_fixup20", True, SHALLOW),
]


@pytest.mark.parametrize(("name", "train", "fields"), KINDS)
def test_a_float64_network_has_no_float32_inside(name, train, fields):
    """Statistics, pools, standardised kernels and heads.

    In every equation of the traced program.
    """
    with jax.enable_x64(True):
        model = create_model(
            name, width=4, num_classes=3, dtype="float64", param_dtype="float64", **fields
        )
        images = jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float64)
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float64")}

        def apply(variables, images):
            rngs = {"dropout": jax.random.key(0)}
            return model.apply(
                variables, images, train=train, mutable=["batch_stats", "auxiliary"], rngs=rngs
            )

        program, (logits, _) = jax.make_jaxpr(apply, return_shape=True)(variables, images)
        assert logits.dtype == jnp.float64
        types = [
            getattr(of.aval, "dtype", None)
            for each in equations(program.jaxpr)
            for of in each.outvars
        ]
        assert types.count(jnp.float64) > 10 and jnp.float32 not in types


def test_every_network_checks_its_images():
    """By abstract evaluation, which fails before a layer is traced."""
    for name in list_models():
        height, width, channels = model_info(name).input_shape
        with pytest.raises(InputError, match="which looks like"):
            jax.eval_shape(
                create_model(name).init, jax.random.key(0), jnp.zeros((2, channels, height, width))
            )
