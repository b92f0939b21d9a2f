"""Evaluation by the papers' test protocols: accuracy, calibration, published results."""

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
