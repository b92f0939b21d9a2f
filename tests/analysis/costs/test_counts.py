"""Costs by layer add up to the total and belong to the layer that computes, whoever calls it."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from deepjax.analysis import (
    cost,
    count_macs,
    count_params,
    layer_fields,
    macs_by_layer,
    params_by_layer,
)
from deepjax.models import create_model


class Cell(nn.Module):
    """A layer to scan, and one that two methods share."""

    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(4, name="dense")(x)), None


class Head(nn.Module):
    """Calls a layer that its parent owns."""

    shared: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="logits")(self.shared(x))


class Foreign(nn.Module):
    """A conv behind a method, a layer called by another module, scan, remat, an own product."""

    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(4, name="shared")
        x = shared(self.convolve(x).mean((1, 2)))
        x, _ = nn.scan(Cell, variable_axes={"params": 0}, split_rngs={"params": True}, length=5)(
            name="cells"
        )(x, None)
        x, _ = nn.remat(Cell)(name="kept")(x, None)
        x = x @ self.param("own", nn.initializers.ones, (4, 4))
        return Head(shared, name="head")(x)

    def convolve(self, x):
        return nn.Conv(4, (3, 3), strides=(2, 2), name="conv")(x)


# By hand: a map of 3x3 behind the stride; the shared layer runs twice, the scanned cell five times.
MACS = {
    "conv": 9 * 9 * 2 * 4,
    "shared": 2 * 16,
    "cells/dense": 5 * 16,
    "kept/dense": 16,
    "": 16,
    "head/logits": 12,
}
PARAMS = {
    "conv": 9 * 2 * 4 + 4,
    "shared": 20,
    "cells/dense": 5 * 20,
    "kept/dense": 20,
    "": 16,
    "head/logits": 15,
}


def test_costs_by_layer_by_hand():
    assert macs_by_layer(Foreign(), (6, 6, 2)) == MACS
    assert params_by_layer(Foreign(), (6, 6, 2)) == PARAMS


def test_layers_come_in_the_order_of_the_forward_pass():
    assert list(macs_by_layer(Foreign(), (6, 6, 2))) == list(MACS)


def test_totals_are_sums():
    assert count_macs(Foreign(), (6, 6, 2)) == sum(MACS.values())
    assert count_params(Foreign(), (6, 6, 2)) == sum(PARAMS.values())


@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet18"])
def test_a_scanned_stage_costs_what_its_blocks_cost(name):
    side = 32 if name.startswith("cifar") else 64
    unrolled, scanned = (
        macs_by_layer(create_model(name, scan=scan), (side, side, 3)) for scan in (False, True)
    )
    assert sum(unrolled.values()) == sum(scanned.values())
    later = [
        macs
        for layer, macs in unrolled.items()
        if layer.startswith("stage1_block") and not layer.startswith("stage1_block1/")
    ]
    assert sum(later) == sum(
        macs for layer, macs in scanned.items() if layer.startswith("stage1_blocks/")
    )


def test_a_network_without_parameters_costs_nothing():
    class Pool(nn.Module):
        def __call__(self, x):
            return x.mean((1, 2))

    assert count_params(Pool(), (4, 4, 1)) == count_macs(Pool(), (4, 4, 1)) == 0


class Demanding(nn.Module):
    """As in Flax's guide to batch norm, a switch without default; and conditional products."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train)(x.mean((1, 2)))
        wide, narrow = (
            self.param("wide", nn.initializers.ones, (3, 50)),
            self.param("narrow", nn.initializers.ones, (3, 2)),
        )
        return jax.lax.cond(
            jnp.sum(x) > 0, lambda x: (x @ wide).sum(1), lambda x: (x @ narrow).sum(1), x
        )


def test_a_switch_without_default_and_the_costlier_branch_of_a_condition():
    assert count_macs(Demanding(), (4, 4, 3)) == 3 * 50
    assert count_params(Demanding(), (4, 4, 3)) == 3 + 3 + 3 * 50 + 3 * 2
    assert cost(Demanding(), (4, 4, 3)).total.macs == 3 * 50
    assert layer_fields(Demanding(), (4, 4, 3)).layers == ()
