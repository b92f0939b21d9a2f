"""Images and maps over them, side by side in one figure."""

from typing import Any

import numpy as np

MAX_IMAGES = 8
GAP = 0.04  # between images, relative to their width


def normalised(images: np.ndarray) -> np.ndarray:
    """(images, height, width, 3) from 0 to 1, each stretched to its own range.

    The first three channels of an image of several; grey for one or two.
    """
    shown = np.asarray(images, np.float32)
    shown = shown[..., :3] if shown.shape[-1] >= 3 else np.repeat(shown[..., :1], 3, axis=-1)
    low, high = shown.min((1, 2, 3), keepdims=True), shown.max((1, 2, 3), keepdims=True)
    return (shown - low) / np.where(high > low, high - low, 1)


def draw_montage(ax: Any, rows: list[tuple[Any, dict[str, Any]]], names: list[str]) -> None:
    """Draw rows of images on an Axes, each (images, height, width[, 3]) with options of `imshow`.

    A row is (arrays drawn over each other, options of the last). names: of the columns.
    """
    height, width = rows[0][0][0].shape[1:3]
    gap = GAP * width
    for line, (layers, options) in enumerate(rows):
        top = line * (height + gap)
        for at in range(len(layers[0])):
            left = at * (width + gap)
            extent = (left, left + width, top + height, top)
            for depth, images in enumerate(layers):
                more = options if depth == len(layers) - 1 else {}
                ax.imshow(images[at], extent=extent, **more)
    for at, name in enumerate(names):
        ax.text(at * (width + gap) + width / 2, -gap, name, ha="center", va="bottom", fontsize=8)
    ax.set_xlim(0, len(names) * (width + gap) - gap)
    ax.set_ylim(len(rows) * (height + gap) - gap, -0.12 * height)
    ax.set_axis_off()
