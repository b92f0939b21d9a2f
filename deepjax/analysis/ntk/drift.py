"""How far the tangent kernel of a network moves in training.

Lee, Xiao, Schoenholz, Bahri, Novak, Sohl-Dickstein and Pennington, "Wide neural networks of any
depth evolve as linear models under gradient descent", 2019 (arXiv:1902.06720).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jax import Array

from deepjax.analysis.core.instrument import instrument
from deepjax.analysis.core.layers import Layers
from deepjax.analysis.core.mode import EVAL, Mode
from deepjax.analysis.core.options import Progress
from deepjax.analysis.core.params import check_like
from deepjax.analysis.core.result import Result
from deepjax.analysis.network.batch import Batches, data_text
from deepjax.analysis.network.module import Model, entry
from deepjax.analysis.ntk.kernel import ntk
from deepjax.analysis.ntk.tangent_kernel import Output, TangentKernel
from deepjax.errors import require


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class KernelDrift(Result):
    """The change of a network's kernel; 0 where training is that of the linearised network."""

    drift: float
    """|K_t - K_0| / |K_0|, Frobenius norms."""
    alignment: float
    """Cosine of K_t and K_0 as vectors: 1 where the kernel was only scaled."""
    growth: float
    """|K_t| / |K_0|."""
    kernel_0: TangentKernel
    kernel_t: TangentKernel

    def summary(self) -> dict[str, Any]:
        """The change, the alignment, the growth, and the number of examples."""
        return {
            "drift": self.drift,
            "alignment": self.alignment,
            "growth": self.growth,
            "examples": len(self.kernel_0.matrix),
        }

    def rows(self) -> list[dict[str, Any]]:
        """One dict: the summary."""
        return [self.summary()]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """Every entry of K_t against that of K_0; returns the matplotlib Axes."""
        from deepjax.analysis.plots import COLORS, canvas, format_percent

        before, after = self.kernel_0.flattened, self.kernel_t.flattened
        diagonal = np.eye(len(before), dtype=bool)
        low, high = float(min(before.min(), after.min())), float(max(before.max(), after.max()))
        pairs: dict[str, Any] = {"color": COLORS[0], "ms": 4, "alpha": 0.5, "label": "two examples"}
        singles: dict[str, Any] = {"color": COLORS[1], "ms": 4, "label": "an example with itself"}
        with canvas(ax, 4.8, 4.4, title) as axes:
            axes.plot([low, high], [low, high], "--", color="0.5", linewidth=1)
            axes.plot(before[~diagonal], after[~diagonal], ".", **pairs)
            axes.plot(before[diagonal], after[diagonal], "o", **singles)
            finding = f"The kernel moved by {format_percent(self.drift)}"
            change = f"alignment {self.alignment:.4g}, norm x {self.growth:.3g}"
            kernel = self.kernel_0
            data = data_text(len(kernel.matrix), kernel.mode, kernel.has_batch_norm)
            axes.set_title(f"{finding}\n{change}, {data}")
            axes.set(xlabel="$K_0$", ylabel="$K_t$ (dashed: no change)")
            axes.legend(loc="upper left")
        return axes


@instrument
def kernel_drift(
    model: Model,
    variables_0: Any,
    variables_t: Any,
    batch: Batches,
    *,
    mode: Mode = EVAL,
    layers: Layers = None,
    key: Array | None = None,
    chunk: int = 16,
    progress: Progress = None,
    output: Output = "mean",
) -> KernelDrift:
    """Relative change and alignment of the kernel between two moments of training.

    Arguments and errors as for `ntk`; also raises InputError for variables of different shapes.
    Cost: twice that of `ntk`. Source: Lee et al. 2019, section 2.2 and Figure 1; alignment, Fort
    et al. 2020 (arXiv:2010.15110), section 2.
    """
    model, variables_0 = entry(model, variables_0)
    model, variables_t = entry(model, variables_t)
    check_like("variables_t", variables_t["params"], variables_0["params"])
    halves = [progress and functools.partial(_half, progress, which) for which in (0, 1)]
    options: dict[str, Any] = {"mode": mode, "layers": layers, "key": key, "chunk": chunk}
    first, last = (
        ntk(model, variables, batch, **options, progress=half, output=output)
        for variables, half in zip((variables_0, variables_t), halves, strict=True)
    )
    norm_0, norm_t = (float(np.linalg.norm(kernel.matrix)) for kernel in (first, last))
    require(
        norm_0 > 0 and norm_t > 0,
        "kernel",
        "0 everywhere",
        "a network whose outputs move with its parameters",
    )
    alignment = float(np.vdot(first.matrix, last.matrix)) / (norm_0 * norm_t)
    return KernelDrift(
        float(np.linalg.norm(last.matrix - first.matrix)) / norm_0,
        alignment,
        norm_t / norm_0,
        first,
        last,
    )


def _half(progress: Callable[[int, int], None], which: int, done: int, total: int) -> None:
    progress(which * total + done, 2 * total)
