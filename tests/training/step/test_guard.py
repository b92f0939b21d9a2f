"""What is a bad step and what follows from it: halted, left out, or gone back for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.analysis import TRAIN, first_nonfinite_layer
from deepjax.errors import NonFiniteError
from deepjax.models import create_model
from deepjax.training import RunOptions, TrainConfig, compile_training, train
from deepjax.training.checkpoint.inspect import digest
from deepjax.training.config import replace_options
from deepjax.training.guard_policy import Policy
from deepjax.training.metrics import diagnosis
from deepjax.training.metrics.diagnosis import explain
from deepjax.training.metrics.metrics_log import read_rows
from deepjax.training.step.guard import SPIKE_WARMUP, Running, all_finite, init_guard, judge
from tests.numpy_variables import numpy_variables

CONFIG = TrainConfig(model="cifar_plain20", width=2, batch_size=240, epochs=2)  # 5 steps an epoch
EVERY_2 = RunOptions(save_every=2)
GRADIENTS = {"kernel": jnp.ones((2, 2))}


def judged(policy: Policy, values: list[tuple[bool, float]]):
    """The steps that counted and the final guard, of steps that are finite or not, with losses."""
    guard, counted = init_guard(), []
    for step, (finite, loss) in enumerate(values):
        arguments = (
            jnp.asarray(step, jnp.int32),
            jnp.asarray(finite),
            jnp.asarray(loss, jnp.float32),
            GRADIENTS,
        )
        counts, guard = judge(guard, policy, *arguments)
        counted += [step] if counts else []
    return counted, guard


@pytest.mark.parametrize(
    ("policy", "counted", "halted", "skipped"),
    [
        (Policy("halt"), [0], 1, []),
        (Policy("rollback"), [0], 1, []),
        (Policy("skip"), [0, 2, 4], -1, [1, 3]),
        (Policy("skip", max_skipped_steps=1), [0, 2], 3, [1]),
        (Policy("skip", max_skipped_steps=0), [0], 1, []),
    ],
)
def test_a_bad_step_halts_or_is_left_out_within_the_budget(policy, counted, halted, skipped):
    got, guard = judged(policy, [(True, 1.0), (False, 1.0), (True, 1.0), (False, 1.0), (True, 1.0)])
    assert got == counted
    assert (int(guard.halted), [int(s) for s in guard.skipped if s >= 0]) == (halted, skipped)


def test_a_jump_of_the_loss_is_bad_after_the_warm_up_alone():
    rng = np.random.default_rng(0)
    losses = [(True, float(loss)) for loss in 2 + 0.1 * rng.standard_normal(SPIKE_WARMUP + 20)]
    losses[5], losses[-3] = (True, 50.0), (True, 50.0)
    counted, guard = judged(Policy("skip", spike_sigmas=6.0), losses)
    assert [step for step in range(len(losses)) if step not in counted] == [len(losses) - 3]
    assert float(guard.loss.mean) < 5  # a step that is left out moves no mean
    assert judged(Policy("skip"), losses)[0] == list(range(len(losses)))


def test_the_running_mean_and_variance_are_those_of_the_first_values():
    values = np.random.default_rng(1).standard_normal(40).astype(np.float32)
    running = Running(jnp.zeros(()), jnp.zeros(()))
    for seen, value in enumerate(values):
        running = running.update(jnp.asarray(value), jnp.asarray(seen))
    assert float(running.mean) == pytest.approx(values.mean(), abs=1e-5)
    assert float(running.var) == pytest.approx(values.var(), rel=1e-4)


@pytest.fixture(scope="module")
def programs():
    return compile_training(CONFIG)


def with_bad_labels(programs, config: TrainConfig, step: int):
    """The same programs, on data in which one image of a step has a label beyond the classes."""
    from deepjax.data.loader import batch_index

    labels = programs.train_split.labels.copy()
    labels[batch_index(len(labels), config.batch_size, config.seed, step)[3]] = 10
    return dataclasses.replace(
        programs,
        config=config,
        train_split=dataclasses.replace(programs.train_split, labels=labels),
    )


def build_with(programs, **fields):
    config = replace_options(CONFIG, **fields)
    return config, dataclasses.replace(compile_training(config), train_split=programs.train_split)


def test_a_bad_label_halts_with_its_image(programs, tmp_path):
    with pytest.raises(
        NonFiniteError, match=r"step 4 had labels outside 0 to 9 \(\d+ have 10\) \(training images"
    ):
        train(CONFIG, tmp_path, EVERY_2, programs=with_bad_labels(programs, CONFIG, 3))
    assert read_rows(tmp_path / "metrics.jsonl")[-1] == {"kind": "halted", "step": 4}


@pytest.mark.slow
def test_to_leave_out_and_to_go_back_end_alike(programs, tmp_path):
    """The image comes at step 3 and again in epoch 2: both policies count the same steps."""
    ends = []
    for policy in ("skip", "rollback"):
        config, built = build_with(programs, on_nonfinite=policy)
        result = train(
            config,
            tmp_path / policy,
            EVERY_2,
            programs=with_bad_labels(built, config, 3),
            say=lambda line: None,
        )
        rows = read_rows(tmp_path / policy / "metrics.jsonl")
        assert next(row["step"] for row in rows if row["kind"] == "skipped") == 4
        assert sum(row["kind"] == "rollback" for row in rows) == (2 if policy == "rollback" else 0)
        ends.append((digest(tmp_path / policy), result.test_error))
    assert ends[0] == ends[1]


def test_parameters_that_are_not_finite_are_named_in_the_order_of_the_forward_pass(programs):
    """By the alphabet `classifier` would come before `stem_conv`."""
    state = programs.fresh_state(CONFIG)
    params = jax.tree.map(lambda leaf: leaf * jnp.asarray(jnp.nan, leaf.dtype), state.params)
    batch = {"image": programs.train_split.images[:4], "label": programs.train_split.labels[:4]}
    assert "first in stem_conv/" in explain(
        programs, state.replace(params=params), batch, np.arange(4)
    )


def test_a_bad_step_is_explained_with_images_of_its_own_size(programs, monkeypatch):
    seen = []
    monkeypatch.setattr(
        diagnosis,
        "first_nonfinite_layer",
        lambda model, variables, images, mode: seen.append(images.shape[1]),
    )
    resizing = dataclasses.replace(
        programs, config=replace_options(CONFIG, progressive_sizes=(8, 12))
    )
    batch, state = (
        {"image": programs.train_split.images[:4], "label": programs.train_split.labels[:4]},
        programs.fresh_state(CONFIG),
    )
    for step in (0, CONFIG.total_steps - 1):
        explain(resizing, state.replace(step=state.step + step), batch, np.arange(4))
    assert seen == [8, 12]


def test_the_first_layer_that_is_not_finite_is_named():
    model = create_model("cifar_resnet20", width=2, stages=(1, 1))
    variables = numpy_variables(model, (8, 8, 1))
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    assert first_nonfinite_layer(model, variables, images) is None
    kernel = variables["params"]["stage2_block1"]["conv2"]["kernel"]
    variables["params"]["stage2_block1"]["conv2"]["kernel"] = kernel.at[0, 0, 0, 0].set(jnp.nan)
    assert first_nonfinite_layer(model, variables, images, mode=TRAIN) == "stage2_block1/conv2"


def test_one_number_that_is_not_finite_is_found_wherever_it_is():
    """In any leaf, of equal or different shapes and types, scalars too; and with few reductions."""
    tree = {
        "a": jnp.ones((2, 3)),
        "b": [jnp.ones((2, 3), jnp.bfloat16), jnp.ones(())],
        "c": (jnp.ones(3), jnp.ones((2, 3))),
    }
    leaves, structure = jax.tree.flatten(tree)
    assert all_finite(tree, jnp.ones(3))
    for number, leaf in enumerate(leaves):
        for bad in (jnp.nan, jnp.inf, -jnp.inf):
            broken = leaf.at[(-1,) * leaf.ndim].set(bad)
            assert not all_finite(
                jax.tree.unflatten(structure, [*leaves[:number], broken, *leaves[number + 1 :]]),
                jnp.ones(3),
            )
    assert str(jax.make_jaxpr(all_finite)(tree, jnp.ones(3))).count("reduce_and") == 3  # shapes
