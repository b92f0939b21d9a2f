"""What all instruments share: modes, layers, keys, batches, retired arguments, results."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import deepjax.analysis as instruments
from deepjax.analysis import EVAL, TRAIN, Ghost, Network, Result, from_nnx, trace
from deepjax.analysis.core.content import content_key
from deepjax.analysis.core.layers import matching_layers
from deepjax.analysis.network.batch import mean_over_batches, stack
from deepjax.analysis.network.module import as_key
from deepjax.errors import InputError

X = jnp.arange(24.0).reshape(6, 4)
Y = jnp.arange(6)
ORDER = ("model", "variables", "batch", "loss", "mode", "layers", "key", "chunk", "progress")
FUNCTIONS = [
    getattr(instruments, name)
    for name in instruments.__all__
    if inspect.isfunction(getattr(instruments, name))
]
INSTRUMENTS = [
    each for each in FUNCTIONS if {"mode", "model"} <= set(inspect.signature(each).parameters)
]


@pytest.mark.parametrize("function", INSTRUMENTS, ids=lambda function: function.__name__)
def test_one_signature(function):
    """The common parameters in one order, before an instrument's own; no retired ones."""
    parameters = inspect.signature(function).parameters
    named = [name for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY]
    common = [name for name in named if name in ORDER]
    assert common == sorted(common, key=ORDER.index)
    required = [name for name in named if parameters[name].default is inspect.Parameter.empty]
    rest = [name for name in named if name not in required]
    own = [name not in ORDER for name in rest]
    assert own == sorted(own), "own parameters come last"
    assert parameters["mode"].default in (EVAL, TRAIN)
    for name in ("train", "bn", "rngs", "seed"):
        assert name not in parameters
        with pytest.raises(InputError, match=rf"{function.__name__} no longer takes {name}=; use"):
            function(**{name: None})
    with pytest.raises(InputError, match=r"9 positional arguments; allowed: model,.* mode"):
        function(*range(9))


def test_a_retired_name_is_explained_only_where_it_has_a_replacement():
    with pytest.raises(InputError, match="cost no longer takes batch=; use examples="):
        instruments.cost(None, batch=None)
    with pytest.raises(TypeError, match="unexpected keyword argument 'batch'"):
        instruments.linearised(None, None, batch=None)


RESULTS = [
    each
    for each in map(instruments.__dict__.get, instruments.__all__)
    if inspect.isclass(each) and issubclass(each, Result) and each is not Result
]


@pytest.mark.parametrize("kind", RESULTS, ids=lambda kind: kind.__name__)
def test_every_result_is_one(kind):
    assert list(inspect.signature(kind.plot).parameters)[:3] == ["self", "ax", "title"]
    assert kind.__repr__ is not dataclasses.make_dataclass("Plain", []).__repr__
    assert "__eq__" not in vars(kind) or kind.__eq__ is object.__eq__ or kind.__hash__ is not None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Example(Result):
    count: int

    def summary(self):
        return {"loss": 0.123456, "rows": self.count, "bad": float("nan")}

    def rows(self):
        return [
            {"layer": f"<{i}>", "norm": i / 3, "shape": (2, i), "nothing": None, "n": 12345}
            for i in range(self.count)
        ]

    def plot(self, ax=None, title=None):
        raise NotImplementedError


def test_the_text_and_html_of_a_result():
    assert repr(Example(0)) == "Example: loss 0.1235, rows 0, bad nan"
    lines = repr(Example(3)).splitlines()
    assert lines[1].split() == ["layer", "norm", "shape", "n"]
    assert lines[3].split() == ["<1>", "0.3333", "2x1", "12,345"]
    assert len(repr(Example(1000)).splitlines()) == 27 and "..." in repr(Example(1000))
    html = Example(3)._repr_html_()
    assert "<td>&lt;1&gt;</td>" in html and html.count("<tr>") == 4


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        (None, {"a", "a/b", "a/c", "stage1_x/conv"}),
        ("a", {"a"}),
        (["a", "a/c"], {"a", "a/c"}),
        ("a/*", {"a/b", "a/c"}),
        ("*/conv", {"stage1_x/conv"}),
        ("**", {"a", "a/b", "a/c", "stage1_x/conv"}),
        ("stage?_x/c*", {"stage1_x/conv"}),
    ],
)
def test_layers_by_path_and_pattern(layers, found):
    assert matching_layers(layers, ["a", "a/b", "a/c", "stage1_x/conv"]) == found


@pytest.mark.parametrize(
    ("layers", "message"),
    [("b", "layer 'b' is unknown; did you mean"), ((), "layers is"), ("x/*", "'x/\\*' is unknown")],
)
def test_layers_that_select_nothing(layers, message):
    with pytest.raises(InputError, match=message):
        matching_layers(layers, ["a", "a/b"])


