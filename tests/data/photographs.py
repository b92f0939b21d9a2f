"""Photographs of installed packages (scikit-learn, matplotlib), in every form in which ImageNet has
one.
"""

import functools
import io
from importlib import resources

import numpy as np
from PIL import Image

FILES = {
    "china": ("sklearn.datasets.images", "china.jpg"),  # 427 x 640
    "flower": ("sklearn.datasets.images", "flower.jpg"),  # 427 x 640
    "hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),  # 600 x 512
}
DAMAGED = ("truncated", "no_image", "empty")
"""The names of `variants` that no decoder accepts."""


@functools.cache
def photograph(name: str = "china") -> np.ndarray:
    """One full photograph, (height, width, 3) uint8, read-only: china, flower or hopper."""
    package, file = FILES[name]
    with Image.open(io.BytesIO(resources.files(package).joinpath(file).read_bytes())) as image:
        pixels = np.asarray(image.convert("RGB"))
    pixels.flags.writeable = False
    return pixels


def crops(count: int, seed: int = 0, shortest: int = 40, longest: int = 600) -> list[np.ndarray]:
    """Random crops of the photographs, (height, width, 3) uint8, sides and ratios as given."""
    rng = np.random.default_rng(seed)
    return [
        _crop(photograph(sorted(FILES)[i % len(FILES)]), rng, shortest, longest)
        for i in range(count)
    ]


def _crop(whole: np.ndarray, rng: np.random.Generator, shortest: int, longest: int) -> np.ndarray:
    # near 1 more often, as photographs are
    ratio = np.exp(rng.uniform(-np.log(4), np.log(4)) * rng.random())
    side = np.exp(rng.uniform(np.log(shortest), np.log(longest)))
    height, width = (int(np.clip(side * r, shortest, longest)) for r in (ratio**-0.5, ratio**0.5))
    share = min(whole.shape[0] / height, whole.shape[1] / width) * rng.uniform(0.5, 1)
    cut = int(height * share), int(width * share)
    y, x = (
        int(rng.integers(0, have - want + 1))
        for have, want in zip(whole.shape[:2], cut, strict=True)
    )
    piece = Image.fromarray(whole[y : y + cut[0], x : x + cut[1]])
    return np.asarray(piece.resize((width, height), Image.Resampling.BICUBIC))


def jpeg(
    pixels: np.ndarray, mode: str = "RGB", orientation: int = 1, quality: int = 90, **options
) -> bytes:
    """Pixels as JPEG in a mode of Pillow's (RGB, L, CMYK), with an EXIF orientation where not 1."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    more = options | ({"exif": exif} if orientation != 1 else {})
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", quality=quality, **more)
    return file.getvalue()


def png(pixels: np.ndarray, mode: str = "RGB") -> bytes:
    """Pixels as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


@functools.cache
def variants(name: str = "china") -> dict[str, bytes]:
    """One photograph, 190 x 250, in every form.

    Colours, scans, sampling, orientations, sizes, corrupt.
    """
    pixels = photograph(name)[40:230, 60:310]
    whole = jpeg(pixels)
    return {
        "baseline": whole,
        "progressive": jpeg(pixels, progressive=True),
        "full_chroma": jpeg(pixels, subsampling="4:4:4"),
        "half_chroma": jpeg(pixels, subsampling="4:2:2"),
        "grey": jpeg(pixels, "L"),
        "cmyk": jpeg(pixels, "CMYK"),
        "rotated": jpeg(pixels, orientation=6),
        "mirrored": jpeg(pixels, orientation=2),
        "restarts": jpeg(pixels, restart_marker_rows=2),
        "png": png(pixels),
        "png_palette": png(pixels, "P"),
        "tall": jpeg(pixels[:, :7]),
        "wide": jpeg(pixels[:5]),
        "pixel": jpeg(pixels[:1, :1]),
        "truncated": whole[: len(whole) // 2],
        "no_image": b"this is no image " * 40,
        "empty": b"",
    }
