"""Preparing: every way in which it cannot work is one line that says what to do."""

import importlib.util

import pytest

from deepjax.data.prepare import prepare
from deepjax.errors import InputError


def test_digits_need_no_preparing():
    with pytest.raises(InputError, match="part of the package"):
        prepare("digits")


def test_an_unknown_name_gives_the_nearest_one():
    with pytest.raises(InputError, match="did you mean 'cifar100'"):
        prepare("cifar-100")


def test_a_missing_folder_of_archives_is_named(tmp_path):
    with pytest.raises(InputError, match=r"manual_dir is .*absent"):
        prepare("fashion_mnist", manual_dir=str(tmp_path / "absent"))


def test_without_tensorflow_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'deepjax\[prepare\]'"):
        prepare("fashion_mnist", str(tmp_path))
