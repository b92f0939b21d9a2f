"""Every test runs on 8 simulated devices, with strict promotion of dtypes and ranks, and with warnings as errors (pyproject)."""

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="session")
def _eight_devices():
    assert jax.device_count() == 8
