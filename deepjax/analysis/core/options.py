"""Types of the options that several instruments take."""

from collections.abc import Callable
from typing import Literal

BatchStatistics = Literal["running", "batch"]
"""Of batch norm.

"running": evaluation mode, stored statistics; "batch": training mode, those of each batch.
"""
Progress = Callable[[int, int], None] | None
"""Called with (units of work done, units in total)."""
