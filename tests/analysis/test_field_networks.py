"""Every instrument on twelve networks of the field, three of them also in NNX.

Each cell equals what `field_expectations.py` computes from the network's call by hand, or is a
refusal, which `REFUSED` lists with its reason. `make test` runs a cell of each instrument, `make
test-slow` all.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepjax.analysis as i
from deepjax.analysis import EVAL, TRAIN
from deepjax.errors import InputError
from tests.analysis import field_expectations as by_hand
from tests.analysis.field_cases import EXAMPLES, FIELD, FieldCase, field_case, stream
from tests.analysis.field_expectations import KEY

Cell = Callable[[FieldCase], Any]


def by(name: str, *extra: Any, **options: Any) -> Cell:
    """The call of an instrument with a loss."""
    return lambda c: getattr(i, name)(
        c.network, c.variables, c.batch, *extra, loss=c.loss, mode=EVAL, key=KEY, **options
    )


def without_loss(name: str, *extra: Any, **options: Any) -> Cell:
    return lambda c: getattr(i, name)(
        c.network, c.variables, c.batch, *extra, mode=EVAL, key=KEY, **options
    )


def with_ones(operator: i.LinearOperator) -> Any:
    return operator @ np.ones(operator.shape[0])


def of_shape(name: str, number: Callable[[Any], Any]) -> Cell:
    return lambda c: number(getattr(i, name)(c.network, c.shape))


def like(c: FieldCase, factor: float) -> Any:
    return jax.tree.map(lambda leaf: factor * leaf, c.variables["params"])


def at(c: FieldCase, factor: float) -> Any:
    return {**c.variables, "params": like(c, factor)}


def ones(c: FieldCase) -> Any:
    return jax.tree.map(jnp.ones_like, c.variables["params"])


def vector(tree: Any) -> np.ndarray:
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0], float)


def size(c: FieldCase) -> int:
    return len(by_hand.flat(c))


def norm_of_gradient(c: FieldCase, train: bool = False) -> float:
    return float(np.linalg.norm(by_hand.loss_and_gradient(c, train)[1]))


def numbers_of_trace(report: Any) -> list[float]:
    """Loss, norm of the gradient, norm of the parameters in all rows."""
    weights = [row.weight_norm or 0.0 for row in report.layers]
    return [report.loss, report.summary()["gradient norm"], float(np.linalg.norm(weights))]


def poisoned(c: FieldCase) -> Any:
    """The variables with NaN in the parameters of `c.layer`."""

    def poison(path: Any, leaf: Any) -> Any:
        names = "/".join(str(each.key) for each in path[:-1])
        return leaf * jnp.nan if f"{names}/".startswith(f"{c.layer}/") else leaf

    params = jax.tree_util.tree_map_with_path(poison, c.variables["params"])
    return {**c.variables, "params": params}


def first_nonfinite(c: FieldCase) -> Any:
    """[whether nothing is found in the network, whether the layer is found in a poisoned one]."""
    whole = without_loss("first_nonfinite_layer")(c)
    found = i.first_nonfinite_layer(c.network, poisoned(c), c.batch, key=KEY)
    return [whole is None, found == (c.layer if c.seen_in is None else c.seen_in)]


def signs(values: Any) -> list[int]:
    return [int((values < 0).sum()), int((values > 0).sum())]


def signs_of(report: Any) -> list[int]:
    """Numbers of negative and positive activations and gradients."""
    (row,) = report.layers
    counts = (row.activations, row.gradients)
    return [int(each.sum()) for count in counts for each in (count.negative, count.positive)]


def example(c: FieldCase, index: int) -> Any:
    """In the form of a batch, without the examples' axis; a graph has none."""
    if c.name == "graph":
        return (jax.tree.map(lambda leaf: leaf * (index + 1), c.batch[0]), None)
    return by_hand.with_inputs(c, jax.tree.map(lambda leaf: leaf[index], by_hand.inputs(c)))


