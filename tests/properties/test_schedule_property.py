"""Schedules against their closed forms in float64, of any length and for any configuration."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepjax.errors import InputError
from deepjax.training import TrainConfig
from deepjax.training.config import options_of, replace_options, train_config
from deepjax.training.run_directory.config_file import init_run_dir, read_config
from deepjax.training.step.optimizers import make_schedule
from tests.properties.examples import examples

SCHEDULES = ("cosine", "linear", "root", "step", "exponential", "constant")
# Steps at which a schedule is evaluated: always as many, so that nothing is compiled again.
SAMPLED = 64

fractions = st.floats(0.001, 0.999)
milestones = st.lists(fractions, max_size=6, unique=True).map(sorted).map(tuple)


@st.composite
def configs(draw: st.DrawFn, schedule: str) -> TrainConfig:
    """Short trainings mostly, whose milestones coincide, whose warm-up is longer than they are."""
    steps = draw(st.integers(1, 12) | st.integers(1, 2000) | st.integers(1, 1_000_000))
    return train_config(
        model="cifar_resnet20",
        steps=steps,
        batch_size=draw(st.sampled_from([64, 500, 1437])),  # 22, 2 and 1 steps an epoch
        schedule=schedule,
        milestones=draw(milestones),
        decay_rate=draw(st.floats(0.01, 1.0)),
        decay_epochs=draw(st.floats(1.0, 50.0)),
        warmup_epochs=draw(st.just(0.0) | st.floats(0.0, 30.0)),
    )


def sampled(total: int) -> np.ndarray:
    """The first steps, the last ones, and some between."""
    steps = np.unique(
        np.concatenate(
            [np.arange(24), total - 1 - np.arange(16), np.linspace(0, total - 1, 24).astype(int)]
        )
    )
    steps = steps[(steps >= 0) & (steps < total)]
    return np.resize(steps, SAMPLED)


def closed_form(config: TrainConfig, step: int) -> float:
    """The fraction of the peak rate at a step, by itself."""
    total = config.total_steps
    warmup = min(round(config.optimization.warmup_epochs * config.steps_per_epoch), total - 1)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / (total - warmup)
    passed = sum(
        step >= max(1, round(milestone * total)) for milestone in config.optimization.milestones
    )
    every = round(config.optimization.decay_epochs * config.steps_per_epoch)
    return {
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "linear": 1 - done,
        "root": math.sqrt(1 - done),
        "step": 0.1**passed,
        "exponential": config.optimization.decay_rate ** ((step - warmup) // every),
        "constant": 1.0,
    }[config.optimization.schedule]


@pytest.mark.parametrize("schedule", SCHEDULES)
@examples(few=30, many=10_000)
@given(st.data())
def test_a_schedule_is_its_closed_form(schedule, data):
    config = data.draw(configs(schedule))
    steps = sampled(config.total_steps)
    rates = np.asarray(make_schedule(config)(jnp.asarray(steps, jnp.int32)))
    # Of float32: near the end of a million steps 1 - done has few digits left.
    rounding = 1e-4 if schedule == "root" else 1e-6
    # A decay rate in float32 is off by up to 6e-8, and its powers by as many times that.
    decays = (
        config.total_steps // round(config.optimization.decay_epochs * config.steps_per_epoch)
        if schedule == "exponential"
        else 0
    )
    relative = 2e-5 + 6e-8 * decays
    np.testing.assert_allclose(
        rates, [closed_form(config, int(step)) for step in steps], rtol=relative, atol=rounding
    )
    assert np.all((rates >= 0) & (rates <= 1)), "no step is above the peak"


@pytest.mark.parametrize("schedule", SCHEDULES)
@examples(few=10, many=1_000)
@given(st.data())
def test_no_step_of_a_training_has_rate_zero_and_only_the_warm_up_rises(schedule, data):
    config = replace_options(
        data.draw(configs(schedule)), steps=data.draw(st.integers(1, SAMPLED)), decay_rate=0.5
    )
    rates = np.asarray(make_schedule(config)(jnp.arange(SAMPLED, dtype=jnp.int32)))[
        : config.total_steps
    ]
    warmup = min(
        round(config.optimization.warmup_epochs * config.steps_per_epoch), config.total_steps - 1
    )
    assert np.all(rates > 0)
    assert np.all(np.diff(rates[:warmup]) > 0) and np.all(np.diff(rates[warmup:]) <= 0)


def values_of(default: object) -> st.SearchStrategy:
    """Values of the type of a default, legal or not."""
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, tuple):
        return st.lists(st.floats(0.01, 0.99) | st.integers(1, 64), max_size=3).map(tuple)
    if isinstance(default, str):
        return st.sampled_from(
            [
                "none",
                "halt",
                "skip",
                "sgd",
                "adamw",
                "cosine",
                "step",
                "global",
                "bfloat16",
                "digits",
            ]
        )
    return st.floats(0, 1) | st.integers(0, 300)


DEFAULTS = {
    name: default
    for name, default in options_of(TrainConfig("cifar_resnet20")).items()
    if name not in ("model", "dataset")
}


@examples(few=50, many=10_000)
@given(st.lists(st.sampled_from(sorted(DEFAULTS)), max_size=6, unique=True), st.data())
def test_any_configuration_is_refused_by_name_or_means_something(names, data):
    changes = {name: data.draw(values_of(DEFAULTS[name])) for name in names}
    try:
        config = train_config(model="cifar_resnet20", **changes)
        total, schedule = config.total_steps, make_schedule(config)
    except InputError as error:
        assert any(name in str(error) for name in changes) and "\n" not in str(error)
        return
    with jax.ensure_compile_time_eval():
        rates = np.asarray(
            schedule(
                jnp.asarray(np.resize(np.unique([0, total // 2, total - 1]), SAMPLED), jnp.int32)
            )
        )
    assert np.all((rates >= 0) & (rates <= 1))
    shapes = [config.shape_at(step) for step in (0, total // 2, total - 1)]
    assert (
        all(min(shape) >= 1 for shape in (*shapes, config.eval_shape))
        and shapes[-1] == config.input_shape
    )


@examples(few=10, many=1_000)
@given(configs("step"))
def test_a_configuration_that_is_stored_is_read_again(config):
    stored = json.loads(json.dumps(options_of(config)))
    assert (
        train_config(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in stored.items()
            }
        )
        == config
    )


def test_a_claimed_directory_holds_the_configuration(tmp_path):
    config = train_config(model="cifar_resnet20", milestones=(1 / 3, 2 / 3), warmup_epochs=0.1)
    init_run_dir(tmp_path, config)
    assert read_config(tmp_path) == config
