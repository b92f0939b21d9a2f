"""A store of each kind for the tests of this folder, and short pauses between retries."""

import asyncio
import os
import types

import pytest

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # which gcsfs reads when it is imported
import gcsfs.retry

from deepjax.storage import bucket
from tests.storage.servers import running

LONG = (
    "test_runs_in_a_bucket.py", "test_bucket_store.py", "test_mirror.py",
    "test_data_in_a_bucket.py",
)  # fmt: skip


@pytest.fixture(scope="session", params=["s3", "gs"])
def _running(request):
    with running(request.param) as store:
        yield store


async def _shortly(_):
    await asyncio.sleep(0.01)


@pytest.fixture
def store(_running, monkeypatch, tmp_path):
    """A running store without faults, to which this process's drivers are pointed."""
    _running.fault = lambda method, path: ""
    _running.requests.clear()
    for name, value in _running.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(bucket, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(gcsfs.retry, "asyncio", types.SimpleNamespace(sleep=_shortly))
    return _running


def pytest_collection_modifyitems(items):
    """Of the long tests `make test` has those with S3: what follows the driver is the same."""
    for item in items:
        if item.path.name in LONG and "[gs" in item.name:
            item.add_marker(pytest.mark.slow)