def field_sizes(c: FieldCase) -> Any:
    """Of the layer, and in a network without maps how many there are."""
    rows = i.layer_fields(c.network, c.shape).layers
    return [row.size for row in rows if row.layer == c.image_map] or len(rows) + 1


def initialised(c: FieldCase) -> float:
    """Norm of the parameters that `module.init` makes of KEY."""
    names = ("latent", "lstm")
    keys = {"params": KEY, "dropout": KEY} | {name: stream(KEY, name) for name in names}
    module = getattr(c.network, "module", c.network)
    inputs = by_hand.inputs(c)
    inputs = inputs if type(inputs) is tuple else (inputs,)
    options = {"cnn": {"train": False}}.get(c.name, {})
    return by_hand.total_norm(jax.tree.leaves(module.init(keys, *inputs, **options)["params"]))


def sown_losses(c: FieldCase) -> list[float]:
    """The losses of the outputs and of the head of the U-Net."""
    outputs, sown = c.network.apply(c.variables, c.batch[0], mutable=["auxiliary"])
    return [float(c.loss(each, c.batch)) for each in (outputs, sown["auxiliary"]["low"][0])]


def step_down(c: FieldCase, rate: float = 0.01) -> list[float]:
    """The loss at the start, and of the linearised network after a step of descent."""
    value, gradient = by_hand.loss_and_gradient(c)
    outputs = by_hand.linearised_outputs(c, jnp.asarray(-rate * gradient, jnp.float32))
    return [value, float(c.loss(jnp.asarray(outputs, jnp.float32), c.batch))]


def drift(c: FieldCase) -> float:
    before, after = by_hand.kernel(c), by_hand.kernel(c, 1.5)
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))


MATRICES: dict[str, Callable[[FieldCase], np.ndarray]] = {
    "hessian": by_hand.hessian,
    "gauss_newton": by_hand.gauss_newton,
    "fisher": by_hand.gauss_newton,
    "empirical_fisher": lambda c: by_hand.gradients(c).T @ by_hand.gradients(c) / EXAMPLES,
    "gradient_covariance": by_hand.covariance,
}
GRID = ([-0.5, 0.0, 0.5], [-1.0, 0.0, 1.0])
ALPHAS = [0.0, 0.5, 1.0]


def operator(name: str) -> tuple[Cell, Cell]:
    """The dense matrix. `fisher` takes no loss."""
    call = without_loss(name) if name == "fisher" else by(name)
    return lambda c: call(c).todense(), MATRICES[name]


