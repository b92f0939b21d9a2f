"""A look at every layer during training: what `deepjax.analysis.trace` shows, of the state and batch that the next step takes."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from deepjax.analysis.layer_report import LayerReport, LayerRow, layer_statistics, report
from deepjax.analysis.taps import Site, sites
from deepjax.training.options import Tier
from deepjax.training.programs import Programs, step_options
from deepjax.training.state import TrainState
from deepjax.training.step import DROPOUT, classifier_loss, prepared

Tracer = Callable[[TrainState, Any], LayerReport]


def make_tracer(programs: Programs, tier: Tier) -> Tracer:
    """(state, batch on the devices) -> report, compiled at its first call; the state is not donated.

    The gradients are the classifier's over the whole batch at once: without auxiliary heads, accumulation and rematerialisation.
    `tier`: "economy" looks at the network's top-level modules, "business" at every layer. Cost: one forward and one backward pass.
    """
    config, model, dataset = programs.config, programs.model, programs.dataset
    options = step_options(config)
    at: list[Site] = []

    def statistics(state: TrainState, batch: Any) -> Any:
        key = jax.random.fold_in(state.key, state.step)
        seen = prepared(key, batch, dataset, options)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        rngs = {"dropout": jax.random.fold_in(key, DROPOUT)}
        rate = state.learning_rate * programs.schedule(state.step)
        known = sites(model, variables, seen, classifier_loss, True, rngs)
        at[:] = [site for site in known if tier == "business" or "/" not in site.path]

        def updates_of(gradients: Any) -> Any:
            updates, _ = programs.optimizer.update(gradients, state.opt_state, state.params)
            return jax.tree.map(lambda update: rate.astype(update.dtype) * update, updates)

        return layer_statistics(model, variables, seen, classifier_loss, True, rngs, at, updates_of)

    compiled = jax.jit(statistics)

    def tracer(state: TrainState, batch: Any) -> LayerReport:
        with jax.set_mesh(programs.spread.mesh):
            found = jax.device_get(compiled(state, batch))
        return report(found, at, train=True)

    return tracer


def trace_row(report: LayerReport) -> dict[str, Any]:
    """The report as part of a row of metrics.jsonl: {"loss": ..., "layers": {path: {what: number}}}, but for what is not known."""
    return {"loss": report.loss, "layers": {row.layer or "network": _numbers(row) for row in report.layers if row.runs}}


def _numbers(row: LayerRow) -> dict[str, float]:
    values = {name: value for name, value in dataclasses.asdict(row).items() if name not in ("layer", "shape", "runs")}
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
