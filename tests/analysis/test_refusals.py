"""docs/refusals.md is what the tables of the tests say, and its advice works."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deepjax.analysis as i
from deepjax.analysis import EVAL
from tests.analysis import field_expectations as by_hand
from tests.analysis.field_cases import EXAMPLES, FieldCase, field_case
from tests.analysis.field_expectations import KEY
from tests.analysis.refusals import PAGE, REASONS, page
from tests.analysis.test_every_instrument import REFUSED as OF_FORMS
from tests.analysis.test_field_networks import CALLS, Cell, by, check, marks, without_loss
from tests.analysis.test_field_networks import REFUSED as OF_NETWORKS
from tests.zoo.field import Decoder


def test_the_page_is_current():
    """`python -m tests.analysis.refusals` writes it."""
    assert PAGE.read_text() == page()


def test_each_reason_has_words_and_is_used():
    assert set(REASONS) == {*OF_FORMS.values(), *OF_NETWORKS.values()}


def kernel_of_means(c: FieldCase) -> np.ndarray:
    return by_hand.kernel(dataclasses.replace(c, call=lambda *given: c.call(*given)["mean"]))


def without_cache(c: FieldCase) -> FieldCase:
    """The decoder as in training: all tokens at a time."""
    module = Decoder(decode=False)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 5, (EXAMPLES, 4)), jnp.int32)
    return dataclasses.replace(
        c,
        network=module,
        variables={"params": c.variables["params"]},
        batch=(tokens, jnp.roll(tokens, -1, axis=1)),
        call=lambda variables, batch, train, key: module.apply(variables, batch[0]),
    )


def with_mean_logits(c: FieldCase) -> FieldCase:
    def call(*given: Any) -> Any:
        return c.call(*given).mean((1, 2))

    network = i.Network(c.network, output=lambda logits: logits.mean((1, 2)))
    return dataclasses.replace(c, network=network, call=call)


def with_floats(c: FieldCase) -> FieldCase:
    return dataclasses.replace(c, batch=(c.batch[0].astype(jnp.float32), c.batch[1]))


def with_labels_of_members(c: FieldCase) -> FieldCase:
    labels = jnp.broadcast_to(c.batch[1][:, None], (EXAMPLES, 2))
    return dataclasses.replace(c, batch=(c.batch[0], labels), loss=i.cross_entropy)


def graphs(c: FieldCase) -> list[Any]:
    graph, labels = c.batch
    return [c.batch, (graph._replace(nodes=2 * graph.nodes), labels)]


def products_of_graphs(c: FieldCase) -> np.ndarray:
    found = [
        jax.grad(lambda p, b=batch: by_hand.loss(c, p, b))(by_hand.flat(c)) for batch in graphs(c)
    ]
    return np.asarray(found, float) @ np.asarray(found, float).T


def line_of_graphs(c: FieldCase) -> np.ndarray:
    def of_one(params: Any, graph: Any) -> Any:
        return c.call({"params": params}, (graph,), False, KEY)

    network = i.from_function(jax.vmap(of_one, in_axes=(None, 0)))
    first, second = ((graph, None) for graph, _ in graphs(c))
    options: dict[str, Any] = {"mode": EVAL, "key": KEY}
    return i.gradient_line(network, c.variables["params"], first, second, 5, **options).gradient


def slopes_of_graphs(c: FieldCase) -> list[float]:
    """The derivative of the sum of the outputs by the length along the line."""
    graph, length = c.batch[0], jnp.linalg.norm(c.batch[0].nodes)

    def value(factor: Any) -> Any:
        given = (graph._replace(nodes=factor * graph.nodes), None)
        return by_hand.output_sum(by_hand.outputs(c, by_hand.flat(c), given))

    return [float(jax.grad(value)(1 + place) / length) for place in (0.0, 0.25, 0.5, 0.75, 1.0)]


ADVICE: dict[str, tuple[str, Cell, Cell]] = {
    "one of several outputs": (
        "vae",
        lambda c: (
            i.ntk(
                i.Network(c.network, output="mean"), c.variables, c.batch, output="trace", key=KEY
            ).matrix
        ),
        kernel_of_means,
    ),
    "no cache": (
        "decoder",
        lambda c: by("gradient_confusion")(without_cache(c)).products,
        lambda c: (g := by_hand.gradients(without_cache(c))) @ g.T,
    ),
    "a score": (
        "unet",
        lambda c: without_loss("grad_cam", "middle")(with_mean_logits(c)).maps,
        lambda c: by_hand.grad_cam_maps(with_mean_logits(c), "middle"),
    ),
    "floats": (
        "actor_critic",
        lambda c: CALLS["shattering"][0](with_floats(c)),
        lambda c: by_hand.input_cosine(with_floats(c)),
    ),
    "labels of the shape of the outputs": (
        "ensemble",
        lambda c: without_loss("fisher")(with_labels_of_members(c)).todense(),
        lambda c: by_hand.gauss_newton(with_labels_of_members(c)),
    ),
    "a list of graphs": (
        "graph",
        lambda c: i.gradient_confusion(c.network, c.variables, graphs(c)).products,
        products_of_graphs,
    ),
    "a network that takes a batch of graphs": ("graph", line_of_graphs, slopes_of_graphs),
}
"""What a refusal advises, (network, call, by hand)."""


@pytest.mark.parametrize(
    "advice", [pytest.param(each, marks=marks("batch of graphs" in each)) for each in ADVICE]
)
def test_what_a_refusal_advises(advice):
    network, call, wanted = ADVICE[advice]
    check(call, wanted, field_case(network), None)
