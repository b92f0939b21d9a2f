"""Costs by hand on two small networks, and XLA's own count beside them."""

import math

import jax.numpy as jnp
import pytest
from flax import linen as nn

from deepjax.analysis import TRAIN, count_macs, count_params
from deepjax.analysis.costs.report import cost
from deepjax.errors import InputError
from deepjax.models import create_model


class Holder(nn.Module):
    dtype: type

    @nn.compact
    def __call__(self, x):
        return nn.Conv(16, (3, 3), strides=(2, 2), use_bias=False, dtype=self.dtype, name="held")(x)


class Cnn(nn.Module):
    """Two convolutions with a ReLU between, a module that returns the second, and logits."""

    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), dtype=self.dtype, name="conv1")(x))
        x = Holder(self.dtype, name="second")(x)
        return nn.Dense(5, dtype=self.dtype, name="head")(x.mean((1, 2)))


class Cell(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(4, name="dense")(x)), None


class Lifted(nn.Module):
    """A scan over three cells, and a head that only trains."""

    @nn.compact
    def __call__(self, x, train=False):
        x = x.mean((1, 2))
        x, _ = nn.scan(Cell, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)(
            name="cells"
        )(x, None)
        x = nn.remat(nn.Dense)(6, name="last")(x)
        extra = nn.Dense(2, name="extra")
        if train or self.is_initializing():
            return x, extra(x)
        return x


BATCH = 2
# By hand: 8x8x3 -> 8x8x8 -> 4x4x16 -> 5, four bytes a number.
BY_HAND = {
    "conv1": (
        27 * 8 + 8,
        BATCH * 64 * 27 * 8,
        4 * BATCH * 512,
        4 * (BATCH * 192 + 216 + BATCH * 512),
    ),
    "second/held": (
        72 * 16,
        BATCH * 16 * 72 * 16,
        4 * BATCH * 256,
        4 * (BATCH * 512 + 1152 + BATCH * 256),
    ),
    "head": (16 * 5 + 5, BATCH * 80, 4 * BATCH * 5, 4 * (BATCH * 16 + 80 + BATCH * 5)),
}


def numbers(report):
    return {
        row.layer: (row.params, row.macs, row.activation_bytes, row.bytes_moved)
        for row in report.layers
    }


def test_convolutions_by_hand():
    report = cost(Cnn(), (8, 8, 3), examples=BATCH)
    assert numbers(report) == BY_HAND
    total = report.total
    assert (total.params, total.macs, total.activation_bytes, total.bytes_moved) == tuple(
        map(sum, zip(*BY_HAND.values(), strict=True))
    )
    assert report.rows()[0]["intensity"] == 2 * BY_HAND["conv1"][1] / BY_HAND["conv1"][3]


def test_half_precision_halves_what_is_stored_and_moved():
    half, full = cost(Cnn(jnp.bfloat16), (8, 8, 3)), cost(Cnn(), (8, 8, 3))
    assert 2 * half.total.activation_bytes == full.total.activation_bytes
    assert 2 * half.total.bytes_moved == full.total.bytes_moved
    assert half.total.params == full.total.params


def test_scans_remat_and_heads_that_only_train():
    evaluated, trained = (
        numbers(cost(Lifted(), (2, 2, 4))),
        numbers(cost(Lifted(), (2, 2, 4), mode=TRAIN)),
    )
    # A cell returns its ReLU's output beside the layer's own: three runs of 4 numbers each.
    assert evaluated["cells/dense"] == (3 * 20, 3 * 16, 3 * 16, 3 * 4 * (4 + 16 + 4))
    assert evaluated["cells"][:2] == (0, 0) and evaluated["cells"][2] >= 3 * 16
    assert evaluated["last"][:2] == (30, 24)
    assert evaluated["extra"] == (14, 0, 0, 0)
    assert trained["extra"] == (14, 12, 8, 4 * (6 + 12 + 2))


@pytest.mark.parametrize("options", [{}, {"scan": True}])
def test_totals_are_those_of_count_macs_and_count_params(options):
    model = create_model("cifar_resnet20", **options)
    report = cost(model, (32, 32, 3))
    assert report.total.macs == count_macs(model, (32, 32, 3))
    assert report.total.params == count_params(model, (32, 32, 3))


def test_the_compiler_counts_as_we_do():
    """XLA omits the 4 % of the 3x3 windows that are padding; biases and ReLU add some FLOPs."""

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i in range(3):
                x = nn.relu(nn.Conv(16, (3, 3), name=f"conv{i}")(x))
            return x

    report = cost(Deep(), (32, 32, 3), examples=2, xla=True)
    assert report.xla is not None
    assert 0.93 < report.xla.flops / (2 * report.total.macs) < 1.03
    assert report.xla.output_bytes == 4 * 2 * 32 * 32 * 16
    assert report.xla.argument_bytes >= 4 * (report.total.params + 2 * 32 * 32 * 3)
    # It reads and writes what the products do, and again for kernels not fused with them.
    assert 0.8 < report.xla.bytes_accessed / report.total.bytes_moved < 4
    assert "XLA:" in str(report)
    assert cost(Deep(), (32, 32, 3), examples=2, xla=True) is report  # not compiled again


def test_the_table_and_the_figure():
    report = cost(Cnn(), (8, 8, 3))
    lines = str(report).splitlines()
    assert lines[0] == "Cnn: forward pass of 1 x 8x8x3, no training switch found; called as it is"
    assert [line.split()[0] for line in lines[1:]] == [
        "layer",
        "conv1",
        "second/held",
        "head",
        "total",
    ]
    assert len({len(line) for line in lines[1:]}) == 1
    ax = report.plot()
    assert "half of them in 1 of 3 layers" in ax.get_title("left")
    assert [label.get_text() for label in ax.get_yticklabels()] == list(BY_HAND)


def test_a_network_without_products():
    class Pool(nn.Module):
        def __call__(self, x):
            return x.mean((1, 2))

    report = cost(Pool(), (4, 4, 2))
    assert (report.total.macs, report.total.bytes_moved, report.total.activation_bytes) == (0, 0, 8)
    assert math.isnan(report.total.intensity)
    assert "no multiply-adds" in report.plot().get_title("left")


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((8, 8, 3), {"examples": 0}, "examples is 0; allowed: an integer from 1 up"),
        ((), {}, "input_shape is"),
        ((8,), {}, r"input_shape is float32\[1,8\], batch included; allowed: what Cnn takes"),
    ],
)
def test_what_cannot_be_costed(shape, options, message):
    with pytest.raises(InputError, match=message):
        cost(Cnn(), shape, **options)
