"""The effective receptive field of a layer: a map of influence, its size, and its figure."""

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from deepjax.analysis.core.mode import Mode
from deepjax.analysis.core.result import Result
from deepjax.errors import InputError

THRESHOLD = 1 - 0.9545  # relative to the peak (Luo et al. 2016, section 3)
Power = Literal["absolute", "square"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class EffectiveField(Result):
    """The influence of each pixel on the centre unit of a layer. Lengths in pixels of the input."""

    layer: str
    """Path of the module; "" is the network."""
    unit: tuple[int, int]
    """Row and column of the centre unit in the output."""
    power: Power
    mode: Mode
    mode_text: str
    """How the network was set to that mode, and what it samples and writes in evaluation."""
    map: np.ndarray
    """(height, width): |gradient| or its square, averaged over channels and images."""
    size: float
    """Square root of the number of pixels above 4.55 % of the peak of the map."""
    sigma: tuple[float, float]
    """Standard deviations of the map as a distribution over rows and over columns."""
    r2: float
    """R^2 of the Gaussian with those moments, its height by least squares."""
    theoretical: tuple[int, int] | None
    """Rows and columns of the theoretical field in evaluation; None: the full image, or unknown."""

    @property
    def ratio(self) -> float | None:
        """Effective over theoretical size: about 1 / sqrt(layers) in a plain stack."""
        return self.theoretical and self.size / math.sqrt(math.prod(self.theoretical))

    def summary(self) -> dict[str, Any]:
        """Size, standard deviation and shape of the field."""
        return {
            "size": self.size,
            "sigma": float(np.mean(self.sigma)),
            "R^2": self.r2,
            "theoretical": self.theoretical,
            "ratio": self.ratio,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One dict of all values except the map."""
        names = ("layer", "unit", "power", "size", "sigma", "r2", "theoretical", "ratio")
        return [{name: getattr(self, name) for name in names}]

    def plot(self, ax: Any = None, title: str | None = None) -> Any:
        """The map with a scale bar, and the theoretical field as a square; returns the Axes."""
        from deepjax.analysis.plots import COLORS, canvas

        with canvas(ax, 4.8, 4.4, title) as axes:
            rows, columns = self.map.shape
            image = axes.imshow(
                self.map / self.map.max(), cmap="magma", vmin=0, vmax=1, interpolation="nearest"
            )
            kind = "|gradient|" if self.power == "absolute" else "gradient²"
            axes.figure.colorbar(image, ax=axes, shrink=0.85, label=f"mean {kind} / its peak")
            _outline(axes, self, COLORS[5])
            left, bottom = 0.04 * columns, 0.95 * rows
            axes.plot(
                [left, left + self.size],
                [bottom, bottom],
                color="white",
                linewidth=3,
                solid_capstyle="butt",
            )
            axes.text(
                left,
                bottom - 0.02 * rows,
                f"{self.size:.1f} pixels",
                color="white",
                va="bottom",
                fontsize=9,
            )
            axes.set(title=_field_title(self), xlabel="column (pixels)", ylabel="row (pixels)")
            axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
            axes.grid(False)
        return axes


def measure_field(
    found: np.ndarray,
    layer: str,
    unit: tuple[int, int],
    power: Power,
    theoretical: tuple[int, int] | None,
    mode: Mode,
    mode_text: str,
) -> EffectiveField:
    """The field of a map; raises InputError for one that is 0 or not finite."""
    if not (np.isfinite(found).all() and found.max() > 0):
        what = "no pixel influences"
        if not np.isfinite(found).all():
            what = "the gradient is not finite for"
        raise InputError(
            f"layer {layer!r}: {what} its centre unit {unit} in these inputs; use other variables, "
            "inputs or layer"
        )
    size = math.sqrt(np.count_nonzero(found > THRESHOLD * found.max()))
    sigma, r2 = _gaussian(found)
    return EffectiveField(layer, unit, power, mode, mode_text, found, size, sigma, r2, theoretical)


def _gaussian(found: np.ndarray) -> tuple[tuple[float, float], float]:
    """(standard deviations over rows and columns, R^2 of the Gaussian that has them)."""
    bells, sigma = [], []
    for axis in (0, 1):
        profile = found.sum(axis=1 - axis) / found.sum()
        places = np.arange(len(profile))
        mean = profile @ places
        sigma.append(math.sqrt(profile @ (places - mean) ** 2))
        bells.append(np.exp(-0.5 * ((places - mean) / max(sigma[-1], 1e-6)) ** 2))
    bell = np.outer(*bells)
    height = (found * bell).sum() / (bell**2).sum() if bell.any() else 0.0
    spread = ((found - found.mean()) ** 2).sum()
    r2 = 1 - ((found - height * bell) ** 2).sum() / spread if spread else math.nan
    return (sigma[0], sigma[1]), float(r2)


def _outline(ax: Any, field: EffectiveField, color: str) -> None:
    """The theoretical field, as a square around the map's centre of mass.

    The position of a unit's field depends on strides and padding, its size does not.
    """
    from matplotlib.patches import Rectangle

    if field.theoretical is None:
        return
    weights = field.map / field.map.sum()
    row, column = (weights.sum(axis=1 - axis) @ np.arange(weights.shape[axis]) for axis in (0, 1))
    height, width = field.theoretical
    corner = (round(2 * (column - width / 2)) / 2, round(2 * (row - height / 2)) / 2)
    ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=color, linewidth=1.4))
    text = f"theoretical {height} x {width}"
    ax.text(
        max(corner[0], 0) + 0.5, max(corner[1], 0) + 0.5, text, color=color, fontsize=9, va="top"
    )


def _field_title(field: EffectiveField) -> str:
    of = "" if field.ratio is None else f", {100 * field.ratio:.0f} % of the theoretical"
    spread = f"$\\sigma$ = {np.mean(field.sigma):.2f} pixels, $R^2$ of a Gaussian {field.r2:.3f}"
    return f"Effective field: {field.size:.1f} pixels wide{of}\n{spread}"
