"""Removal of wrappers' prefixes: `state_dict.module.conv1.weight` -> `conv1.weight`."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from deepjax.errors import InputError, unknown_name_error

# Parts that PyTorch's wrappers add anywhere in a name: DistributedDataParallel and AveragedModel,
# compile, FSDP, checkpointing.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
COUNTER = "n_averaged"  # of AveragedModel: how many models were averaged
# of the names of the best prefix, for another to be a network of its own; an average may lack
# statistics
MIN_FRACTION = 0.25


@dataclasses.dataclass(frozen=True)
class Unwrapped:
    """The given name of each of the network's tensors, and a note on what was removed, or ""."""

    given: Mapping[str, str]
    note: str


def unwrap(names: Iterable[str], wanted: Collection[str], entry: str | None = None) -> Unwrapped:
    """Given names by the network's, without wrappers and without the prefix of most `wanted` names.

    `entry`: the prefix to read where there are several networks, such as "model_ema". Names outside
    the prefix are dropped, which the note says; without a prefix all names are kept. Raises
    InputError for several networks without `entry`, for an unknown entry, and for two tensors of
    one name.

    >>> names = ["model.module.fc.bias", "model.module.fc.weight", "queue"]
    >>> unwrap(names, ["fc.bias", "fc.weight"]).note
    "names are read without 'model.' and 'module.'; ignored: queue"
    """
    names = [name for name in names if name.rpartition(".")[2] != COUNTER]
    plain = {
        name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names
    }
    found = _prefixes(plain.values(), wanted)
    prefix = _select_prefix(found, entry)
    if prefix is None:
        return Unwrapped({name: name for name in names}, "")
    others = [other for other in found if other.startswith(prefix) and other != prefix]
    inside = [
        name
        for name in names
        if plain[name].startswith(prefix) and not plain[name].startswith(tuple(others))
    ]
    given: dict[str, str] = {}
    for name in inside:
        short = plain[name].removeprefix(prefix)
        if short in given:
            raise InputError(
                f"{short} is there twice, as {given[short]!r} and {name!r}; give the tensors of "
                "one network"
            )
        given[short] = name
    wrappers = [f"{part}." for part in WRAPPERS if any(part in name.split(".") for name in inside)]
    outside = sorted(set(names) - set(inside))
    return Unwrapped(given, _note([prefix] * bool(prefix) + wrappers, outside))


def _prefixes(names: Iterable[str], wanted: Collection[str]) -> list[str]:
    """The prefixes under which a network is found, the one with most of its names first."""
    counts: Counter[str] = Counter()
    wanted = frozenset(wanted)
    for name in names:
        parts = name.split(".")
        place = next(
            (place for place in range(len(parts)) if ".".join(parts[place:]) in wanted), None
        )
        if place is not None:
            counts["".join(f"{part}." for part in parts[:place])] += 1
    best = max(counts.values(), default=0)
    return [prefix for prefix, count in counts.most_common() if count >= MIN_FRACTION * best]


def _select_prefix(found: list[str], entry: str | None) -> str | None:
    entries = [prefix.removesuffix(".") for prefix in found]
    if entry is not None:
        plain = ".".join(part for part in entry.split(".") if part not in WRAPPERS)
        if plain not in entries:
            raise unknown_name_error("entry", entry, entries)
        return found[entries.index(plain)]
    if len(found) > 1:
        listed = " or ".join(f"entry={each!r}" for each in entries)
        raise InputError(
            f"there are tensors of {len(found)} networks; give {listed}, or save the one that is "
            "meant alone"
        )
    return found[0] if found else None


def _note(removed: list[str], outside: list[str]) -> str:
    notes = [f"names are read without {' and '.join(map(repr, removed))}"] if removed else []
    if outside:
        rest = f" and {len(outside) - 3} more" if len(outside) > 3 else ""
        notes.append(f"ignored: {', '.join(outside[:3])}{rest}")
    return "; ".join(notes)
