"""Errors that a command line turns into an exit code and one line."""

import difflib
import re
from collections.abc import Iterable

MAX_NAMES_SHOWN = 24  # in one line of an error


class InputError(ValueError):
    """Invalid input (exit 2): the message names the field, the given and the allowed values."""


class NonFiniteError(RuntimeError):
    """Training met NaN or infinity and halted before the state was changed (exit 3)."""


class Stopped(RuntimeError):
    """A stop signal such as SIGTERM: the state was saved, the run can be resumed (exit 143)."""


def unknown_name_error(
    what: str, given: object, allowed: Iterable[str], listed_by: str = ""
) -> InputError:
    """The error for an unknown name: with the nearest name, and the allowed ones.

    listed_by: a command that prints the allowed names, in place of a long list.
    """
    names = sorted(allowed)
    # resnet20 means cifar_resnet20 rather than resnet200; stage1 means stage1_block1.
    near = [name for name in names if name.endswith(f"_{given}")]
    near = near or [name for name in names if re.match(rf"{re.escape(str(given))}[_/]", name)]
    near = near or difflib.get_close_matches(str(given), names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    shown = ", ".join(names[:MAX_NAMES_SHOWN]) + (
        f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    )
    rest = f"{len(names)} names, listed by `{listed_by}`" if listed_by else shown or "none"
    return InputError(f"{what} {given!r} is unknown; {hint}allowed: {rest}")


def require(condition: bool, field: str, given: object, allowed: str) -> None:
    """Raise InputError with field, given value and allowed values unless the condition holds."""
    if not condition:
        raise InputError(f"{field} is {given!r}; allowed: {allowed}")


def describe_error(error: BaseException) -> str:
    """Type and first line of an error, at most 200 characters, for a message.

    >>> describe_error(ValueError("not a JPEG"))
    'ValueError: not a JPEG'
    """
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def require_devices() -> None:
    """Raise InputError when JAX finds no device of the platforms that JAX_PLATFORMS names."""
    import jax  # here, to keep the import of this module light

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: the plugin is not installed
        named = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        why = str(error).split(" (set JAX_PLATFORMS")[0].splitlines()
        raise InputError(
            f"JAX finds no device for JAX_PLATFORMS={named}{f' ({why[0][:200]})' if why else ''}; "
            "set it to cpu, unset it to use any available backend, or install JAX for that "
            "platform, e.g. jax[cuda13] or jax[tpu]"
        ) from error
