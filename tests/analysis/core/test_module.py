"""How any network is called: modes, streams, axes, collections, outputs, labels. Expected: `apply` and `jax.grad` by hand."""

import dataclasses
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deepjax.analysis import (
    Network,
    cost,
    count_macs,
    count_params,
    cross_entropy,
    first_nonfinite_layer,
    gradient_line,
    gradient_subspace_overlap,
    hessian_trace,
    hvp,
    init_variables,
    kernel_drift,
    kernel_order,
    lesions,
    linear_interpolation,
    linearised,
    linearised_training,
    loss_contributions,
    loss_line,
    loss_plane,
    noise_scale,
    ntk,
    path_gradient,
    path_lengths,
    per_example_gradients,
    random_direction,
    shattering,
    signal_propagation,
    spectral_density,
    taps,
    top_eigenvalues,
    trace,
)
from deepjax.analysis.core.module import initialise, loss_of, mode_text, run
from deepjax.errors import InputError

EXAMPLES, FEATURES, CLASSES = 8, 5, 3
X = jax.random.normal(jax.random.key(1), (EXAMPLES, FEATURES))
Y = jnp.arange(EXAMPLES) % CLASSES


def _dropped(x: Any, off: Any) -> Any:
    return nn.Dense(CLASSES)(nn.Dropout(0.5, deterministic=off)(nn.Dense(16)(x)))


class ByArgument(nn.Module):
    @nn.compact
    def __call__(self, x, *, is_training=True):
        return _dropped(x, not is_training)


class ByFlag(nn.Module):
    @nn.compact
    def __call__(self, x, enable_dropout=True):
        return _dropped(x, not enable_dropout)


class ByField(nn.Module):
    training: bool = True

    @nn.compact
    def __call__(self, x):
        return _dropped(x, not self.training)


class ByOptionalField(nn.Module):
    deterministic: bool | None = False

    @nn.compact
    def __call__(self, x, deterministic: bool | None = None):
        return _dropped(x, nn.merge_param("deterministic", self.deterministic, deterministic))


@dataclasses.dataclass(frozen=True)
class Config:
    classes: int = CLASSES
    deterministic: bool = False


class Settings(NamedTuple):
    train: bool = True


class Plain:
    """A config that is neither a dataclass nor a mapping."""

    def __init__(self, train=True):
        self.train = train


class ByConfig(nn.Module):
    config: Any
    off: Callable[[Any], bool] = lambda config: config.deterministic

    @nn.compact
    def __call__(self, x):
        return _dropped(x, self.off(self.config))


