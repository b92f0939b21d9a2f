"""The limit of open files that a data set of many shards needs."""

import os
import resource

import pytest

from deepjax.data.shards import allow_open_shards
from deepjax.errors import InputError


@pytest.fixture
def few_files():
    """A limit of 300 open files, which the process may raise."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_as_many_files_can_be_opened_as_there_are_shards(few_files):
    opened: list[int] = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            opened += (os.open(os.devnull, os.O_RDONLY) for _ in range(400))
        allow_open_shards(400, "dataset 'images'")
        opened += [os.open(os.devnull, os.O_RDONLY) for _ in range(400 - len(opened))]
    finally:
        for each in opened:
            os.close(each)
    assert len(opened) == 400


def test_a_higher_limit_stays_as_it_is():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_open_shards(1, "dataset 'images'")
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_a_hard_limit_that_is_too_low_is_refused_with_the_number_to_allow(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 1024))
    with pytest.raises(
        InputError, match=r"dataset 'images' has 1,000 shards, .* 1,024 files here; allow 1,256 "
    ):
        allow_open_shards(1000, "dataset 'images'")
