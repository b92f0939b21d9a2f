"""Instruments for any linen module: they know no model of deepjax by name."""

from deepjax.analysis.cost_report import CostReport, cost
from deepjax.analysis.counts import count_macs, count_params, macs_by_layer, params_by_layer
from deepjax.analysis.effective_field import EffectiveField, average_fields, effective_field
from deepjax.analysis.finite import first_not_finite
from deepjax.analysis.gradients import kernel_norms, kernel_order
from deepjax.analysis.layer_report import LayerReport, LayerRow, trace
from deepjax.analysis.propagation import MeanField, Propagation, critical_sigma_w, mean_field, signal_propagation
from deepjax.analysis.receptive_field import ReceptiveField, receptive_fields
from deepjax.analysis.summary import StageRow, stage_table
from deepjax.analysis.taps import Tap, taps

__all__ = [
    "CostReport",
    "EffectiveField",
    "LayerReport",
    "LayerRow",
    "MeanField",
    "Propagation",
    "ReceptiveField",
    "StageRow",
    "Tap",
    "average_fields",
    "cost",
    "count_macs",
    "count_params",
    "critical_sigma_w",
    "effective_field",
    "first_not_finite",
    "kernel_norms",
    "kernel_order",
    "macs_by_layer",
    "mean_field",
    "params_by_layer",
    "receptive_fields",
    "signal_propagation",
    "stage_table",
    "taps",
    "trace",
]