class Wrapper(nn.Module):
    inner: nn.Module

    def __call__(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class Required(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return _dropped(x, not train)


class Unusual(nn.Module):
    """Its switch has a name that nobody can know."""

    @nn.compact
    def __call__(self, x, noisy=True):
        return _dropped(x, not noisy)


class Both(nn.Module):
    """Switches in the call and in a field."""

    deterministic: bool = False

    @nn.compact
    def __call__(self, x, train=True):
        return _dropped(nn.BatchNorm(use_running_average=not train)(x), self.deterministic)


def _of_mapping(config: Any) -> bool:
    return not config["dropout"]["training"]


def _of_train(config: Any) -> bool:
    return not config.train


SEQUENCE = nn.Sequential([nn.Dense(16), nn.Dropout(0.5, deterministic=False), nn.Dense(CLASSES)])
SHARED = ByField()
# (network, the module in evaluation, arguments of its call then, what is said)
MODES = [
    (ByArgument(), ByArgument(), {"is_training": False}, "evaluation mode (is_training=False)"),
    (ByFlag(), ByFlag(), {"enable_dropout": False}, "evaluation mode (enable_dropout=False)"),
    (ByField(), ByField(False), {}, "evaluation mode (training=False)"),
    (ByOptionalField(), ByOptionalField(True), {}, "evaluation mode (deterministic=True)"),
    (
        ByOptionalField(None),
        ByOptionalField(None),
        {"deterministic": True},
        "evaluation mode (deterministic=True)",
    ),
    (
        ByConfig(Config()),
        ByConfig(Config(deterministic=True)),
        {},
        "evaluation mode (config.deterministic=True)",
    ),
    (
        ByConfig(Settings(), _of_train),
        ByConfig(Settings(False), _of_train),
        {},
        "evaluation mode (config.train=False)",
    ),
    (
        ByConfig(Plain(), _of_train),
        ByConfig(Plain(False), _of_train),
        {},
        "evaluation mode (config.train=False)",
    ),
    (
        ByConfig({"dropout": {"training": True}}, _of_mapping),
        ByConfig({"dropout": {"training": False}}, _of_mapping),
        {},
        "evaluation mode (config.dropout.training=False)",
    ),
    (
        Wrapper(ByArgument()),
        Wrapper(ByArgument()),
        {"is_training": False},
        "evaluation mode (is_training=False)",
    ),
    (Wrapper(Required()), Wrapper(Required()), {"train": False}, "evaluation mode (train=False)"),
    (Wrapper(ByField()), Wrapper(ByField(False)), {}, "evaluation mode (inner.training=False)"),
    (
        SEQUENCE,
        nn.Sequential([nn.Dense(16), nn.Dropout(0.5, deterministic=True), nn.Dense(CLASSES)]),
        {},
        "evaluation mode (layers.1.deterministic=True)",
    ),
    (
        nn.Sequential([SHARED, nn.relu, SHARED]),
        None,
        {},
        "evaluation mode (layers.0.training=False)",
    ),
    (Both(), Both(True), {"train": False}, "evaluation mode (train=False, deterministic=True)"),
    (
        Network(Unusual(), eval_kwargs={"noisy": False}),
        Unusual(),
        {"noisy": False},
        "evaluation mode (noisy=False)",
    ),
    (nn.Dense(CLASSES), nn.Dense(CLASSES), {}, "no training switch found; called as it is"),
    (
        Unusual(),
        Unusual(),
        {"rngs": {"dropout": jax.random.key(0)}},
        "no training switch found; called as it is; draws from the random stream 'dropout' in evaluation",
    ),
]


def _loss(outputs: Any) -> Any:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(outputs), Y[:, None], axis=1))


def _fresh(model: Any) -> Any:
    inputs = (
        jnp.zeros((1, CLASSES)) if model is MODES[13][0] else X[:1]
    )  # the shared module is applied to its own output
    return initialise(model, inputs)


@pytest.mark.parametrize(
    ("model", "module", "kwargs", "said"),
    MODES,
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_evaluation_is_evaluation_wherever_the_switch_is(model, module, kwargs, said):
    x = X[:, :CLASSES] if module is None else X
    variables = _fresh(model)
    module = (
        nn.Sequential([shared := ByField(False), nn.relu, shared]) if module is None else module
    )

    def by_hand(params: Any) -> Any:
        return _loss(module.apply({**variables, "params": params}, x, **kwargs))

    value, gradient = jax.value_and_grad(by_hand)(variables["params"])
    found = jax.jit(
        jax.value_and_grad(
            lambda params: loss_of(
                model, {**variables, "params": params}, (x, Y), cross_entropy, False
            )
        )
    )
    ours, gradients = found(variables["params"])
    np.testing.assert_allclose(ours, value, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), gradients, gradient)
    assert mode_text(model, variables, (x, Y), False) == said


def test_training_is_training_wherever_the_switch_is():
    kwargs = {"train_kwargs": {"noisy": True}, "eval_kwargs": {"noisy": False}}
    for model in (
        ByField(False),
        ByConfig(Config(deterministic=True)),
        Wrapper(ByFlag()),
        Network(Unusual(), **kwargs),
    ):
        module = getattr(model, "module", model)
        on = {
            Wrapper: Wrapper(ByFlag()),
            ByField: ByField(True),
            ByConfig: ByConfig(Config()),
            Unusual: Unusual(),
        }[type(module)]
        variables = initialise(model, X)
        expected = _loss(on.apply(variables, X, rngs={"dropout": jax.random.key(0)}))
        np.testing.assert_allclose(
            loss_of(model, variables, (X, Y), cross_entropy, True), expected, rtol=1e-6
        )


