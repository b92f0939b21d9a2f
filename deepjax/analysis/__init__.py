"""Instruments for any linen module: they know no model of deepjax by name."""

from deepjax.analysis.cost import count_macs, count_params, macs_by_layer, params_by_layer
from deepjax.analysis.finite import first_not_finite
from deepjax.analysis.gradients import kernel_norms, kernel_order
from deepjax.analysis.layer_report import LayerReport, LayerRow, trace
from deepjax.analysis.receptive_field import ReceptiveField, receptive_fields
from deepjax.analysis.summary import StageRow, stage_table
from deepjax.analysis.taps import Tap, taps

__all__ = [
    "LayerReport",
    "LayerRow",
    "ReceptiveField",
    "StageRow",
    "Tap",
    "count_macs",
    "count_params",
    "first_not_finite",
    "kernel_norms",
    "kernel_order",
    "macs_by_layer",
    "params_by_layer",
    "receptive_fields",
    "stage_table",
    "taps",
    "trace",
]
