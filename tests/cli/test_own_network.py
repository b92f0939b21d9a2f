"""`--model package.module:Class`: a linen and an NNX network of the user's own, named again."""

import json
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from deepjax.cli.__main__ import start
from deepjax.errors import InputError
from deepjax.training import open_run
from deepjax.training.config import parse_fields
from deepjax.training.custom_network import import_network

NETWORKS = textwrap.dedent('''
    """Networks of a user."""
    import jax.numpy as jnp
    from flax import linen as nn, nnx

    class Linen(nn.Module):
        num_classes: int = 10
        width: int = 8
        dtype: type = jnp.float32

        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Conv(self.width, (3, 3), use_bias=False, dtype=self.dtype)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(x))
            return nn.Dense(self.num_classes, dtype=jnp.float32)(x.mean((1, 2)))

    class Nnx(nnx.Module):
        def __init__(self, num_classes, rngs, width=8):
            self.conv = nnx.Conv(1, width, (3, 3), use_bias=False, rngs=rngs)
            self.norm = nnx.BatchNorm(width, rngs=rngs)
            self.drop = nnx.Dropout(0.1, rngs=rngs)
            self.head = nnx.Linear(width, num_classes, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.conv(x)))
            return self.head(self.drop(x.mean((1, 2))))

    class Without(nn.Module):
        width: int = 8

    class Needs(nn.Module):
        num_classes: int
        depth: int

    class Fails(Linen):
        def __post_init__(self):
            raise RuntimeError("no such depth")

    class Fixed(nnx.Module):
        def __init__(self, num_classes):
            self.head = nnx.Linear(64, num_classes, rngs=nnx.Rngs(0))

    class Masked(nnx.Module):
        def __init__(self, num_classes, rngs):
            self.head = nnx.Linear(64, num_classes, rngs=rngs)

        def __call__(self, x, mask):
            return self.head(x.reshape(len(x), -1) * mask)

    class Inner:
        Nested = Linen

    number = 3
''')
SHORT = ["--epochs", "2", "--batch-size", "64", "--learning-rate", "0.05"]


@pytest.fixture(autouse=True)
def _networks(tmp_path, monkeypatch):
    """A module in the current folder."""
    (tmp_path / "my_networks.py").write_text(NETWORKS)
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("my_networks", "broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["Linen", "Nnx"])
def test_it_is_trained_resumed_and_evaluated(name, capsys):
    model = f"my_networks:{name}"
    command = ["train", "--model", model, "--model-args", "width=4", *SHORT, "--output-dir", "run"]
    start(command)
    assert "done: 44 steps" in capsys.readouterr().out
    start(command)
    assert "was done already" in capsys.readouterr().out
    config = json.loads(Path("run/config.json").read_text())
    assert (config["model"], config["model_args"]) == (model, ["width=4"])
    start(["evaluate", "--run", "run", "--model", model, "--output-dir", "result"])
    assert "agrees with the final row" in capsys.readouterr().out
    run = open_run("run", make=import_network(model))
    assert set(run.variables) == {"params", "batch_stats"}
    kernels = [leaf for path, leaf in flat(run.variables["params"]) if path[-1] == "kernel"]
    assert sorted(leaf.shape for leaf in kernels) == [(3, 3, 1, 4), (4, 10)]


def flat(tree, path=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, (*path, key))
        else:
            yield (*path, key), value


def test_a_run_does_not_import_what_its_config_names(capsys):
    start(["train", "--model", "my_networks:Linen", *SHORT, "--output-dir", "run"])
    sys.modules.pop("my_networks")
    for use in (lambda: open_run("run"), lambda: start(["evaluate", "--run", "run"])):
        with pytest.raises(InputError, match="not imported unless it is named again; give --model"):
            use()
    assert "my_networks" not in sys.modules
    with pytest.raises(InputError, match="model is 'my_networks:Nnx'; allowed: my_networks:Linen"):
        start(["evaluate", "--run", "run", "--model", "my_networks:Nnx"])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no_such_module:Net", "no_such_module cannot be imported .*No module named"),
        ("broken:Net", "broken cannot be imported .*nothing_of_this_name"),
        ("my_networks:Linnen", "class in my_networks 'Linnen' is unknown; did you mean 'Linen'"),
        (
            "my_networks:Without",
            "my_networks:Without takes no num_classes, which every training sets",
        ),
        (
            "my_networks:Needs",
            "field 'depth' of my_networks:Needs is not given .*--model-args depth=",
        ),
        ("my_networks:Fails", "my_networks:Fails cannot be made .*no such depth"),
        (
            "my_networks:Fixed",
            "model is 'my_networks:Fixed'; allowed: a class of NNX that takes rngs",
        ),
        ("my_networks:Masked", r"cannot .*images of \(8, 8, 1\).*argument: 'mask'"),
        ("my_networks:number", "an object of class int; allowed: a class of linen or NNX"),
    ],
)
def test_what_is_no_network_is_one_line(model, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        start(["train", "--model", model, *SHORT, "--output-dir", "run"])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_nnx_network_has_other_dropout_under_another_key():
    network = import_network("my_networks:Nnx")(num_classes=3)
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    variables = network.init(jax.random.key(1), images)

    def apply(seed: int, train: bool = True):
        keys = {"dropout": jax.random.key(seed)}
        return network.apply(variables, images, train, rngs=keys, mutable=["batch_stats"])

    (one, state), (same, _), (other, _) = (apply(seed) for seed in (0, 0, 1))
    assert (one == same).all() and not jnp.allclose(one, other)
    moved = jax.tree.map(
        lambda a, b: not jnp.allclose(a, b), state, {"batch_stats": variables["batch_stats"]}
    )
    assert all(jax.tree.leaves(moved))
    (still, state) = apply(0, train=False)
    assert (still == apply(1, train=False)[0]).all()
    assert jax.tree.all(
        jax.tree.map(jnp.array_equal, state["batch_stats"], variables["batch_stats"])
    )


def test_a_class_within_a_class_and_types(tmp_path):
    assert import_network("my_networks:Inner.Nested")(num_classes=3).num_classes == 3
    import_network("my_networks:Nnx")(num_classes=3, dtype="float32")
    with pytest.raises(InputError, match="precision is 'bfloat16'; allowed: float32 for my_netw"):
        import_network("my_networks:Nnx")(num_classes=3, dtype="bfloat16")


@pytest.mark.parametrize("argument", ["width", "=8", "a-b=1", "2=3"])
def test_arguments_have_names(argument):
    with pytest.raises(InputError, match="allowed: NAME=VALUE, each name once"):
        parse_fields([argument])
    with pytest.raises(InputError, match="allowed: NAME=VALUE, each name once"):
        parse_fields(["a=1", "a=2"])


def test_fields_of_a_known_network_can_be_given_too(capsys):
    fields = ["--model-args", "width=4", "stages=[1,1,1]", "norm=none"]
    start(["train", "--model", "cifar_plain20", *fields, *SHORT, "--output-dir", "run"])
    assert open_run("run").model.stages == (1, 1, 1)
    with pytest.raises(
        InputError, match=r"field of cifar_plain20 'widht' is unknown; did you mean"
    ):
        start(["train", "--model", "cifar_plain20", "--model-args", "widht=4", "--output-dir", "b"])