class Sampled(nn.Module):
    """Draws from two streams in evaluation, adds a residual branch, and sows a head."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(6, name="first")(x)
        x = x + 0.1 * jax.random.normal(self.make_rng("sample"), x.shape)
        x = Sum(name="sum")(x, nn.Dense(6)(nn.Dropout(0.5, deterministic=not train)(nn.tanh(x))))
        x = x * jax.random.uniform(self.make_rng("gate"), x.shape, minval=0.9)
        self.sow("auxiliary", "low", nn.Dense(CLASSES)(x))
        return nn.Dense(CLASSES)(x)


class Sum(nn.Module):
    def __call__(self, shortcut, branch):
        return shortcut + branch


def _key(name: str) -> jax.Array:
    return jax.random.fold_in(jax.random.key(0), zlib.crc32(name.encode()))


def _variables(model: Any) -> Any:
    return {"params": initialise(model, X)["params"]}


def _direction(v: Any, seed: int) -> Any:
    return random_direction(v, jax.random.key(seed))


# Every instrument that runs a network on a batch with labels, of (network, variables, batch); and those on inputs alone.
LABELLED: dict[str, Callable[[Any, Any, Any], Any]] = {
    "trace": lambda m, v, b: trace(m, v, b, train=False),
    "taps": lambda m, v, b: taps(m, v, b, ["first"]),
    "hvp": lambda m, v, b: hvp(m, v, b, v["params"]),
    "hessian_trace": lambda m, v, b: hessian_trace(m, v, b, probes=1),
    "top_eigenvalues": lambda m, v, b: top_eigenvalues(m, v, b, k=1, steps=2),
    "gradient_subspace_overlap": lambda m, v, b: gradient_subspace_overlap(m, v, b, k=1, steps=2),
    "spectral_density": lambda m, v, b: spectral_density(m, v, b, steps=2, probes=1),
    "per_example_gradients": lambda m, v, b: per_example_gradients(m, v, b),
    "noise_scale": lambda m, v, b: noise_scale(m, v, [(X, Y), b], small=4),
    "loss_line": lambda m, v, b: loss_line(m, v, b, _direction(v, 0), at=[0, 1]),
    "linear_interpolation": lambda m, v, b: linear_interpolation(m, v, v, b, at=[0, 1]),
    "loss_plane": lambda m, v, b: loss_plane(
        m, v, b, _direction(v, 0), _direction(v, 1), grid=([-1, 0, 1], [-1, 0, 1])
    ),
    "loss_contributions": lambda m, v, b: loss_contributions(m, v, b),
    "lesions": lambda m, v, b: lesions(m, v, b),
    "lesions, metric": lambda m, v, b: lesions(
        m, v, b, loss=lambda outputs, batch: jnp.sum(outputs)
    ),
    "path_lengths": lambda m, v, b: path_lengths(m, v, b),
    "path_gradient": lambda m, v, b: path_gradient(m, v, b, ["sum"]),
    "linearised_training": lambda m, v, b: linearised_training(m, v, b, steps=1, learning_rate=0.1),
}
OTHERS: dict[str, Callable[[Any, Any], Any]] = {
    "ntk": lambda m, v: ntk(m, v, X),
    "kernel_drift": lambda m, v: kernel_drift(m, v, v, X),
    "linearised": lambda m, v: linearised(m, v)(v["params"], X),
    "signal_propagation": lambda m, v: signal_propagation(m, v, X),
    "shattering": lambda m, v: shattering(m, v, X),
    "gradient_line": lambda m, v: gradient_line(m, v, X[0], X[1], 3),
    "first_nonfinite_layer": lambda m, v: first_nonfinite_layer(m, v, X),
    "kernel_order": lambda m, v: kernel_order(m, (FEATURES,)),
}


QUICK = (
    "taps",
    "hvp",
    "per_example_gradients",
    "linear_interpolation",
    "ntk",
    "shattering",
    "kernel_order",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in (*LABELLED, *OTHERS)
    ],
)
def test_random_streams_of_any_name_in_every_instrument(name):
    v = _variables(Sampled())
    LABELLED[name](Sampled(), v, (X, Y)) if name in LABELLED else OTHERS[name](Sampled(), v)


@pytest.mark.parametrize("train", [False, True])
def test_streams_that_are_not_given_start_from_key_0_by_name(train):
    v, given = _variables(Sampled()), {"gate": jax.random.key(7)}
    keys = {"sample": _key("sample"), "gate": _key("gate")} | (
        {"dropout": jax.random.key(0)} if train else {}
    )
    by_hand = partial(Sampled().apply, v, X, train=train)
    np.testing.assert_array_equal(run(Sampled(), v, (X, None), train)[0], by_hand(rngs=keys))
    np.testing.assert_array_equal(
        run(Sampled(), v, (X, None), train, given)[0], by_hand(rngs=keys | given)
    )
    drawing = "; draws from the random stream 'sample', 'gate' in evaluation"
    mode = "training mode (train=True)" if train else "evaluation mode (train=False)" + drawing
    assert mode_text(Sampled(), v, (X, None), train) == mode


def test_a_seed_gives_other_streams():
    v = _variables(Sampled())
    models = (Network(Sampled(), seed=0), Network(Sampled(), seed=1), Sampled())
    first, second, default = (run(model, v, (X, None), False)[0] for model in models)
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, default)


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("label", [-1, CLASSES])
def test_labels_outside_the_classes_are_refused(name, label):
    wrong = Y.at[2].set(label)
    message = (
        rf"1 of 8 labels are outside the classes \({label}\); allowed: 0 to 2, for the 3 outputs"
    )
    with pytest.raises(InputError, match=message):
        LABELLED[name](Sampled(), _variables(Sampled()), (X, wrong))


def test_labels_outside_the_classes_are_nan_inside_jit_and_refused_in_any_batch_of_a_list():
    v = _variables(Sampled())
    for label in (-1, CLASSES):
        wrong = Y.at[2].set(label)
        value, gradient = jax.jit(
            jax.value_and_grad(lambda logits, wrong=wrong: cross_entropy(logits, (X, wrong)))
        )(X[:, :CLASSES])
        assert np.isnan(value) and np.isnan(gradient).any()
        with pytest.raises(InputError, match="1 of 16 labels"):
            hessian_trace(Sampled(), v, [(X, Y), (X, wrong)], probes=1)


class Normed(nn.Module):
    axis: str | None

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis)(
            nn.Dense(6, name="first")(x)
        )
        return nn.Dense(CLASSES)(Sum(name="sum")(x, nn.Dense(6)(nn.relu(x))))


def _numbers(model: Any, v: Any) -> tuple[float, ...]:
    return (
        signal_propagation(model, v, X).blocks[0].variance,
        per_example_gradients(model, v, (X, Y), bn=4).layers[0].mean_norm,
        float(taps(model, v, (X, Y), ["sum"])["sum"].gradient.sum()),
    )


@pytest.mark.parametrize("axis", ["batch", "any other name. Even this"])
def test_an_axis_of_batch_norm_is_bound(axis):
    """Expected: the same network without an axis, over one device the same function."""
    bound, free = Normed(axis), Normed(None)
    v = initialise(bound, X)

    def value(model: Any, params: Any) -> Any:
        return loss_of(model, {**v, "params": params}, (X, Y), cross_entropy, True)

    ours, expected = (
        jax.value_and_grad(partial(value, model))(v["params"]) for model in (bound, free)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), ours, expected)
    assert f"axis '{axis}' bound with size 1" in mode_text(bound, v, (X, Y), True)


def test_layers_under_an_axis_of_batch_norm_are_seen():
    bound, free = Normed("batch"), Normed(None)
    v = initialise(bound, X)
    report, other = (trace(model, v, (X, Y)) for model in (bound, free))
    assert [row.layer for row in report.layers] == [row.layer for row in other.layers]
    assert [row.gradient_norm for row in report.layers] == pytest.approx(
        [row.gradient_norm for row in other.layers], rel=1e-5
    )
    pairs = [_numbers(model, v) for model in (bound, free)]
    assert pairs[0] == pytest.approx(pairs[1], rel=1e-4, abs=1e-6)


def test_a_bound_axis_stays_as_it_is():
    """Under pmap over two devices statistics are of both: the mean of both halves' outputs is that of the whole batch."""
    v = initialise(Normed("batch"), X)
    whole = run(Normed(None), v, (X, None), True)[0]
    halves = jax.vmap(lambda x: run(Normed("batch"), v, (x, None), True)[0], axis_name="batch")(
        X.reshape(2, 4, FEATURES)
    )
    np.testing.assert_allclose(halves.reshape(whole.shape), whole, rtol=1e-4, atol=1e-5)


