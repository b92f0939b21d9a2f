"""JAX settings of random numbers and precision: stored in the run, refused by name if changed."""

import contextlib
import dataclasses
import json

import jax
import pytest

from deepjax.errors import InputError
from deepjax.study.arms.runs import is_run_of
from deepjax.training import TrainConfig, train
from deepjax.training.run_directory.config_file import init_run_dir
from deepjax.training.run_directory.numerics import (
    DEFAULTS,
    NAME,
    XLA_FLAGS,
    claim_numerics,
    numerics,
)

CONFIG = TrainConfig(model="cifar_plain20", width=2)
CHANGES = {
    "jax_default_matmul_precision": "highest",
    "jax_default_prng_impl": "rbg",
    "jax_enable_x64": True,
    "jax_random_seed_offset": 1,
    "jax_softmax_custom_jvp": True,
    "jax_threefry_partitionable": False,
}


@contextlib.contextmanager
def setting(name, value):
    """Another value of a setting of JAX until the block ends."""
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


def test_jax_s_own_settings_are_those_of_older_runs():
    assert {name: value for name, value in numerics({}).items() if name in DEFAULTS} == DEFAULTS
    assert set(CHANGES) == set(DEFAULTS)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "a run from before"])
def test_a_changed_setting_is_refused_by_name(name, recorded, tmp_path):
    if recorded:
        claim_numerics(tmp_path)
    init_run_dir(tmp_path, CONFIG)
    claim_numerics(tmp_path)
    with (
        setting(name, CHANGES[name]),
        pytest.raises(InputError, match=f"{name} is {CHANGES[name]!r}, there") as refused,
    ):
        train(CONFIG, tmp_path)
    assert "\\n" not in str(refused.value)
    with setting(name, CHANGES[name]):
        assert not is_run_of(tmp_path, CONFIG), "a study must not take this run for one of its own"
    assert is_run_of(tmp_path, CONFIG)


def test_a_run_under_other_settings_goes_on_under_them(tmp_path):
    with setting("jax_default_prng_impl", "rbg"):
        claim_numerics(tmp_path)
        init_run_dir(tmp_path, CONFIG)
        claim_numerics(tmp_path)
    with pytest.raises(InputError, match="jax_default_prng_impl is 'threefry2x32', there 'rbg'"):
        claim_numerics(tmp_path)


def test_strict_promotion_changes_no_bit_and_is_not_compared(tmp_path):
    claim_numerics(tmp_path)
    with setting("jax_numpy_dtype_promotion", "standard"):
        claim_numerics(tmp_path)


@pytest.mark.parametrize(
    "given, value",
    [
        ("", ""),
        ("--xla_gpu_deterministic_ops", "true"),
        ("--xla_gpu_deterministic_ops=1", "true"),
        ("--xla_dump_to=/x --xla_gpu_deterministic_ops=true", "true"),
        ("--xla_gpu_deterministic_ops=true --xla_gpu_deterministic_ops=false", "false"),
        ("--xla_gpu_deterministic_ops_of_another_name=true", ""),
    ],
)
def test_flags_of_xla(given, value):
    assert numerics({"XLA_FLAGS": given})["xla_gpu_deterministic_ops"] == value


def test_flags_of_xla_are_compared_where_they_are_known(tmp_path, monkeypatch):
    claim_numerics(tmp_path)
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    with pytest.raises(InputError, match="xla_gpu_deterministic_ops is 'true', there ''"):
        claim_numerics(tmp_path)
    stored = json.loads((tmp_path / NAME).read_text())
    (tmp_path / NAME).write_text(
        json.dumps({name: value for name, value in stored.items() if name not in XLA_FLAGS})
    )
    claim_numerics(tmp_path)


@pytest.mark.parametrize("text", ["[1]", '{"jax', "\x00"])
def test_a_damaged_record_is_named(text, tmp_path):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(InputError, match=r"numerics\.json cannot be read as settings"):
        claim_numerics(tmp_path)


def test_a_refused_run_leaves_nothing_behind(tmp_path):
    claim_numerics(tmp_path)
    init_run_dir(tmp_path, CONFIG)
    names = sorted(path.name for path in tmp_path.iterdir())
    with setting("jax_enable_x64", True), pytest.raises(InputError):
        train(dataclasses.replace(CONFIG, seed=1), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
