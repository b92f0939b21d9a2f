"""Tests of networks as their papers have them: protocols, scores, calibration, published numbers beside."""

from deepjax.evaluation.metrics import ClassificationMetrics, compute_metrics
from deepjax.evaluation.predict import EvalModel, ensemble, predict
from deepjax.evaluation.protocols import PROTOCOLS, Protocol, resolve_protocol

__all__ = [
    "PROTOCOLS",
    "ClassificationMetrics",
    "EvalModel",
    "Protocol",
    "compute_metrics",
    "ensemble",
    "predict",
    "resolve_protocol",
]
