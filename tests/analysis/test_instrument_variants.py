"""Instruments that return arrays, with and without jit, under pmap, on the device: one result."""

import functools

import chex
from flax import linen as nn

from deepjax.analysis import gnvp, hvp, taps
from tests.zoo import batch_of, variables_of

MODEL = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(3)])
VARIABLES = variables_of(MODEL)
BATCH = batch_of()
INSTRUMENTS = {
    "taps": lambda variables, batch: [
        (tap.activation, tap.gradient)
        for tap in taps(MODEL, variables, batch, ["layers_0"]).values()
    ],
    "hvp": lambda variables, batch: hvp(MODEL, variables, batch, variables["params"]),
    "gnvp": lambda variables, batch: gnvp(MODEL, variables, batch, variables["params"]),
}


@functools.cache
def expected(name: str):
    return INSTRUMENTS[name](VARIABLES, BATCH)


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=True)
    def test_taps(self):
        self.check("taps")

    @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=True)
    def test_hvp(self):
        self.check("hvp")

    @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=True)
    def test_gnvp(self):
        self.check("gnvp")

    def check(self, name: str):
        found = self.variant(INSTRUMENTS[name])(VARIABLES, BATCH)
        chex.assert_trees_all_close(found, expected(name), rtol=1e-4, atol=1e-6)
