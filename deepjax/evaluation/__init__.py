"""Tests of networks as their papers have them: protocols, scores, calibration, published numbers beside."""

from deepjax.evaluation.predict import Member, ensemble, predict
from deepjax.evaluation.protocols import PROTOCOLS, Protocol, protocol_of
from deepjax.evaluation.report import Found, find

__all__ = ["PROTOCOLS", "Found", "Member", "Protocol", "ensemble", "find", "predict", "protocol_of"]
