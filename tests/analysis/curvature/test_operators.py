"""Products, eigenvalues and traces, validated against the full matrix by jax.hessian and jacrev."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from deepjax.analysis.core.mode import EVAL, TRAIN
from deepjax.analysis.curvature.gradient_subspace import gradient_subspace_overlap
from deepjax.analysis.curvature.operators import gnvp, hvp
from deepjax.analysis.curvature.spectrum import spectral_density, top_eigenvalues
from deepjax.analysis.curvature.trace import hessian_trace
from deepjax.errors import InputError
from tests.zoo import no_compilation


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(jnp.tanh(nn.Dense(4, name="first")(x.reshape(len(x), -1))))


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(3, (3, 3), use_bias=False, name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return x + jnp.tanh(nn.Dense(4, name="dense")(x)), None


class Scanned(nn.Module):
    """Scanned blocks with rematerialisation."""

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)[:, :4]
        stack = nn.scan(
            nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return nn.Dense(3, name="head")(stack(name="blocks")(x, None)[0])


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1)))


@jax.custom_vjp
def square(x):
    """Has a custom derivative, so that JAX has no forward mode for it."""
    return x * x


square.defvjp(lambda x: (x * x, x), lambda x, g: (2 * x * g,))


class Squared(nn.Module):
    @nn.compact
    def __call__(self, x):
        return square(nn.Dense(3)(x.reshape(len(x), -1)))


class Plain(nn.Module):
    """The same without a custom derivative."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3)(x.reshape(len(x), -1))
        return x * x


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x.reshape(len(x), -1))


def batch_of(size=12, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((size, 4, 4, 1), np.float32)), jnp.asarray(
        rng.integers(0, 3, size)
    )


def init(model):
    """Variables with running statistics that differ from those of the batch."""
    variables = model.init(jax.random.key(0), batch_of()[0])
    return {
        **variables,
        **jax.tree.map(
            lambda leaf: leaf + 0.3, {key: variables[key] for key in variables if key != "params"}
        ),
    }


def functions(model, variables, batch, mode):
    """(outputs, loss of outputs, flat parameters), without the instrument."""
    flat, unravel = ravel_pytree(variables["params"])
    switch = {} if not isinstance(model, Cnn) else {"train": mode.train}

    def outputs(flat):
        return model.apply(
            {**variables, "params": unravel(flat)}, batch[0], mutable=["batch_stats"], **switch
        )[0]

    def loss(outputs):
        return -jnp.mean(jax.nn.log_softmax(outputs)[jnp.arange(len(batch[1])), batch[1]])

    return outputs, loss, flat


def full_matrix(model, variables, batch, operator="hessian", mode=EVAL):
    """The matrix, formed."""
    outputs, loss, flat = functions(model, variables, batch, mode)
    if operator == "hessian":
        return np.asarray(jax.jit(jax.hessian(lambda flat: loss(outputs(flat))))(flat), float)
    jacobian = jax.jit(jax.jacrev(outputs))(flat).reshape(-1, flat.size)
    inner = jax.hessian(loss)(outputs(flat)).reshape(len(jacobian), len(jacobian))
    return np.asarray(jacobian.T @ inner @ jacobian, float)


def random_like(tree, seed=0):
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.random.normal(jax.random.key(seed), flat.shape))


def flat_of(tree):
    return np.asarray(ravel_pytree(tree)[0], float)


def close(found, wanted, tolerance=1e-5):
    assert np.linalg.norm(found - wanted) <= tolerance * np.linalg.norm(wanted)


def squared(outputs, batch):
    return jnp.mean(jnp.sum(jnp.square(outputs - jax.nn.one_hot(batch[1], 3)), axis=1))


CASES = [(Mlp(), EVAL), (Cnn(), EVAL), (Cnn(), TRAIN), (Scanned(), EVAL)]
each_case = pytest.mark.parametrize(
    ("model", "mode"),
    CASES,
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)


@each_case
@pytest.mark.parametrize("operator", ["hessian", "gauss_newton"])
def test_products_eigenvalues_and_trace_are_those_of_the_full_matrix(model, mode, operator):
    variables, batch = init(model), batch_of()
    matrix = full_matrix(model, variables, batch, operator, mode)
    vector = random_like(variables["params"])
    product = {"hessian": hvp, "gauss_newton": gnvp}[operator](
        model, variables, batch, vector, mode=mode
    )
    close(flat_of(product), matrix @ flat_of(vector))

    true, options = np.linalg.eigvalsh(matrix), {"operator": operator, "mode": mode}
    found = top_eigenvalues(model, variables, batch, 3, keep=True, **options)
    np.testing.assert_allclose(found.values, true[np.argsort(-np.abs(true))[:3]], rtol=1e-4)
    assert (found.residuals < 1e-4 * abs(found.values[0])).all()
    for value, vector in zip(found.values, found.vectors, strict=True):
        np.testing.assert_allclose(
            matrix @ flat_of(vector), value * flat_of(vector), atol=1e-4 * abs(value)
        )

    trace = hessian_trace(model, variables, batch, probes=64, **options)
    assert abs(trace.trace - np.trace(matrix)) < 4 * trace.error
    # Hutchinson 1990: the variance of an estimate is twice the sum of squared off-diagonal entries.
    assert trace.error == pytest.approx(
        np.sqrt(2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)) / 64), rel=0.4
    )
    assert trace.matrix.mode == mode and trace.matrix.has_batch_norm == isinstance(model, Cnn)


