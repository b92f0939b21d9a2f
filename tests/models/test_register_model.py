"""A network of the user's own under a name: created, configured and refused like any other."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

from deepjax.analysis import count_params
from deepjax.errors import InputError
from deepjax.models import create_model, list_models, model_info, register_model, registry
from deepjax.training import train_config
from deepjax.training.network import model_from


class Small(nn.Module):
    """One convolution."""

    num_classes: int = 10
    width: int = 8
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.relu(nn.Conv(self.width, (3, 3), dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, dtype=jnp.float32)(x.mean((1, 2)))


@pytest.fixture(autouse=True)
def _forgets(monkeypatch):
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))


def test_it_is_a_network_like_any_other():
    info = register_model("small", Small, input_shape=(16, 16, 3))
    assert "small" in list_models() and model_info("small") == info
    assert info.params == count_params(Small(), (16, 16, 3)) == 27 * 8 + 8 + 8 * 10 + 10
    assert create_model("small", width=4) == Small(width=4)
    config = train_config("small", "digits", model_args=("width=2",))
    assert model_from(config) == Small(10, 2, jnp.dtype("float32"))
    with pytest.raises(InputError, match="field of small 'widht' is unknown"):
        create_model("small", widht=4)


class Float32(nn.Module):
    """Without a field `dtype`."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


def test_a_network_without_dtype_is_of_float32():
    register_model("float32", Float32, input_shape=(16, 16, 3))
    assert model_from(train_config("float32", "digits")) == Float32(10)
    with pytest.raises(InputError, match="precision is 'bfloat16'; allowed: float32 for float32"):
        model_from(train_config("float32", "digits", precision="bfloat16"))


def test_a_name_has_one_network():
    register_model("small", Small, input_shape=(16, 16, 3))
    register_model("small", Small, input_shape=(16, 16, 3))
    for taken in ("small", "resnet50"):
        with pytest.raises(InputError, match=f"model '{taken}' is another network already"):
            register_model(taken, functools.partial(Small, width=4))


class SmallNnx(nnx.Module):
    """The same of NNX, without a default for the classes."""

    def __init__(self, num_classes, width=8, *, rngs):
        self.conv = nnx.Conv(3, width, (3, 3), rngs=rngs)
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.conv(x)).mean((1, 2)))


def test_a_class_of_nnx_is_registered_too():
    info = register_model("nnx", SmallNnx, input_shape=(16, 16, 3))
    assert info == register_model("nnx", SmallNnx, input_shape=(16, 16, 3))
    assert info.params == 27 * 8 + 8 + 8 * 1000 + 1000  # of ImageNet's classes, as others
    model = model_from(train_config("nnx", "digits", model_args=("width=2",)))
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert variables["params"]["network"]["head"]["kernel"].shape == (2, 10)
    with pytest.raises(InputError, match="field of nnx 'widht' is unknown; did you mean 'width'"):
        create_model("nnx", widht=4)
    with pytest.raises(InputError, match="precision is 'bfloat16'; allowed: float32 for nnx"):
        model_from(train_config("nnx", "digits", precision="bfloat16"))


class WithoutTrain(Float32):
    """It has no switch of modes."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


def needs_depth(num_classes=10, *, depth):
    return Small(num_classes, depth)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (dict, "build is .*; allowed: a class or function of a linen"),
        (Small(), "build is .*; allowed: a class or function of a linen"),
        (lambda: None, "build is .*; allowed: a class or function of a linen"),
        (needs_depth, "field 'depth' of other is not given and has no default"),
        (WithoutTrain, r"other cannot be called with images of \(16, 16, 3\) and train=False"),
    ],
)
def test_what_makes_no_network_is_refused_in_a_line(build, message):
    with pytest.raises(InputError, match=message) as error:
        register_model("other", build, input_shape=(16, 16, 3))
    assert "\n" not in str(error.value)
    assert "other" not in list_models()
