"""The trained networks of the package: small, complete, and as good as their records say."""

import json

import jax
import pytest

from deepjax.analysis import error_rate
from deepjax.errors import InputError
from deepjax.evaluation.trained.networks import FOLDER, list_trained, load_trained
from deepjax.study.networks import SmallImageGoogLeNet

MAKERS = {"googlenet": SmallImageGoogLeNet, "googlenet_heads": SmallImageGoogLeNet}
MAX_BYTES = 5_000_000


def test_together_they_are_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < MAX_BYTES


@pytest.mark.parametrize("name", list_trained())
def test_it_has_its_log_and_its_origin(name):
    """The log ends with the recorded errors; the origin names no path outside of the checkout."""
    net = load_trained(name, MAKERS.get(name))
    last = net.log[-1]
    assert last["kind"] == "final"
    assert {key: last[key] for key in net.final} == net.final
    assert "gradient_norms" in net.log[0] and "gradient_norms" in net.log[-2]
    assert net.provenance["commit"] and not net.provenance["commit"].endswith("dirty")
    assert " /" not in net.provenance["command"]
    assert net.batch(2, "test")["image"].shape == (2, *net.dataset.shape)
    json.dumps(dict(net.recipe))


@pytest.mark.parametrize(
    "name", ["resnet20", *(pytest.param(n, marks=pytest.mark.system) for n in list_trained())]
)
def test_it_has_the_recorded_error(name):
    """The record is of the run that trained it: every test image counts once, and rounding may
    move one of the 4,000 across a decision.
    """
    net = load_trained(name, MAKERS.get(name))
    test = net.batch(4000, "test")
    forward = jax.jit(lambda variables, images: net.model.apply(variables, images, train=False))
    error = float(error_rate(forward(net.variables, test["image"]), test))
    assert error == pytest.approx(net.final["test_error"], abs=1.5 / 4000)


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match=r"'plain56' is unknown; did you mean 'plain44'\?"):
        load_trained("plain56")


def test_a_network_outside_of_the_registry_must_be_named():
    """Nothing that a file names is imported."""
    with pytest.raises(InputError, match="make=SmallImageGoogLeNet"):
        load_trained("googlenet")
