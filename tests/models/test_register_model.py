"""A network of the user's own under a name: created, configured and refused like any other."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

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


def test_what_makes_no_linen_module_is_refused():
    with pytest.raises(InputError, match=r"build is .*; allowed: a class or function of a linen"):
        register_model("small", dict)
