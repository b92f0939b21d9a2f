"""The original archives of Fashion-MNIST, where they are at hand."""

import os
from pathlib import Path

import pytest

FOLDERS = (
    Path(__file__).parents[2] / ".data" / "fashion-mnist",  # where .ci/run writes them
    Path("/usr/share/datasets/fashion-mnist"),  # Debian's package dataset-fashion-mnist
)
ARCHIVES = next((folder for folder in FOLDERS if folder.exists()), FOLDERS[0])
needs_archives = pytest.mark.skipif(
    not ARCHIVES.exists() and os.environ.get("DEEPJAX_REQUIRE_FASHION_MNIST") != "1",
    reason="the archives of Fashion-MNIST are not at hand (.ci/run writes .data/fashion-mnist)",
)
