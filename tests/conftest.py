"""Two simulated devices, strict promotion of dtypes and ranks, warnings as errors (pyproject.toml).

tests/README.md describes the tiers and the compilation cache.
"""

import itertools
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Processes that tests start share a cache that ends with the session, because a killed process may
# leave a truncated entry.
_OWNS_CHILD_CACHE = "DEEPJAX_TEST_CHILD_CACHE" not in os.environ  # false in xdist's workers
if _OWNS_CHILD_CACHE:
    os.environ["DEEPJAX_TEST_CHILD_CACHE"] = tempfile.mkdtemp(prefix="deepjax-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["DEEPJAX_TEST_CHILD_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
# Threads of XLA, by default one per core. A simulated device that waits in a collective holds one;
# on two busy cores none was left for the other device, and XLA aborted the process after a minute.
os.environ.setdefault("NPROC", "8")

import jax  # noqa: E402  # reads the environment when it is imported
import pytest  # noqa: E402

from deepjax.backend.compilation_cache import evict_oldest, processor_id  # noqa: E402
from tests.tiers import tier_of  # noqa: E402

# `make test` asks for programs that compile fast: most run for milliseconds.
if os.environ.get("DEEPJAX_TEST_FAST_COMPILATION"):
    flags = "--xla_backend_optimization_level=0"
    if jax.__version_info__ < (0, 11):  # later versions abort, because they do not know it
        flags += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"

DEVICES = int(os.environ.get("DEEPJAX_TEST_DEVICES", "2"))
# XLA compiles for the processor that it finds; CI may restore the cache on another one.
CACHE = Path(__file__).parents[1] / ".cache" / "jax-tests" / processor_id()
CACHE_BYTES = 2**30
# A compiled program has about three memory maps. At Linux's 65,530 (vm.max_map_count) a process
# dies with a segmentation fault.
MAX_MAPS = 40_000
_tests = itertools.count(1)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", DEVICES)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_sessionstart(session: pytest.Session) -> None:
    # Not jax_compilation_cache_max_size, which reads the whole folder at every write: minutes for
    # thousands of small programs.
    if not hasattr(session.config, "workerinput"):
        evict_oldest(CACHE, CACHE_BYTES)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _OWNS_CHILD_CACHE:
        shutil.rmtree(os.environ["DEEPJAX_TEST_CHILD_CACHE"], ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # before pytest's own, which selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="needs DEEPJAX_TEST_DEVICES=8 (make test-system)")
    for item in items:
        if isinstance(item, pytest.Function):
            parameters = item.callspec.id if hasattr(item, "callspec") else ""
            tier = tier_of(item.originalname, parameters, frozenset(item.fixturenames))
            if tier:
                item.add_marker(tier)
        if DEVICES < 8 and item.get_closest_marker("eight_devices"):
            item.add_marker(skip)


def pytest_runtest_teardown() -> None:
    maps = Path("/proc/self/maps")
    if next(_tests) % 20 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > MAX_MAPS:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture(autouse=True, scope="session")
def _device_count():
    assert jax.device_count() == DEVICES