CALLS: dict[str, tuple[Cell, Cell]] = {
    "trace": (
        lambda c: numbers_of_trace(by("trace")(c)),
        lambda c: [
            by_hand.loss_and_gradient(c)[0],
            norm_of_gradient(c),
            float(np.linalg.norm(by_hand.flat(c))),
        ],
    ),
    "taps": (
        lambda c: [(tap.activation, tap.gradient) for tap in by("taps", c.layer)(c).values()],
        lambda c: [by_hand.layer_outputs(c, c.layer), by_hand.layer_gradients(c, c.layer)],
    ),
    "histograms": (
        lambda c: signs_of(by("histograms", layers=c.layer)(c)),
        lambda c: [
            *signs(by_hand.layer_outputs(c, c.layer)),
            *signs(by_hand.layer_gradients(c, c.layer)),
        ],
    ),
    "cka": (
        lambda c: (
            without_loss(
                "cka", layers=c.layer, other=(c.network, at(c, 1.5)), other_layers=c.layer
            )(c).similarity
        ),
        lambda c: by_hand.linear_cka(c, c.layer, 1.5),
    ),
    "first_nonfinite_layer": (first_nonfinite, lambda c: [True, True]),
    "signal_propagation": (
        lambda c: [
            row.variance for row in without_loss("signal_propagation", layers=c.layer)(c).blocks
        ],
        lambda c: [by_hand.variance(c, c.layer)],
    ),
    **{name: operator(name) for name in MATRICES},
    "hvp": (
        lambda c: vector(by("hvp", ones(c))(c)),
        lambda c: by_hand.hessian(c).sum(1),
    ),
    "gnvp": (
        lambda c: vector(by("gnvp", ones(c))(c)),
        lambda c: by_hand.gauss_newton(c).sum(1),
    ),
    "top_eigenvalues": (
        lambda c: by("top_eigenvalues", 3, which="largest", steps=60)(c).values,
        lambda c: by_hand.eigenvalues(c)[::-1][:3],
    ),
    "spectral_density": (
        lambda c: by("spectral_density", steps=60, probes=1)(c).lambda_max,
        lambda c: by_hand.eigenvalues(c)[-1],
    ),
    "hessian_trace": (
        lambda c: within(by("hessian_trace", probes=20)(c), np.trace(by_hand.hessian(c))),
        lambda c: True,
    ),
    "gradient_subspace_overlap": (
        lambda c: by("gradient_subspace_overlap", 2, steps=60)(c).fraction,
        lambda c: by_hand.subspace(c, 2),
    ),
    "per_example_gradients": (
        lambda c: [
            sum(row.variance for row in by("per_example_gradients")(c).layers),
            np.linalg.norm([row.mean_norm for row in by("per_example_gradients")(c).layers]),
        ],
        lambda c: [
            np.trace(by_hand.covariance(c)),
            np.linalg.norm(by_hand.gradients(c).mean(0)),
        ],
    ),
    "gradient_confusion": (
        lambda c: by("gradient_confusion")(c).products,
        lambda c: by_hand.gradients(c) @ by_hand.gradients(c).T,
    ),
    "noise_scale": (
        lambda c: by("noise_scale", small=1)(c).trace_sigma,
        lambda c: np.trace(by_hand.covariance(c)),
    ),
    "loss_contributions": (
        lambda c: list(by("loss_contributions")(c).losses.values()),
        sown_losses,
    ),
    "shattering": (
        lambda c: without_loss("shattering", output=by_hand.output_sum)(c).cosine,
        by_hand.input_cosine,
    ),
    "gradient_line": (
        lambda c: (
            i.gradient_line(
                c.network,
                c.variables,
                example(c, 0),
                example(c, 1),
                5,
                mode=EVAL,
                key=KEY,
                output=by_hand.output_sum,
            ).gradient
        ),
        lambda c: by_hand.gradient_along_line(c, 5),
    ),
    "loss_line": (
        lambda c: by("loss_line", like(c, 1.0), alphas=ALPHAS)(c).loss,
        lambda c: by_hand.moved(c, *ALPHAS),
    ),
    "loss_plane": (
        lambda c: by("loss_plane", like(c, 1.0), ones(c), grid=GRID)(c).loss[1],
        lambda c: by_hand.moved(c, *GRID[0]),
    ),
    "linear_interpolation": (
        lambda c: (
            i.linear_interpolation(
                c.network, c.variables, at(c, 2.0), c.batch, loss=c.loss, key=KEY, alphas=ALPHAS
            ).loss
        ),
        lambda c: by_hand.moved(c, *ALPHAS),
    ),
    "random_direction": (
        lambda c: by_hand.total_norm(jax.tree.leaves(i.random_direction(c.variables, KEY))),
        lambda c: by_hand.total_norm(by_hand.kernels(c)),
    ),
    "trajectory": (
        lambda c: i.trajectory([at(c, 1.0), at(c, 2.0), at(c, 4.0)]).coordinates,
        lambda c: np.outer([3.0, 2.0, 0.0], [np.linalg.norm(by_hand.flat(c)), 0.0]),
    ),
    "ntk": (
        lambda c: without_loss("ntk", output="trace")(c).matrix,
        by_hand.kernel,
    ),
    "ntk_operator": (
        lambda c: with_ones(without_loss("ntk_operator", chunk=3)(c)),
        by_hand.kernel_times_ones,
    ),
    "kernel_drift": (
        lambda c: (
            (
                i.kernel_drift(c.network, c.variables, at(c, 1.5), c.batch, key=KEY, output="trace")
            ).drift
        ),
        drift,
    ),
    "linearised": (
        lambda c: i.linearised(c.network, c.variables, key=KEY)(like(c, 1.1), c.batch),
        lambda c: by_hand.linearised_outputs(c, 0.1 * by_hand.flat(c)),
    ),
    "linearised_training": (
        lambda c: [
            (run := by("linearised_training", steps=1, learning_rate=0.01)(c)).loss[0],
            run.loss_linear[1],
        ],
        step_down,
    ),
    "lesions": (
        lambda c: [
            lesion.loss for lesion in by("lesions", layers=c.same_shape, metric=c.loss)(c).blocks
        ],
        lambda c: by_hand.losses_without(c, c.same_shape or ""),
    ),
    "path_lengths": (
        lambda c: by("path_lengths")(c).gradient_norm,
        lambda c: by_hand.total_norm([by_hand.input_gradients(c)]),
    ),
    "path_gradient": (lambda c: by("path_gradient", ())(c), lambda c: None),
    "grad_cam": (
        lambda c: without_loss("grad_cam", c.image_map or c.layer)(c).maps,
        lambda c: by_hand.grad_cam_maps(c, c.image_map or ""),
    ),
    "integrated_gradients": (
        lambda c: list(without_loss("integrated_gradients")(c).attributions.values()),
        lambda c: by_hand.attributions(c, 64),
    ),
    "effective_field": (
        lambda c: without_loss("effective_field", layers=c.image_map)(c).map,
        lambda c: by_hand.influence(c, c.image_map or ""),
    ),
    "layer_fields": (
        field_sizes,
        lambda c: [(c.field, c.field)] if c.image_map else 1,
    ),
    "cost": (of_shape("cost", lambda report: report.total.macs), lambda c: c.macs),
    "count_macs": (of_shape("count_macs", int), lambda c: c.macs),
    "macs_by_layer": (
        of_shape("macs_by_layer", lambda counts: sum(counts.values())),
        lambda c: c.macs,
    ),
    "count_params": (of_shape("count_params", int), size),
    "params_by_layer": (
        of_shape("params_by_layer", lambda counts: sum(counts.values())),
        size,
    ),
    "stage_table": (
        of_shape(
            "stage_table", lambda table: [table.summary()[name] for name in ("params", "MACs")]
        ),
        lambda c: [size(c), c.macs],
    ),
    "kernel_norms": (
        lambda c: by_hand.total_norm(i.kernel_norms(c.variables["params"]).values()),
        lambda c: by_hand.total_norm(by_hand.kernels(c)),
    ),
    "kernel_order": (
        lambda c: sorted(i.kernel_order(c.network, c.shape)) == owners_of_kernels(c),
        lambda c: True,
    ),
    "init_variables": (
        lambda c: by_hand.total_norm(
            jax.tree.leaves(
                i.init_variables(c.network, KEY, jax.eval_shape(lambda: by_hand.inputs(c)))[
                    "params"
                ]
            )
        ),
        initialised,
    ),
}


