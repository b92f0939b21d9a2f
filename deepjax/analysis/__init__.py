"""Instruments for any network: linen, NNX or a function. None knows a model of deepjax by name."""

from deepjax.analysis.attribution.grad_cam import GradCam, grad_cam
from deepjax.analysis.attribution.integrated_gradients import (
    IntegratedGradients,
    integrated_gradients,
)
from deepjax.analysis.core.linear_operator import LinearOperator
from deepjax.analysis.core.mode import EVAL, TRAIN, Ghost, Mode
from deepjax.analysis.core.result import Result
from deepjax.analysis.costs.counts import count_macs, count_params, macs_by_layer, params_by_layer
from deepjax.analysis.costs.report import CostReport, cost
from deepjax.analysis.costs.stages import StageRow, StageTable, stage_table
from deepjax.analysis.curvature.gradient_subspace import (
    GradientSubspace,
    gradient_subspace_overlap,
)
from deepjax.analysis.curvature.operators import (
    ParameterOperator,
    empirical_fisher,
    fisher,
    gauss_newton,
    gnvp,
    gradient_covariance,
    hessian,
    hvp,
)
from deepjax.analysis.curvature.sharpness import (
    SharpnessPath,
    edge_of_stability,
    logged_sharpness,
    sharpness_path,
)
from deepjax.analysis.curvature.spectrum import (
    Density,
    Eigenvalues,
    spectral_density,
    top_eigenvalues,
)
from deepjax.analysis.curvature.trace import HessianTrace, hessian_trace
from deepjax.analysis.gradients.auxiliary_losses import LossContributions, loss_contributions
from deepjax.analysis.gradients.confusion import GradientConfusion, gradient_confusion
from deepjax.analysis.gradients.noise_scale import NoiseScale, noise_scale
from deepjax.analysis.gradients.per_example import PerExampleGradients, per_example_gradients
from deepjax.analysis.gradients.shattering import (
    GradientLine,
    Shattering,
    gradient_line,
    shattering,
)
from deepjax.analysis.landscape.directions import random_direction
from deepjax.analysis.landscape.line import LossLine, linear_interpolation, loss_line
from deepjax.analysis.landscape.plane import LossPlane, loss_plane
from deepjax.analysis.landscape.trajectory import Trajectory, trajectory
from deepjax.analysis.layers.cka import Cka, cka
from deepjax.analysis.layers.finite import first_nonfinite_layer
from deepjax.analysis.layers.histograms import Histograms, histograms
from deepjax.analysis.layers.kernel_norms import kernel_norms, kernel_order
from deepjax.analysis.layers.report import LayerReport, LayerRow
from deepjax.analysis.layers.taps import Tap, taps
from deepjax.analysis.layers.trace import trace
from deepjax.analysis.network.function import from_function
from deepjax.analysis.network.module import cross_entropy, init_variables, takes_class_labels
from deepjax.analysis.network.network import Network
from deepjax.analysis.network.nnx.module import from_nnx
from deepjax.analysis.ntk.drift import KernelDrift, kernel_drift
from deepjax.analysis.ntk.kernel import TangentKernel, ntk
from deepjax.analysis.ntk.linearised import LinearisedRun, half_mse, linearised, linearised_training
from deepjax.analysis.ntk.operator import KernelOperator, ntk_operator
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
    "EVAL",
    "TRAIN",
    "Cka",
    "CostReport",
    "Density",
    "EffectiveField",
    "Eigenvalues",
    "Ghost",
    "GradCam",
    "GradientConfusion",
    "GradientLine",
    "GradientSubspace",
    "HessianTrace",
    "Histograms",
    "IntegratedGradients",
    "KernelDrift",
    "KernelOperator",
    "LayerField",
    "LayerFields",
    "LayerReport",
    "LayerRow",
    "Lesions",
    "LinearOperator",
    "LinearisedRun",
    "LossContributions",
    "LossLine",
    "LossPlane",
    "MeanField",
    "Mode",
    "Network",
    "NoiseScale",
    "ParameterOperator",
    "PathLengths",
    "PerExampleGradients",
    "Propagation",
    "ReceptiveField",
    "Result",
    "SharpnessPath",
    "Shattering",
    "StageRow",
    "StageTable",
    "TangentKernel",
    "Tap",
    "Trajectory",
    "average_fields",
    "cka",
    "cost",
    "count_macs",
    "count_params",
    "critical_sigma_w",
    "cross_entropy",
    "edge_of_stability",
    "effective_field",
    "empirical_fisher",
    "error_rate",
    "first_nonfinite_layer",
    "fisher",
    "from_function",
    "from_nnx",
    "gauss_newton",
    "gnvp",
    "grad_cam",
    "gradient_confusion",
    "gradient_covariance",
    "gradient_line",
    "gradient_subspace_overlap",
    "half_mse",
    "hessian",
    "hessian_trace",
    "histograms",
    "hvp",
    "init_variables",
    "integrated_gradients",
    "kernel_drift",
    "kernel_norms",
    "kernel_order",
    "layer_fields",
    "lesions",
    "linear_interpolation",
    "linearised",
    "linearised_training",
    "logged_sharpness",
    "loss_contributions",
    "loss_line",
    "loss_plane",
    "macs_by_layer",
    "mean_field",
    "noise_scale",
    "ntk",
    "ntk_operator",
    "params_by_layer",
    "path_gradient",
    "path_lengths",
    "per_example_gradients",
    "random_direction",
    "receptive_fields",
    "sharpness_path",
    "shattering",
    "signal_propagation",
    "spectral_density",
    "stage_table",
    "takes_class_labels",
    "taps",
    "top_eigenvalues",
    "trace",
    "trajectory",
]
