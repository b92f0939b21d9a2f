"""`python -m deepjax.data.digits.builder --help` is a help, and builds nothing."""

import runpy
from pathlib import Path

import pytest
from tensorflow_datasets.core.registered import skip_registration

import deepjax.data


@pytest.mark.parametrize("name", ["digits", "fashion_mnist_small"])
def test_help_builds_nothing(name, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["builder", "--help"])
    script = Path(deepjax.data.__file__).with_name(name) / "builder.py"
    with skip_registration(), pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 0 and "directory" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