def test_an_axis_that_was_bound_around_an_earlier_call_is_bound_again():
    model, free = Normed("earlier"), Normed(None)
    v = initialise(model, X)
    jax.vmap(lambda x: run(model, v, (x, None), True)[0], axis_name="earlier")(jnp.stack([X, X]))
    np.testing.assert_allclose(
        run(model, v, (X, None), True)[0], run(free, v, (X, None), True)[0], rtol=1e-5
    )


class AlwaysTrains(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(nn.BatchNorm(use_running_average=False)(x))


def test_evaluation_that_writes_batch_statistics_is_refused():
    v = initialise(AlwaysTrains(), X)
    with pytest.raises(
        InputError, match=r"evaluation writes the batch statistics.*Network\(module, eval_kwargs"
    ):
        per_example_gradients(AlwaysTrains(), v, (X, Y))
    assert np.isfinite(trace(AlwaysTrains(), v, (X, Y), train=True).loss)


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x):
        count = self.variable("counts", "calls", lambda: jnp.zeros(()))
        count.value += 1
        return nn.Dense(CLASSES)(x) * count.value


def test_collections_that_evaluation_writes():
    v = initialise(Counting(), X)
    expected = _loss(Counting().apply(v, X, mutable=["counts"])[0])
    assert trace(Counting(), v, (X, Y), train=False).loss == pytest.approx(
        float(expected), rel=1e-6
    )
    assert mode_text(Counting(), v, (X, Y), False).endswith(
        "; writes the collection 'counts' in evaluation"
    )
    assert ntk(Counting(), v, X).mode == mode_text(Counting(), v, (X, Y), False)


