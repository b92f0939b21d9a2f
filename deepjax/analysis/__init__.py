"""Instruments for any linen module: they know no model of deepjax by name."""

from deepjax.analysis.cost import count_macs, count_params
from deepjax.analysis.gradients import kernel_norms, kernel_order

__all__ = ["count_macs", "count_params", "kernel_norms", "kernel_order"]