def within(found: Any, wanted: float) -> bool:
    """Whether an estimate is within four standard errors."""
    return bool(abs(found.trace - wanted) < 4 * found.error)


def owners_of_kernels(c: FieldCase) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(c.variables["params"])
    return sorted(
        "/".join(str(each.key) for each in path[:-1])
        for path, _ in leaves
        if path[-1].key == "kernel"
    )


ALL = set(FIELD)
NNX = {"nnx_cnn", "nnx_vae", "nnx_shared"}
SEVERAL_OUTPUTS = {"vae", "burgers", "nnx_vae"}
NOT_SCORES = {*SEVERAL_OUTPUTS, "seq2seq", "decoder", "t5", "unet", "pixelcnn", "ensemble"}
NO_IMAGES = {"seq2seq", "decoder", "t5", "graph", "shared", "ensemble", "burgers", "nnx_shared"}
PER_EXAMPLE = (
    "empirical_fisher",
    "gradient_covariance",
    "per_example_gradients",
    "gradient_confusion",
    "noise_scale",
)
KERNELS = ("ntk", "ntk_operator", "kernel_drift")
LINEARISED = ("linearised", "linearised_training")
OF_INPUTS = ("shattering", "gradient_line")

_REFUSED: list[tuple[tuple[str, ...], set[str], str]] = [
    (("loss_contributions",), ALL - {"unet"}, "has no auxiliary heads"),
    (("path_lengths", "path_gradient"), ALL, "has no residual sums"),
    (
        ("lesions",),
        {"vae", "pixelcnn", "actor_critic", "nnx_vae", "nnx_shared"},
        "has no residual sums",
    ),
    (("fisher",), {"vae", "pixelcnn", "nnx_vae"}, "batch has no labels"),
    (("fisher",), {"ensemble"}, "labels have the shape"),
    (("fisher",), {"burgers"}, "choose by Network"),
    ((*KERNELS, *LINEARISED), SEVERAL_OUTPUTS, "choose by Network"),
    (
        (*PER_EXAMPLE, *KERNELS, "shattering", "cka"),
        {"graph"},
        "whose first axis is the examples'",
    ),
    (("gradient_line",), {"graph"}, "a start and an end that are single examples"),
    ((*PER_EXAMPLE, *KERNELS), {"decoder"}, "collection 'cache' is of 4 examples"),
    (OF_INPUTS, {"decoder", "t5", "actor_critic"}, "of inputs u?int.*allowed: floats"),
    (("integrated_gradients",), {"actor_critic"}, "has no inputs of floats"),
    (
        ("grad_cam", "integrated_gradients"),
        NOT_SCORES,
        r"allowed: floats \(examples, classes\)",
    ),
    (("grad_cam",), {"graph", "shared", "nnx_shared"}, r"a layer that returns \(examples, places"),
    (
        ("effective_field", "layer_fields"),
        NO_IMAGES,
        "inputs of which one is an image",
    ),
    (("effective_field",), {"actor_critic"}, "inputs of which one is an image"),
    (("effective_field",), {"vae", "nnx_vae"}, r"one array of floats, which Network\(module"),
    (("cka",), {"ensemble"}, "inside nn.scan"),
    (("signal_propagation",), {"ensemble", "burgers"}, "inside nn.scan"),
    (("taps",), {"ensemble", "burgers"}, "times inside a scan or vmap"),
    (("init_variables",), NNX, "is no linen module"),
]
REFUSED: dict[tuple[str, str], str] = {
    (network, name): reason
    for names, networks, reason in _REFUSED
    for name in names
    for network in networks
}
"""(network, instrument) -> part of the message; `refusals.py` says why, and what to do instead."""