class Pair(NamedTuple):
    logits: Any
    loss: Any


class Several(nn.Module):
    form: Callable[[Any, Any], Any]

    @nn.compact
    def __call__(self, x):
        return self.form(nn.Dense(4)(x), nn.Dense(CLASSES, name="head")(x))


FORMS = [
    (lambda a, b: (a, b), 1),
    (lambda a, b: {"mean": a, "logits": b}, "logits"),
    (lambda a, b: Pair(b, a), "logits"),
    (lambda a, b: {"all": [a, (b,)]}, ("all", 1, 0)),
    (lambda a, b: {"all": [a, (b,)]}, lambda outputs: outputs["all"][1][0]),
]


@pytest.mark.parametrize(("form", "output"), FORMS)
def test_output_selects_one_array(form, output):
    several = Several(form)
    v = initialise(several, X)
    kernel = v["params"]["head"]["kernel"]
    expected = _loss(jnp.dot(X, kernel) + v["params"]["head"]["bias"][None])
    network = Network(several, output=output)
    assert trace(network, v, (X, Y), train=False).loss == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(
        ntk(network, v, X).matrix, X @ X.T + 1, rtol=1e-5
    )  # of a linear map: x . x' + 1 for the bias
    with pytest.raises(InputError, match=r"returns a .*output="):
        trace(several, v, (X, Y), train=False)
    with pytest.raises(InputError, match=r"choose by Network\(..., output=\)"):
        ntk(several, v, X)
    with pytest.raises(InputError, match="output is 'nothing'; Several returns"):
        trace(Network(several, output="nothing"), v, (X, Y), train=False)


class Keyed(nn.Module):
    @nn.compact
    def __call__(self, x, key, scale, train=False):
        x = nn.Dense(16, name="first")(x) * scale
        return nn.Dense(CLASSES)(nn.tanh(x + jax.random.normal(key, (1, 16))))


