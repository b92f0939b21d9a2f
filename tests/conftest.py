"""Every test runs on 8 simulated devices, with strict promotion of dtypes and ranks, and with warnings as errors (pyproject)."""

import os
import sys
import tempfile
from pathlib import Path

# One compilation serves all tests of a session, and the processes that they start.
_SESSION = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    Path(tempfile.gettempdir()) / f"deepjax-tests-{_SESSION}"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

import jax  # noqa: E402  # reads the environment when it is imported
import pytest  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture(autouse=True, scope="session")
def _eight_devices():
    assert jax.device_count() == 8