QUICK: dict[str, tuple[str, ...]] = {
    "cnn": ("trace", "grad_cam", "integrated_gradients", "path_lengths", "path_gradient"),
    "vae": ("per_example_gradients", "gradient_covariance", "init_variables", "ntk", "lesions"),
    "seq2seq": ("cost", "count_macs", "macs_by_layer", "kernel_order"),
    "decoder": ("linear_interpolation", "per_example_gradients", "stage_table"),
    "t5": ("first_nonfinite_layer", "count_params", "params_by_layer", "shattering"),
    "graph": ("loss_plane", "cost", "noise_scale"),
    "unet": ("loss_contributions", "layer_fields"),
    "pixelcnn": ("random_direction", "trajectory", "kernel_norms", "effective_field"),
    "actor_critic": ("cost", "integrated_gradients"),
    "shared": (
        "fisher",
        "ntk",
        "ntk_operator",
        "kernel_drift",
        "linearised",
        "linearised_training",
        "lesions",
    ),
    "ensemble": (
        *("hessian", "gauss_newton", "hvp", "gnvp", "top_eigenvalues", "spectral_density"),
        *("hessian_trace", "gradient_subspace_overlap"),
    ),
    "burgers": ("cka", "gradient_line", "shattering"),
    "nnx_cnn": ("taps", "histograms", "signal_propagation"),
    "nnx_vae": ("empirical_fisher", "init_variables"),
    "nnx_shared": ("loss_line", "gradient_confusion", "noise_scale"),
}
"""What `make test` runs: each instrument, and something of each network."""
QUICK_IN_TRAINING = ("cnn", "shared")
DIRECTIONS = ("allowed", "choose", "use ", "build ", "name ", "give ", "trace() shows it")
"""A refusal has one of these, before what to do instead."""


