"""Tests of networks as their papers have them: protocols, scores, calibration, published numbers beside."""

from deepjax.evaluation.metrics import Found, find
from deepjax.evaluation.predict import Member, ensemble, predict
from deepjax.evaluation.protocols import PROTOCOLS, Protocol, protocol_of

__all__ = ["PROTOCOLS", "Found", "Member", "Protocol", "ensemble", "find", "predict", "protocol_of"]