def test_scalars_among_the_inputs_belong_to_all_examples():
    key, scale = jax.random.key(3), jnp.float32(0.7)
    v = Keyed().init(jax.random.key(0), X, key, scale)
    batch = ((X, key, scale), Y)

    def outputs(params: Any) -> Any:
        return Keyed().apply({"params": params}, X, key, scale)

    jacobian = jax.tree.leaves(jax.jacrev(outputs)(v["params"]))
    flat = jnp.concatenate([leaf.reshape(EXAMPLES, CLASSES, -1) for leaf in jacobian], axis=-1)
    np.testing.assert_allclose(
        ntk(Keyed(), v, batch[0], output="trace", chunk=3).matrix,
        jnp.einsum("iap,jap->ij", flat, flat),
        rtol=1e-4,
    )
    gradient = jax.grad(lambda params: _loss(outputs(params)))(v["params"])["first"]
    norm = float(jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient))))
    first = next(
        row for row in per_example_gradients(Keyed(), v, batch).layers if row.layer == "first"
    )
    assert first.mean_norm == pytest.approx(norm, rel=1e-5)
    value = linear_interpolation(Keyed(), v, v, [batch, batch], at=[0, 1]).loss
    np.testing.assert_allclose(value, _loss(outputs(v["params"])), rtol=1e-5)


class TwoInputs(nn.Module):
    @nn.compact
    def __call__(self, x, z, train):
        return nn.Dense(CLASSES)(nn.relu(nn.Dense(4, name="first")(x * z)))


def test_first_not_finite_of_several_inputs_and_under_vmap():
    v = initialise(TwoInputs(), (X, X))
    assert first_nonfinite_layer(TwoInputs(), v, (X, X)) is None
    assert first_nonfinite_layer(TwoInputs(), v, (X, X / 0)) == "first"

    each = nn.vmap(
        ByField, variable_axes={"params": None}, split_rngs={"params": False, "dropout": True}
    )(False)
    assert first_nonfinite_layer(each, initialise(each, X), X) is None
    assert first_nonfinite_layer(each, initialise(each, X), X / 0) == ""


def test_a_switch_that_does_not_reach_the_network_is_said():
    each = nn.vmap(
        ByFlag, variable_axes={"params": None}, split_rngs={"params": False, "dropout": True}
    )()
    v = initialise(each, X)
    trace(each, v, (X, Y), train=False)
    lost = "no training switch found; called as it is; draws from the random stream 'dropout' in evaluation; "
    assert (
        mode_text(each, v, (X, Y), False)
        == lost + "enable_dropout does not reach it through nn.vmap or nn.scan"
    )


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return _dropped(x, not train)


class Head(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        return _dropped(x, deterministic)


class Handing(nn.Module):
    body: nn.Module
    head: nn.Module

    def __call__(self, x, **kwargs):
        return self.head(self.body(x, **kwargs))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            nn.Sequential([nn.Dense(8), nn.relu, Block()]),
            "no training switch found; called as it is; train does not reach the module inside that takes it",
        ),
        (
            nn.Sequential([nn.Dense(6), nn.MultiHeadDotProductAttention(2), nn.Dense(CLASSES)]),
            "no training switch found; called as it is; deterministic does not reach the module inside that takes it",
        ),
        (
            Handing(Block(), Head()),
            "evaluation mode (train=False); deterministic does not reach the module inside that takes it",
        ),
    ],
    ids=["sequential", "attention", "one of two"],
)
def test_a_switch_that_is_refused_on_its_way_inside_is_left_out_and_said(model, said):
    """Expected: the call without it, by `apply`; each of these refuses the other switch."""
    v, kwargs = initialise(model, X), {"train": False} if isinstance(model, Handing) else {}
    np.testing.assert_allclose(
        run(model, v, (X, None), False)[0], model.apply(v, X, **kwargs), rtol=1e-6
    )
    assert trace(model, v, (X, Y), train=False).mode == mode_text(model, v, (X, Y), False) == said
    assert initialise(model, X).keys() == model.init(jax.random.key(0), X).keys()
    by_name = Network(model, eval_kwargs={"nothing": 1})
    with pytest.raises(InputError, match="unexpected keyword argument 'nothing'"):
        trace(by_name, v, (X, Y), train=False)


