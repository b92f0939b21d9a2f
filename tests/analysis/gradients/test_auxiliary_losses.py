"""Contributions of losses: each by a gradient of its own, on a network with two heads."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from deepjax.analysis import EVAL, TRAIN, from_function, from_nnx
from deepjax.analysis.gradients.auxiliary_losses import loss_contributions
from deepjax.analysis.network.module import cross_entropy
from deepjax.errors import InputError
from tests.analysis.counting import CountCalls


class Net(nn.Module):
    """Heads zeta on the first layer, alpha on the second; the third and last are main only."""

    heads: bool = True
    twice: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Dense(8, name="first")(x))
        if self.heads:
            self.sow("auxiliary", "zeta", nn.Dense(3, name="head_zeta")(x))
        x = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(8, name="second")(x))
        if self.heads:
            alpha = nn.Dense(3, name="head_alpha")(x)
            self.sow("auxiliary", "zeta" if self.twice else "alpha", alpha)
        x = nn.relu(nn.Dense(8, name="third")(x))
        return nn.Dense(3, name="last")(x)


def batch_of(count=6, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((count, 5), np.float32)), jnp.asarray(
        rng.integers(0, 3, count)
    )


def initialised(model, seed=0):
    return model.init(jax.random.key(seed), batch_of()[0])


def entropy(logits, labels):
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(labels, 3), axis=-1))


def separately(variables, batch, train):
    """{loss: (value, {layer: flat gradient})}, a gradient a loss."""
    state = {"batch_stats": variables["batch_stats"]}

    def losses(params):
        outputs, sown = Net().apply(
            {"params": params, **state}, batch[0], train=train, mutable=["auxiliary", "batch_stats"]
        )
        heads = {name: sown["auxiliary"][name][0] for name in ("zeta", "alpha")}
        return {
            name: entropy(logits, batch[1]) for name, logits in ({"main": outputs} | heads).items()
        }

    found = {}
    for name in ("main", "zeta", "alpha"):
        value, gradients = jax.value_and_grad(lambda params, name=name: losses(params)[name])(
            variables["params"]
        )
        flat = {
            layer: np.concatenate([np.ravel(leaf) for leaf in leaves.values()])
            for layer, leaves in gradients.items()
        }
        found[name] = float(value), flat
    return found


@pytest.mark.parametrize("mode", [TRAIN, EVAL])
@pytest.mark.parametrize(
    ("weights", "scales"),
    [
        (0.3, {"main": 1, "zeta": 0.3, "alpha": 0.3}),
        # A head that is not named has GoogLeNet's weight.
        ({"alpha": 0.5}, {"main": 1, "zeta": 0.3, "alpha": 0.5}),
        ({"alpha": 2.0, "zeta": 0.0}, {"main": 1, "zeta": 0, "alpha": 2}),
    ],
)
def test_each_loss_by_its_own_gradient(weights, scales, mode):
    batch = batch_of()
    variables = initialised(Net())
    expected = separately(variables, batch, mode.train)
    found = loss_contributions(Net(), variables, batch, weights=weights, mode=mode)
    assert found.weights == pytest.approx(scales) and list(found.losses) == [
        "main",
        "zeta",
        "alpha",
    ]
    assert found.losses == pytest.approx(
        {name: value for name, (value, _) in expected.items()}, rel=1e-5
    )
    assert len(found.layers) == 3 * len(variables["params"])
    for row in found.layers:
        each = {name: gradients[row.layer] for name, (_, gradients) in expected.items()}
        norms = {name: np.linalg.norm(gradient) for name, gradient in each.items()}
        total = sum(scales[name] * norm for name, norm in norms.items())
        assert row.norm == pytest.approx(norms[row.loss], rel=1e-4, abs=1e-6)
        assert row.fraction == pytest.approx(
            scales[row.loss] * norms[row.loss] / total if total else 0, rel=1e-4, abs=1e-6
        )
        if norms[row.loss] and norms["main"]:
            cosine = each[row.loss] @ each["main"] / (norms[row.loss] * norms["main"])
            assert row.cosine == pytest.approx(cosine, abs=1e-4)
        else:
            assert math.isnan(row.cosine)


def test_which_loss_reaches_which_layer():
    """The order is the forward pass's: the last layer is the last call but the network's."""
    found = loss_contributions(Net(), initialised(Net()), batch_of())
    reached = {}
    for row in found.rows():
        reached.setdefault(row["layer"], set()).update(
            {row["loss"]} if row["fraction"] > 0 else set()
        )
    assert list(reached) == ["first", "head_zeta", "second", "norm", "head_alpha", "third", "last"]
    assert reached == {
        "first": {"main", "zeta", "alpha"},
        "head_zeta": {"zeta"},
        "second": {"main", "alpha"},
        "norm": {"main", "alpha"},
        "head_alpha": {"alpha"},
        "third": {"main"},
        "last": {"main"},
    }
    assert found.shared_layers == ("first", "second", "norm")


def test_two_logits_under_one_name_are_two_losses():
    batch, model = batch_of(), Net(twice=True)
    variables = initialised(Net())  # the same parameters
    twice, once = (
        loss_contributions(model, variables, batch),
        loss_contributions(Net(), variables, batch),
    )
    assert list(twice.losses) == ["main", "zeta/0", "zeta/1"]
    assert list(twice.losses.values()) == pytest.approx(list(once.losses.values()), rel=1e-6)


def test_what_initialisation_has_sown_does_not_count():
    variables = initialised(Net())
    assert "auxiliary" in variables
    bare = {name: tree for name, tree in variables.items() if name != "auxiliary"}
    assert (
        loss_contributions(Net(), variables, batch_of()).rows()[0]
        == loss_contributions(Net(), bare, batch_of()).rows()[0]
    )


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            Net(heads=False),
            {},
            "Net has no auxiliary heads: its call sows nothing into the collection 'auxiliary'",
        ),
        (Net(), {"weights": {"zet": 0.3}}, "head 'zet' is unknown; did you mean 'zeta'"),
        (Net(), {"weights": {"main": 0.3}}, "head 'main' is unknown"),
        (Net(), {"weights": {"alpha": -1}}, "weight of alpha is -1; allowed: 0 or more"),
        (Net(), {"weights": -0.3}, "weight of zeta is -0.3"),
        (Net(), {"batch": batch_of()[0]}, "batch has no labels"),
        (Net(), {"layers": "frst"}, "layer 'frst' is unknown; did you mean 'first'"),
        (Net(), {"batch": (jnp.zeros((6, 4)), batch_of()[1])}, "Net cannot take a batch"),
        (Net(), {"loss": lambda outputs, batch: outputs}, r"loss returned the shape \(6, 3\)"),
    ],
)
def test_what_has_no_shares(model, options, message):
    given = {"batch": batch_of()} | options
    with pytest.raises(InputError, match=message):
        loss_contributions(model, initialised(model), given.pop("batch"), **given)


def test_a_loss_that_is_no_scalar_for_a_head():
    def loss(logits, batch):
        return jnp.mean(logits) if logits.shape[-1] == 3 else logits

    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.sow("auxiliary", "wide", nn.Dense(4)(x))
            return nn.Dense(3)(x)

    with pytest.raises(
        InputError, match=r"loss is 'of shape \(6, 4\) for wide'; allowed: a scalar"
    ):
        loss_contributions(
            Wide(), Wide().init(jax.random.key(0), batch_of()[0]), batch_of(), loss=loss
        )


class Auxiliary(nnx.Variable):
    """A collection of its own, as an alternative to its name."""


class NnxNet(nnx.Module):
    """`Net` in NNX, with the parameters of linen."""

    def __init__(self, variables):
        rngs, params = nnx.Rngs(0), variables["params"]
        self.first, self.second, self.third, self.last, self.head_zeta, self.head_alpha = (
            nnx.Linear(*params[name]["kernel"].shape, rngs=rngs)
            for name in ("first", "second", "third", "last", "head_zeta", "head_alpha")
        )
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        for name, layer in params.items():
            for part, value in layer.items():
                getattr(getattr(self, name), part).set_value(value)

    def __call__(self, x):
        x = nnx.relu(self.first(x))
        self.sow("auxiliary", "zeta", self.head_zeta(x))
        x = self.norm(self.second(x))
        self.sow(Auxiliary, "alpha", self.head_alpha(x))
        return self.last(nnx.relu(self.third(x)))


@pytest.mark.parametrize("mode", [TRAIN, EVAL])
def test_heads_of_an_nnx_module(mode):
    """Its names come sorted by kind of variable, so that losses are compared by name."""
    variables, batch = initialised(Net()), batch_of()
    module = NnxNet(variables)
    found = loss_contributions(*from_nnx(module), batch, mode=mode)
    wanted = loss_contributions(Net(), variables, batch, mode=mode)
    assert found.losses == pytest.approx(wanted.losses, rel=1e-5)
    rows = {(row.layer, row.loss): row for row in found.layers}
    assert len(rows) == len(wanted.layers)
    for row in wanted.layers:
        other = rows[row.layer, row.loss]
        assert other.norm == pytest.approx(row.norm, rel=1e-4, abs=1e-6)
        assert other.fraction == pytest.approx(row.fraction, rel=1e-4, abs=1e-6)
    with pytest.warns(DeprecationWarning, match="sow"):
        module(batch[0])  # leaves what it has sown in the module
    again = loss_contributions(*from_nnx(module), batch, mode=EVAL)
    assert set(again.losses) == set(wanted.losses)


def test_several_batches_selected_layers_and_functions():
    """In evaluation, where the mean over batches is the joined batch."""
    variables, (x, y) = initialised(Net()), batch_of()
    joined = loss_contributions(Net(), variables, (x, y), mode=EVAL)
    parts = [{"image": x[:3], "label": y[:3]}, {"image": x[3:], "label": y[3:]}]
    several = loss_contributions(Net(), variables, parts, mode=EVAL, layers=["f*", "norm"])
    assert several.losses == pytest.approx(joined.losses, rel=1e-5)
    wanted = [row for row in joined.layers if row.layer in ("first", "norm")]
    assert len(several.layers) == len(wanted) == 6
    for one, other in zip(several.layers, wanted, strict=True):
        assert (one.layer, one.loss) == (other.layer, other.loss)
        assert one.norm == pytest.approx(other.norm, rel=1e-4, abs=1e-6)
        assert one.cosine == pytest.approx(other.cosine, abs=1e-4, nan_ok=True)
    with pytest.raises(InputError, match="which has no layers; loss_contributions takes"):
        loss_contributions(from_function(lambda w, x: x @ w), jnp.ones((5, 3)), (x, y))


def test_nothing_compiles_twice_and_the_figure_shows_the_finding():
    loss = CountCalls(cross_entropy)
    found = loss_contributions(Net(), initialised(Net()), batch_of(), loss=loss)
    traces, weights = loss.calls, {"alpha": 1.0}  # weights are not compiled in
    loss_contributions(Net(), initialised(Net(), 1), batch_of(seed=1), loss=loss, weights=weights)
    assert loss.calls == traces
    main = [
        row.fraction
        for row in found.layers
        if row.loss == "main" and row.layer in found.shared_layers
    ]
    ax = found.plot()
    assert f"from {100 * (1 - max(main)):.0f} to {100 * (1 - min(main)):.0f} %" in ax.get_title(
        "left"
    )
    assert [text.get_text() for text in ax.get_xticklabels()] == list(found.shared_layers)
    np.testing.assert_allclose(
        [bar.get_y() + bar.get_height() for bar in ax.patches[-3:]], 1, rtol=1e-5
    )
    assert ax.get_title("left").endswith("6 examples, batch statistics")
    assert found.plot(title="Mine").get_title("left") == "Mine"
    assert repr(found).startswith("LossContributions: main loss ")
    assert found.summary()["greatest fraction"] == pytest.approx(1 - min(main))
