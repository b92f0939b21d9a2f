"""Probes during training: what the instruments measure on the state and batch of the next step.

In four levels of detail, after Schneider, Dangel and Hennig, "Cockpit: a practical debugging tool
for the training of deep neural networks", 2021 (arXiv:2102.06604): "top" measures the network's
top-level modules, "sharpness" also the largest eigenvalue of the Hessian, "layers" every layer,
"full" curvature and gradient noise too.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax

from deepjax.analysis.core.mode import TRAIN, Mode
from deepjax.analysis.curvature.sharpness import edge_of_stability
from deepjax.analysis.curvature.spectrum import spectral_density, top_eigenvalues
from deepjax.analysis.curvature.trace import hessian_trace
from deepjax.analysis.gradients.noise_scale import noise_scale
from deepjax.analysis.layers.report import LayerReport, LayerRow
from deepjax.analysis.layers.trace import (
    build_report,
    layer_statistics,
    modules_without_output,
)
from deepjax.analysis.network.module import mode_text
from deepjax.analysis.network.taps import Site, sites
from deepjax.backend.conv_layouts import canonicalize_conv_layouts
from deepjax.data import sample
from deepjax.errors import require
from deepjax.training.build import CompiledTraining, step_options
from deepjax.training.distributed.sharding import replicated_sharding
from deepjax.training.run_options import ProbeDetail, RunOptions
from deepjax.training.step.losses import smooth_labels
from deepjax.training.step.preprocess import preprocess_batch
from deepjax.training.step.state import TrainState
from deepjax.training.step.step import DROPOUT, classifier_loss

SHARPNESS_EXAMPLES, SHARPNESS_STEPS = 128, 8
LANCZOS, PROBES = 15, 4  # products with the Hessian: for its extreme eigenvalues, for its trace


@dataclasses.dataclass(frozen=True)
class LayerProbe:
    """Measurements of the layers, and with "full" of the loss."""

    layers: LayerReport
    loss_statistics: dict[str, float]
    """lambda_max and lambda_min of the Hessian (by 15 Lanczos steps, which do not quite reach
    them), its trace with the standard error, and the two parts of the noise scale, g2 and
    trace_sigma: to be averaged over rows before their division (McCandlish et al. 2018, appendix
    A.1)."""

    def row(self) -> dict[str, Any]:
        """A row of metrics.jsonl: {"loss": ..., "layers": {path: {name: value}}, ...}."""
        layers = {
            (row.layer or "network") + row.output: _numbers(row) for row in self.layers.layers
        }
        layers = {name: numbers for name, numbers in layers.items() if numbers}
        more = self.loss_statistics
        entry = {"curvature_and_noise": _finite(more)} if more else {}
        return {"loss": self.layers.loss, "layers": layers} | entry


Probe = Callable[[TrainState, Any], LayerProbe]


def requested_probe(programs: CompiledTraining, options: RunOptions) -> Probe | None:
    """The probe that the options ask for, or None."""
    if not options.probe_every:
        return None
    return make_probe(programs, options.probe, options.data_dir)


def make_probe(programs: CompiledTraining, tier: ProbeDetail, data_dir: str | None = None) -> Probe:
    """(state, batch on the devices) -> measurements; the state is not donated.

    data_dir: of the data set, for the sample of "sharpness". Compiled at the first call. Gradients
    are the main classifier's over the global batch: without auxiliary heads, accumulation and
    rematerialisation. Cost: one forward and one backward pass; "sharpness" adds nine products with
    the Hessian, each about four passes, and a gradient on 128 examples; "full" adds 19 products on
    the batch and one more forward and backward pass. Raises InputError for both in several
    processes.
    """
    layers = _layer_tracer(programs, tier)
    if tier in ("top", "layers"):
        return lambda state, batch: LayerProbe(layers(state, batch), {})
    require(jax.process_count() == 1, "probe", tier, "'top', 'layers' in several processes")
    loss_statistics = (
        _whole_tracer(programs) if tier == "full" else _sharpness_tracer(programs, data_dir)
    )
    return lambda state, batch: LayerProbe(layers(state, batch), loss_statistics(state, batch))


def _layer_tracer(
    programs: CompiledTraining, tier: ProbeDetail
) -> Callable[[TrainState, Any], LayerReport]:
    config, model, dataset = programs.config, programs.model, programs.dataset
    loss = functools.partial(classifier_loss, kind=config.objective.loss)
    # The arguments of `build_report`, by image size.
    seen_at: dict[int, tuple[list[Site], list[tuple[str, ...]], Mode, str]] = {}

    def statistics(state: TrainState, batch: Any, size: int) -> Any:
        key = jax.random.fold_in(state.key, state.step)
        seen = preprocess_batch(key, batch, dataset, step_options(config, size=size))
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        rngs = {"dropout": jax.random.fold_in(key, DROPOUT)}
        rate = state.learning_rate * programs.schedule(state.step)
        known = sites(model, variables, seen, loss, True, rngs)
        others = modules_without_output(known, state.params)
        depth = 1 if tier in ("top", "sharpness") else math.inf
        at = [site for site in known if len(site.path) <= depth]
        text = mode_text(model, variables, seen, train=True)
        seen_at[size] = at, [path for path in others if len(path) <= depth], TRAIN, text

        def updates_of(gradients: Any) -> Any:
            updates, _ = programs.optimizer.update(
                gradients, state.opt_state, state.params, learning_rate=rate
            )
            return updates

        return layer_statistics(model, variables, seen, loss, True, rngs, at, updates_of)

    @functools.partial(jax.jit, static_argnums=2)
    def compiled(state: TrainState, batch: Any, size: int) -> Any:
        return canonicalize_conv_layouts(statistics)(state, batch, size=size)

    def tracer(state: TrainState, batch: Any) -> LayerReport:
        size = config.shape_at(int(state.step))[0]
        with jax.set_mesh(programs.partitioner.mesh):
            found = jax.device_get(compiled(state, batch, size))
        return build_report(found, *seen_at[size])

    return tracer


def _sharpness_tracer(
    programs: CompiledTraining, data_dir: str | None
) -> Callable[[TrainState, Any], dict[str, float]]:
    """The largest eigenvalue of the Hessian on a fixed sample, and the edge of stability.

    The sample is of training images without augmentation. Lanczos' method starts at the gradient,
    so that a row is a function of the state alone.
    """
    config = programs.config
    loss = functools.partial(classifier_loss, kind=config.objective.loss)
    count = min(SHARPNESS_EXAMPLES, programs.dataset.train_size)

    @functools.cache
    def sampled(size: int) -> Any:
        seen = sample(programs.dataset, count, 0, "train", size, data_dir, config.data.eval_crop)
        target = seen["label"]
        if config.objective.loss == "sigmoid" or config.objective.label_smoothing:
            classes, smoothing = programs.dataset.num_classes, config.objective.label_smoothing
            target = smooth_labels(target, classes, smoothing)
        return seen | {"target": target}

    def tracer(state: TrainState, batch: Any) -> dict[str, float]:
        seen = sampled(config.shape_at(int(state.step))[0])
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        with jax.set_mesh(programs.partitioner.mesh):
            seen = jax.device_put(seen, replicated_sharding(programs.partitioner.mesh))
            found = top_eigenvalues(
                programs.model,
                variables,
                seen,
                1,
                loss=loss,
                mode=TRAIN,
                which="largest",
                steps=SHARPNESS_STEPS,
                start="gradient",
            )
        rate = float(state.learning_rate * programs.schedule(state.step))
        values = {"lambda_max": float(found.values[0]), "residual": float(found.residuals[0])}
        optimization = config.optimization
        if optimization.optimizer == "sgd" and rate > 0:
            values["edge_of_stability"] = edge_of_stability(
                rate, optimization.momentum, optimization.nesterov
            )
        return values | {"learning_rate": rate}

    return tracer


def _whole_tracer(programs: CompiledTraining) -> Callable[[TrainState, Any], dict[str, float]]:
    """The Hessian with batch statistics, as in training, and the gradient at two batch sizes."""
    config, model = programs.config, programs.model
    loss = functools.partial(classifier_loss, kind=config.objective.loss)

    @functools.partial(jax.jit, static_argnums=2)
    def prepare(state: TrainState, batch: Any, size: int) -> Any:
        key = jax.random.fold_in(state.key, state.step)
        return preprocess_batch(key, batch, programs.dataset, step_options(config, size=size))

    def tracer(state: TrainState, batch: Any) -> dict[str, float]:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        with jax.set_mesh(programs.partitioner.mesh):
            seen = prepare(state, batch, config.shape_at(int(state.step))[0])
            ends = spectral_density(
                model, variables, seen, mode=TRAIN, loss=loss, steps=LANCZOS, probes=1
            )
            trace = hessian_trace(model, variables, seen, probes=PROBES, mode=TRAIN, loss=loss)
            small = _part_of(len(seen["label"]))
            noise = (
                noise_scale(model, variables, seen, small=small, mode=TRAIN, loss=loss)
                if small
                else None
            )
        loss_statistics = {"lambda_max": ends.lambda_max, "lambda_min": ends.lambda_min}
        loss_statistics |= {"trace": trace.trace, "trace_error": trace.error}
        return loss_statistics | (
            {"g2": noise.g2, "trace_sigma": noise.trace_sigma} if noise else {}
        )

    return tracer


def _part_of(batch_size: int) -> int:
    """Small batch of the noise scale: the largest divisor that gives at least four parts, or 0."""
    return next((size for size in range(batch_size // 4, 0, -1) if batch_size % size == 0), 0)


def _numbers(row: LayerRow) -> dict[str, float]:
    return _finite(
        {
            name: value
            for name, value in dataclasses.asdict(row).items()
            if name not in ("layer", "output", "shape", "runs")
        }
    )


def _finite(values: dict[str, Any]) -> dict[str, float]:
    return {
        name: value for name, value in values.items() if value is not None and math.isfinite(value)
    }