class NoisyWhenLarge(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(CLASSES)(x)
        return (
            x + self.make_rng("noise").dtype.itemsize
            if len(x) > 4
            else x * (2.0 if self.has_rng("noise") else 1.0)
        )


def test_what_a_call_needs_does_not_depend_on_earlier_calls():
    """Expected: `apply` without the stream, of a batch in which the network draws nothing."""
    v = initialise(nn.Sequential([NoisyWhenLarge()]), X[:2])
    model = nn.Sequential([NoisyWhenLarge()])
    large, small = ((X, Y), (X[:2], Y[:2]))
    run(model, v, large, False)
    np.testing.assert_array_equal(run(model, v, small, False)[0], model.apply(v, X[:2]))
    assert (
        "'noise'" in mode_text(model, v, large, False)
        and "noise" not in trace(model, v, small, train=False).mode
    )

    decoder = nn.MultiHeadDotProductAttention(2, decode=True)
    full, token = decoder.init(jax.random.key(0), jnp.ones((1, 3, 4))), jnp.ones((1, 1, 4))
    for _ in range(2):
        with pytest.raises(InputError, match="cannot take a batch"):
            trace(decoder, {"params": full["params"]}, (token, None), train=False, loss=_summed)
        trace(decoder, full, (token, None), train=False, loss=_summed)


def _summed(outputs: Any, batch: Any) -> Any:
    return jnp.sum(outputs)


def test_kernels_of_a_network_whose_switch_is_required():
    assert kernel_order(Required(), (FEATURES,)) == ["Dense_1", "Dense_0"]
    assert kernel_order(Network(Unusual()), (FEATURES,)) == ["Dense_1", "Dense_0"]


class Tokens(nn.Module):
    @nn.compact
    def __call__(self, tokens, mask, train):
        return nn.Dense(CLASSES)(jnp.mean(nn.Embed(7, 4)(tokens) * mask[..., None], axis=1))


def test_initialisation_of_tokens_and_several_inputs():
    shapes = (jax.ShapeDtypeStruct((2, 6), jnp.int32), jax.ShapeDtypeStruct((2, 6), jnp.float32))
    found = init_variables(Tokens(), jax.random.key(4), shapes)
    keys = {"params": jax.random.key(4), "dropout": jax.random.key(4)}
    expected = Tokens().init(keys, jnp.zeros((2, 6), jnp.int32), jnp.zeros((2, 6)), False)
    jax.tree.map(np.testing.assert_allclose, found, dict(expected))
    with pytest.raises(InputError, match=r"Tokens cannot take inputs float32\[2, 6\]: .*'mask'"):
        init_variables(Tokens(), jax.random.key(4), (2, 6))
    with pytest.raises(
        InputError,
        match=r"Embed cannot take inputs float32\[2, 6\]: .*integer; for other dtypes give a jax.Shape",
    ):
        init_variables(nn.Embed(7, 4), jax.random.key(4), (2, 6))


class Partitioned(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(
            CLASSES, kernel_init=nn.with_partitioning(nn.initializers.ones, (None, "model"))
        )(x)


def test_boxes_are_opened():
    v = Partitioned().init(jax.random.key(0), X)
    assert isinstance(v["params"]["Dense_0"]["kernel"], nn.Partitioned)
    np.testing.assert_allclose(ntk(Partitioned(), v, X).matrix, X @ X.T + 1, rtol=1e-5)
    assert isinstance(initialise(Partitioned(), X)["params"]["Dense_0"]["kernel"], jax.Array)


TRACES: list[str] = []


class Noting(nn.Module):
    @nn.compact
    def __call__(self, x, noisy=True):
        TRACES.append("")
        return _dropped(x, not noisy)


def test_nothing_is_traced_again():
    """Equal networks, made anew for each call, are one key of what is compiled."""
    v = initialise(Noting(), X)

    def look() -> None:
        for model in (Network(Noting(), eval_kwargs={"noisy": False}), Noting()):
            trace(model, v, (X, Y), train=False)
            hessian_trace(model, v, (X, Y), probes=1)
            shattering(model, v, X)
            lesions(model, v, (X, Y), modules=["Dropout_0"])

    look()
    before = len(TRACES)
    look()
    assert len(TRACES) == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: Network(ByField), "module is 'type'; allowed: an instance of flax.linen.Module"),
        (lambda: Network(ByFlag(), eval_kwargs={"mask": X}), "field eval_kwargs of Network"),
        (
            lambda: trace(ByFlag(), {"batch_stats": {}}, (X, Y)),
            "'params' is missing|allowed: a dict with 'params'",
        ),
        (
            lambda: trace(
                Network(ByFlag(), eval_kwargs={"nothing": 1}),
                _variables(ByFlag()),
                (X, Y),
                train=False,
            ),
            "unexpected keyword",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(given, message):
    with pytest.raises(InputError, match=message) as error:
        given()
    assert "\n" not in str(error.value)


class Jitting(nn.Module):
    """Layers under nn.jit, and a note of every trace."""

    @nn.compact
    def __call__(self, x):
        TRACES.append("")
        return nn.jit(nn.Dense)(CLASSES, name="head")(nn.jit(nn.Dense)(6, name="first")(x))


REPEATED: dict[str, Callable[[Any], Any]] = {
    "first_nonfinite_layer": lambda v: first_nonfinite_layer(Jitting(), v, X),
    "ntk": lambda v: ntk(Jitting(), v, X),
    "linearised": lambda v: linearised(Jitting(), v)(v["params"], X),
    "count_params": lambda v: count_params(Jitting(), (FEATURES,)),
    "count_macs": lambda v: count_macs(Jitting(), (FEATURES,)),
    "cost": lambda v: cost(Jitting(), (FEATURES,)),
    "trace": lambda v: trace(Jitting(), v, (X, Y), train=False),
}


@pytest.mark.parametrize("name", REPEATED)
def test_a_second_call_traces_nothing(name):
    """Each trace of a layer under nn.jit would stay in its cache."""
    v = initialise(Jitting(), X)
    REPEATED[name](v)
    before = len(TRACES)
    REPEATED[name](v)
    assert len(TRACES) == before > 0


class ComplexInside(nn.Module):
    """Returns no complex numbers."""

    @nn.compact
    def __call__(self, x):
        return (
            jnp.abs(
                nn.Dense(CLASSES, dtype=jnp.complex64, param_dtype=jnp.complex64, name="complex")(x)
            )
            > 0
        )


def test_complex_numbers_that_are_not_finite_are_seen():
    v = initialise(ComplexInside(), X)
    assert first_nonfinite_layer(ComplexInside(), v, X) is None
    assert (
        first_nonfinite_layer(ComplexInside(), jax.tree.map(lambda leaf: leaf * jnp.nan, v), X)
        == "complex"
    )


class Branching(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(CLASSES)(-x if train else x)


@pytest.mark.parametrize("transform", [nn.remat, nn.jit])
def test_a_switch_that_is_traced_at_the_top_is_named(transform):
    v = initialise(Branching(), X)
    message = r"bool\[\]; if a training switch is traced, make it static \(static_argnums of nn.remat, static_argnames of nn.jit\)"
    with pytest.raises(InputError, match=message) as error:
        trace(transform(Branching)(), v, (X, Y), train=False)
    assert "\n" not in str(error.value)


def test_a_list_of_batches_is_refused():
    v, batches = initialise(Branching(), X), [(X, Y), (X, Y)]
    with pytest.raises(InputError, match=r"^batch is a list of 2 batches; trace takes one$"):
        trace(Branching(), v, batches)
    with pytest.raises(InputError, match=r"^batch is a list of 2 batches; taps takes one$"):
        taps(Branching(), v, batches, ["Dense_0"])
    assert (
        trace(Branching(), v, [X, Y], train=False).loss
        == trace(Branching(), v, (X, Y), train=False).loss
    )