def test_modes():
    assert [repr(mode) for mode in (EVAL, TRAIN, Ghost(4))] == ["EVAL", "TRAIN", "Ghost(4)"]
    assert Ghost(4) == Ghost(4) and hash(Ghost(4)) != hash(Ghost(2))
    for wrong in (0, True, "4"):
        with pytest.raises(InputError, match="Ghost has"):
            Ghost(wrong)


def test_ghost_batches_and_several_batches():
    whole = stack((X, Y), Ghost(2))
    assert (whole.batches, whole.examples) == (3, 6)
    several = stack([(X, Y), (X + 1, Y)], Ghost(3))
    assert (several.batches, several.examples) == (4, 12)
    np.testing.assert_array_equal(several.stacked[0][2], X[:3] + 1)
    with pytest.raises(
        InputError, match=r"mode is 'Ghost\(4\)'; allowed: .* divides the batch of 6"
    ):
        stack((X, Y), Ghost(4))
    with pytest.raises(InputError, match="batches of one size"):
        stack([(X, Y), (X[:2], Y[:2])], EVAL)


def test_the_mean_over_batches_has_a_key_for_each():
    def sample(key, batch):
        return {"sum": batch[0].sum(), "random": jax.random.normal(key)}

    key = jax.random.key(3)
    one = mean_over_batches(sample, stack((X, Y), EVAL).stacked, key)
    assert one["random"] == jax.random.normal(key) and one["sum"] == X.sum()
    two = mean_over_batches(sample, stack([(X, Y), (X + 1, Y)], EVAL).stacked, key)
    keys = [jax.random.fold_in(key, index) for index in range(2)]
    np.testing.assert_allclose(
        two["random"], np.mean([jax.random.normal(k) for k in keys]), rtol=1e-6
    )
    np.testing.assert_allclose(two["sum"], X.sum() + 12)


def test_keys():
    assert as_key(None) == jax.random.key(0)
    assert as_key(jax.random.PRNGKey(1)).dtype == jnp.uint32
    with pytest.raises(InputError, match=r"key is 3; allowed: .* such as jax.random.key\(3\)"):
        as_key(3)


class Configured(nn.Module):
    """Fields that cannot be hashed."""

    config: dict
    table: np.ndarray
    sizes: list

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.config["units"])(x * self.table[None]) + float(sum(self.sizes))


def test_fields_that_cannot_be_hashed_are_compared_by_content():
    def module(units=6, shift=0.0):
        return Configured({"units": units}, np.ones(4, np.float32) + shift, [1, 2])

    assert Network(module()) == Network(module()) and hash(Network(module()))
    assert Network(module()) != Network(module(shift=1.0))
    assert Network(module()) != Network(module(units=7))
    model = module()
    variables = model.init(jax.random.key(0), X)
    first = trace(model, variables, (X, Y)).loss
    model.table[:] = 2.0  # in place: another program
    assert trace(model, variables, (X, Y)).loss != first


def test_the_content_of_a_config():
    """Such as ml_collections.ConfigDict: no mapping, but items."""

    class Config:
        __hash__ = None

        def __init__(self, **fields):
            self.fields = fields

        def items(self):
            return self.fields.items()

    assert content_key(Config(a=1, b=[2])) == content_key(Config(a=1, b=[2]))
    assert content_key(Config(a=1)) != content_key(Config(a=2))
    assert content_key({"a": {1, 2}}) == content_key({"a": {2, 1}})


class Settings:
    """A config that is hashed by identity."""

    def __init__(self, scale):
        self.scale = scale


class ScaledInLinen(nn.Module):
    settings: Settings

    @nn.compact
    def __call__(self, x):
        return self.settings.scale * nn.Dense(3)(x)


class ScaledInNnx(nnx.Module):
    def __init__(self, settings):
        self.settings = settings
        self.dense = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.settings.scale * self.dense(x)


def squared_outputs(outputs, batch):
    return jnp.sum(jnp.square(outputs))


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_a_config_that_is_changed_in_place_is_another_network(kind):
    settings, x = Settings(1.0), jnp.ones((2, 4))

    def measured():
        if kind == "nnx":
            network, variables = from_nnx(ScaledInNnx(settings))
        else:
            network = ScaledInLinen(settings)
            variables = network.init(jax.random.key(0), x)
        batch = (x, jnp.zeros(2, int))
        return trace(network, variables, batch, mode=EVAL, loss=squared_outputs).loss

    first = measured()
    settings.scale = 10.0
    np.testing.assert_allclose(measured(), 100 * first, rtol=1e-5)