def test_batch_statistics_add_curvature():
    variables, batch = init(Cnn()), batch_of()
    running, own = (full_matrix(Cnn(), variables, batch, mode=mode) for mode in (EVAL, TRAIN))
    assert np.linalg.norm(running - own) > 0.1 * np.linalg.norm(own)
    # With batch statistics the loss does not depend on the norm of the kernel w: w^T H w = 0.
    kernel = {"conv": variables["params"]["conv"]}
    of_batch, of_running = (
        flat_of(kernel) @ flat_of(hvp(Cnn(), variables, batch, kernel, mode=mode, layers="conv"))
        for mode in (TRAIN, EVAL)
    )
    assert abs(of_batch) < 1e-3 * abs(of_running)


@pytest.mark.parametrize("product", [hvp, gnvp])
def test_the_matrices_are_symmetric(product):
    variables, batch = init(Cnn()), batch_of()
    v, w = (random_like(variables["params"], seed) for seed in (1, 2))
    left, right = (
        flat_of(a) @ flat_of(product(Cnn(), variables, batch, b, mode=TRAIN))
        for a, b in ((v, w), (w, v))
    )
    assert left == pytest.approx(right, rel=1e-4)


def test_gauss_newton_is_the_hessian_of_a_linear_network_with_squared_loss():
    variables, batch = init(Linear()), batch_of()
    vector = random_like(variables["params"])
    a, b = (
        flat_of(product(Linear(), variables, batch, vector, loss=squared))
        for product in (hvp, gnvp)
    )
    close(a, b)


def test_gauss_newton_is_the_fisher_matrix_under_cross_entropy():
    """Mean over the examples of the sum over classes of p(c) g(c) g(c)^T (Martens 2020, section 5).

    g(c) is the gradient of -log p(c).
    """
    variables, batch = init(Mlp()), batch_of(4)
    outputs, _, flat = functions(Mlp(), variables, batch, EVAL)
    # (examples, classes, parameters)
    scores = jax.jacrev(lambda flat: jax.nn.log_softmax(outputs(flat)))(flat)
    fisher = jnp.einsum("nc,ncp,ncq->pq", jax.nn.softmax(outputs(flat)), scores, scores) / 4
    vector = random_like(variables["params"])
    close(
        flat_of(gnvp(Mlp(), variables, batch, vector)), np.asarray(fisher, float) @ flat_of(vector)
    )


@pytest.mark.parametrize("layers", ["head", ("conv", "head/bias")])
def test_layers_give_the_block_of_the_matrix(layers):
    variables, batch = init(Cnn()), batch_of()
    names = (layers,) if isinstance(layers, str) else layers

    def mask(path, leaf):
        return jnp.full(leaf.shape, "/".join(key.key for key in path).startswith(names))

    chosen, _ = ravel_pytree(jax.tree_util.tree_map_with_path(mask, variables["params"]))
    block = full_matrix(Cnn(), variables, batch)[np.ix_(chosen, chosen)]
    found = top_eigenvalues(Cnn(), variables, batch, 2, layers=layers, which="largest")
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(block)[::-1][:2], rtol=1e-4)
    assert found.matrix.parameters == len(block) and found.matrix.layers == names


@pytest.mark.parametrize("mode", [EVAL, TRAIN])
def test_a_list_of_batches_is_their_mean(mode):
    variables, batches = init(Cnn()), [batch_of(6, seed) for seed in range(3)]
    vector = random_like(variables["params"])
    found = flat_of(hvp(Cnn(), variables, batches, vector, mode=mode))
    close(
        found,
        sum(full_matrix(Cnn(), variables, each, mode=mode) for each in batches)
        / 3
        @ flat_of(vector),
    )
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *batches)
    all_at_once = flat_of(hvp(Cnn(), variables, joined, vector, mode=mode))
    assert np.allclose(found, all_at_once, rtol=1e-3, atol=1e-5) == (mode == EVAL)