def check(call: Cell, wanted: Cell, case: FieldCase, refusal: str | None) -> None:
    """Raise AssertionError unless it is the refusal in one line, or the number."""
    if refusal:
        with pytest.raises(InputError, match=refusal) as error:
            call(case)
        text = str(error.value)
        assert "\n" not in text
        assert any(word in text for word in DIRECTIONS), text
        return
    found, expected = numbers_of(call(case)), numbers_of(wanted(case))
    scale = np.abs(expected).max()
    assert scale > 0  # else any small numbers would pass
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=3e-5 * scale)


def numbers_of(tree: Any) -> np.ndarray:
    """All numbers of a tree of arrays."""
    return np.concatenate([np.ravel(np.asarray(leaf, float)) for leaf in jax.tree.leaves(tree)])


def marks(is_quick: bool) -> Any:
    return () if is_quick else pytest.mark.slow


CELLS = [
    pytest.param(network, name, marks=marks(name in QUICK[network]), id=f"{network}-{name}")
    for network in FIELD
    for name in CALLS
]
each_in_training = pytest.mark.parametrize(
    "network",
    [pytest.param(network, marks=marks(network in QUICK_IN_TRAINING)) for network in FIELD],
)


@pytest.mark.parametrize(("network", "name"), CELLS)
def test_a_cell(network, name):
    check(*CALLS[name], field_case(network), REFUSED.get((network, name)))


@each_in_training
def test_trace_in_training(network):
    def call(c: FieldCase) -> Any:
        report = i.trace(c.network, c.variables, c.batch, loss=c.loss, mode=TRAIN, key=KEY)
        return numbers_of_trace(report)[:2]

    check(
        call,
        lambda c: [by_hand.loss_and_gradient(c, train=True)[0], norm_of_gradient(c, train=True)],
        field_case(network),
        None,
    )


@each_in_training
def test_hvp_in_training(network):
    def call(c: FieldCase) -> Any:
        given = {"loss": c.loss, "mode": TRAIN, "key": KEY}
        return vector(i.hvp(c.network, c.variables, c.batch, ones(c), **given))

    check(call, lambda c: by_hand.hessian(c, train=True).sum(1), field_case(network), None)


def test_what_make_test_runs():
    """Each instrument is there, and none of another name is refused."""
    assert {name for names in QUICK.values() for name in names} == set(CALLS)
    assert {name for _, name in REFUSED} <= set(CALLS)


def test_every_public_instrument_is_here():
    """Or has no network."""
    others = {
        *("average_fields", "critical_sigma_w", "mean_field", "receptive_fields"),
        *("cross_entropy", "error_rate", "half_mse", "takes_class_labels"),
        *("from_function", "from_nnx"),
        *("sharpness_path", "logged_sharpness", "edge_of_stability"),
    }
    functions = {name for name in i.__all__ if callable(getattr(i, name)) and name[0].islower()}
    assert functions == set(CALLS) | others
