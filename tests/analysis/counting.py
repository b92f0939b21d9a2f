"""How often something is traced: a function under `jax.jit` is called in Python once per trace."""

from collections.abc import Callable
from typing import Any


class CountCalls:
    """A function that counts its calls; hashable, so that it can be a static argument of jit."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.function(*arguments)