def test_dropout_is_off_in_evaluation_and_its_masks_are_fixed_in_training():
    variables, batch = init(Dropped()), batch_of()
    vector = random_like(variables["params"])
    still, first, again = (
        flat_of(hvp(Dropped(), variables, batch, vector, mode=mode))
        for mode in (EVAL, TRAIN, TRAIN)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, still, rtol=0.01)
    close(still, full_matrix(Linear(), variables, batch) @ flat_of(vector))


def test_a_network_with_derivatives_of_its_own():
    variables, batch = init(Squared()), batch_of()
    vector = random_like(variables["params"])
    for operator, product in (("hessian", hvp), ("gauss_newton", gnvp)):
        wanted = full_matrix(Plain(), variables, batch, operator) @ flat_of(vector)
        close(flat_of(product(Squared(), variables, batch, vector)), wanted)


def test_parameters_of_half_precision():
    """A bfloat16 network with bfloat16 parameters: the vectors and the product are float32."""
    model = nn.Dense(3, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16)
    x, y = batch_of()
    x = x.reshape(len(x), -1)
    variables = model.init(jax.random.key(0), x)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), variables)
    vector = random_like(wide["params"])
    exact = gnvp(nn.Dense(3), wide, (x, y), vector)
    product = gnvp(model, variables, (x, y), vector)
    assert {leaf.dtype for leaf in jax.tree.leaves(product)} == {jnp.dtype(jnp.float32)}
    close(flat_of(product), flat_of(exact), 0.05)


def test_nothing_compiles_twice():
    def everything(variables, batch):
        hvp(Mlp(), variables, batch, variables["params"])
        hessian_trace(Mlp(), variables, batch, probes=2)
        spectral_density(Mlp(), variables, batch, steps=5, probes=2)
        top_eigenvalues(Mlp(), variables, batch, 2, steps=5)
        gradient_subspace_overlap(Mlp(), variables, batch, 2, steps=5)

    variables = init(Mlp())
    everything(variables, batch_of())
    other = jax.tree.map(lambda leaf: 2 * leaf, variables), batch_of(seed=1)
    with no_compilation():
        everything(*other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "haed"}, "layer 'haed' is unknown; did you mean 'head'"),
        ({"layers": ()}, r"layers is \(\); allowed: None, or the path"),
        ({"mode": "frozen"}, "mode is 'frozen'; allowed: EVAL, TRAIN or Ghost"),
        ({"operator": "kfac"}, "operator is 'kfac'; allowed: 'hessian', 'gauss_newton'"),
        ({"probes": 0}, "probes is 0; allowed: 1 or more"),
        (
            {"loss": lambda outputs, batch: outputs},
            r"loss returned the shape \(12, 3\); allowed: a scalar",
        ),
        (
            {"loss": lambda outputs, batch: jnp.sum(outputs) * jnp.nan},
            "curvature is nan; allowed: finite values",
        ),
        (
            {"batch": (jnp.ones((12, 4, 4, 2)), batch_of()[1])},
            "Cnn cannot take a batch with inputs of shape",
        ),
        ({"batch": [batch_of(4), batch_of(6)]}, "batches of one size"),
        ({"variables": {"batch_stats": {}}}, "'params' is missing"),
    ],
)
def test_what_cannot_be_computed(options, message):
    given = {"variables": init(Cnn()), "batch": batch_of(), **options}
    variables, batch = given.pop("variables"), given.pop("batch")
    with pytest.raises(InputError, match=message):
        hessian_trace(Cnn(), variables, batch, **given)


def test_vectors_that_do_not_fit():
    variables, batch = init(Cnn()), batch_of()
    with pytest.raises(InputError, match="vector is a tree without 'conv/kernel'"):
        hvp(Cnn(), variables, batch, {"head": variables["params"]["head"]})
    with pytest.raises(InputError, match="vector is a tree with 'conv/kernel'"):
        hvp(Cnn(), variables, batch, variables["params"], layers="head")
    with pytest.raises(
        InputError, match=r"vector's conv/kernel is 'of shape \(\)'; allowed: \(3, 3, 1, 3\)"
    ):
        hvp(Cnn(), variables, batch, {**variables["params"], "conv": {"kernel": jnp.ones(())}})


def test_progress_and_the_figure_of_a_trace():
    seen = []
    found = hessian_trace(
        Mlp(), init(Mlp()), batch_of(), probes=5, progress=lambda *done: seen.append(done)
    )
    assert seen == [(done, 5) for done in range(1, 6)]
    last = found.rows()[-1]
    assert (last["trace"], last["error"]) == (found.trace, found.error) and len(found.rows()) == 5
    assert found.mean_eigenvalue == found.trace / found.matrix.parameters
    ax = found.plot()
    assert (
        ax.get_title("left").startswith(f"Hessian: trace {found.trace:.3g} ±")
        and found.plot(ax) is ax
    )
