"""Files of rates: written, read, packaged, refused."""

import json

import pytest

from deepjax.errors import InputError
from deepjax.study.arms import rates
from deepjax.study.arms.rates import SelectedRate, packaged_rates, read_rates, write_rates

RATES = {"deep": SelectedRate(0.1, 0.001, 0.002), "shallow": SelectedRate(0.05)}


def test_what_is_written_is_read_and_other_studies_are_kept(tmp_path, monkeypatch):
    path = tmp_path / "rates.json"
    write_rates(path, "toy-small", RATES)
    assert read_rates(path) == RATES
    write_rates(path, "other-gpu", {"a": SelectedRate(1.0)})
    monkeypatch.setattr(rates, "PACKAGED", path)
    assert packaged_rates("toy", "small") == RATES
    assert packaged_rates("other", "gpu") == {"a": SelectedRate(1.0)}
    assert packaged_rates("toy", "gpu") == {}
    with pytest.raises(InputError, match="rates of 2 studies; allowed: of one"):
        read_rates(path)


def test_written_again_the_new_rates_are_read(tmp_path):
    path = tmp_path / "rates.json"
    for rate in (0.1, 0.2):
        write_rates(path, "toy-small", {"a": SelectedRate(rate)})
        assert read_rates(path)["a"].rate == rate


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"a": 1}', '{"a": {"b": 0.1}}', '{"a": {"b": {"lr": 1}}}']
)
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "rates.json"
    with pytest.raises(InputError, match=r"rates\.json is no file of rates .*run the pilots"):
        read_rates(path)
    path.write_text(content)
    with pytest.raises(InputError, match=r"rates\.json is no file of rates"):
        read_rates(path)


def test_the_packaged_rates_are_positive_and_their_errors_less_than_one():
    for of_study in json.loads(rates.PACKAGED.read_text()).values():
        for rate in of_study.values():
            assert rate["rate"] > 0 and 0 <= rate["train_error"] < 1 > rate["test_error"] >= 0
