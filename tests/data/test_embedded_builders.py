"""`python -m deepjax.data.digits.builder --help` is a help, and builds nothing."""

import runpy
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

import deepjax.data


@pytest.mark.parametrize("name", ["digits", "fashion_mnist_small"])
@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 2)])
def test_help_and_missing_arguments(name, arguments, code, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["builder", *arguments])
    script = Path(deepjax.data.__file__).with_name(name) / "builder.py"
    # Each run of the script defines the builder anew, which tfds registers by its name.
    with tfds.core.registered.skip_registering(), pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == code
    assert list(tmp_path.iterdir()) == []
