"""Networks as they are written, for what reads a traced computation in place of running it."""

import contextlib
import contextvars
from collections.abc import Iterator

_AS_WRITTEN: contextvars.ContextVar[bool] = contextvars.ContextVar("as_written", default=False)


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """While a network is traced within, no layer takes the form that its backend computes fastest."""
    token = _AS_WRITTEN.set(True)
    try:
        yield
    finally:
        _AS_WRITTEN.reset(token)


def is_read() -> bool:
    """Whether what is traced now is to be read."""
    return _AS_WRITTEN.get()
