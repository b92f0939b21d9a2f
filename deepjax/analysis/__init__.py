"""Instruments for any linen module; none of them knows a model of deepjax by name."""

from deepjax.analysis.core.module import cross_entropy, init_variables, of_classes
from deepjax.analysis.core.network import Network
from deepjax.analysis.core.taps import Tap, taps
from deepjax.analysis.costs.counts import count_macs, count_params, macs_by_layer, params_by_layer
from deepjax.analysis.costs.report import CostReport, cost
from deepjax.analysis.costs.stages import StageRow, stage_table
from deepjax.analysis.curvature.operators import HessianTrace, gnvp, hessian_trace, hvp
from deepjax.analysis.curvature.spectrum import (
    Density,
    Eigenvalues,
    GradientSubspace,
    gradient_subspace_overlap,
    spectral_density,
    top_eigenvalues,
)
from deepjax.analysis.gradients.auxiliary_losses import LossContributions, loss_contributions
from deepjax.analysis.gradients.noise_scale import NoiseScale, noise_scale
from deepjax.analysis.gradients.per_example import PerExampleGradients, per_example_gradients
from deepjax.analysis.gradients.shattering import (
    GradientLine,
    Shattering,
    gradient_line,
    shattering,
)
from deepjax.analysis.landscape.directions import random_direction
from deepjax.analysis.landscape.surface import (
    Line,
    Plane,
    linear_interpolation,
    loss_line,
    loss_plane,
)
from deepjax.analysis.landscape.trajectory import Trajectory, trajectory
from deepjax.analysis.layers.finite import first_nonfinite_layer
from deepjax.analysis.layers.kernel_norms import kernel_norms, kernel_order
from deepjax.analysis.layers.report import LayerReport, LayerRow
from deepjax.analysis.layers.trace import trace
from deepjax.analysis.ntk.kernel import Drift, Kernel, kernel_drift, ntk
from deepjax.analysis.ntk.linearised import LinearisedRun, half_mse, linearised, linearised_training
from deepjax.analysis.propagation.mean_field import MeanField, critical_sigma_w, mean_field
from deepjax.analysis.propagation.signal import Propagation, signal_propagation
from deepjax.analysis.receptive_field.effective import (
    EffectiveField,
    average_fields,
    effective_field,
)
from deepjax.analysis.receptive_field.layers import LayerField, LayerFields, layer_fields
from deepjax.analysis.receptive_field.theoretical import ReceptiveField, receptive_fields
from deepjax.analysis.residual.lesions import Lesions, error_rate, lesions
from deepjax.analysis.residual.paths import PathLengths, path_gradient, path_lengths

__all__ = [
    "CostReport",
    "Density",
    "Drift",
    "EffectiveField",
    "Eigenvalues",
    "GradientLine",
    "GradientSubspace",
    "HessianTrace",
    "Kernel",
    "LayerField",
    "LayerFields",
    "LayerReport",
    "LayerRow",
    "Lesions",
    "Line",
    "LinearisedRun",
    "LossContributions",
    "MeanField",
    "Network",
    "NoiseScale",
    "PathLengths",
    "PerExampleGradients",
    "Plane",
    "Propagation",
    "ReceptiveField",
    "Shattering",
    "StageRow",
    "Tap",
    "Trajectory",
    "average_fields",
    "cost",
    "count_macs",
    "count_params",
    "critical_sigma_w",
    "cross_entropy",
    "effective_field",
    "error_rate",
    "first_nonfinite_layer",
    "gnvp",
    "gradient_line",
    "gradient_subspace_overlap",
    "half_mse",
    "hessian_trace",
    "hvp",
    "init_variables",
    "kernel_drift",
    "kernel_norms",
    "kernel_order",
    "layer_fields",
    "lesions",
    "linear_interpolation",
    "linearised",
    "linearised_training",
    "loss_contributions",
    "loss_line",
    "loss_plane",
    "macs_by_layer",
    "mean_field",
    "noise_scale",
    "ntk",
    "of_classes",
    "params_by_layer",
    "path_gradient",
    "path_lengths",
    "per_example_gradients",
    "random_direction",
    "receptive_fields",
    "shattering",
    "signal_propagation",
    "spectral_density",
    "stage_table",
    "taps",
    "top_eigenvalues",
    "trace",
    "trajectory",
]
