"""Types of the options that several instruments take."""

from collections.abc import Callable

Progress = Callable[[int, int], None] | None
"""Called with (units of work done, units in total)."""
