"""The folder of an exported network: written completely or not at all."""

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from deepjax.errors import InputError, require
from deepjax.evaluation.export.card import STABLEHLO_FILE, model_card
from deepjax.evaluation.export.metadata import METADATA_FILE, PATHS, Metadata, to_json
from deepjax.evaluation.export.plain import without_wrappers
from deepjax.evaluation.export.stablehlo import require_flatbuffers, to_stablehlo
from deepjax.evaluation.export.timm_config import TIMM_FILE, timm_config
from deepjax.evaluation.predict import EvalModel
from deepjax.evaluation.protocols import resolve_protocol
from deepjax.io import write_bytes, write_text
from deepjax.models.weights.convert import Layout, to_torch
from deepjax.models.weights.files import WEIGHTS_FILE, write_safetensors
from deepjax.models.weights.torch_names import TorchLayout, layouts
from deepjax.models.weights.twins import twin
from deepjax.models.weights.variable_names import to_paths
from deepjax.training.config import is_custom

Format = Literal["safetensors", "stablehlo"]
CARD_FILE = "README.md"


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a network's variables alone do not say; the fields are those of `Metadata`."""

    fields: Mapping[str, Any]
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    licence: str = "unknown"
    average: str = ""


def check_new_folder(out: Path) -> None:
    """Raise InputError for a path that exists, unless it is an empty folder."""
    is_new = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    require(is_new, "output_dir", str(out), "a new folder, or an empty one")


def export_network(
    member: EvalModel,
    origin: Origin,
    out: Path,
    formats: Sequence[Format] = ("safetensors",),
    layout: Layout | None = None,
) -> list[str]:
    """Write the folder `out` of a network; the names of its files.

    member: with the names of the classes in its data set. Raises InputError for a folder that is
    not empty, a layout that the network does not have, and a network that cannot be exported.
    """
    check_new_folder(out)
    if "stablehlo" in formats:
        require_flatbuffers()
    model, variables = without_wrappers(member.model, member.variables)
    known = {} if is_custom(member.name) else layouts(model)
    named_by = _choose_layout(member.name, known, layout)
    about = describe_network(member, model, origin, named_by)
    files: dict[str, Any] = {}
    if "safetensors" in formats:
        fields = {name: value for name, value in about.fields.items() if name != "num_classes"}
        files[WEIGHTS_FILE] = (
            to_torch(member.name, variables, named_by, **fields)
            if named_by in known
            else to_paths(variables)
        )
        if "timm" in about.twins and known[named_by] == known["timm"]:
            files[TIMM_FILE] = timm_config(about, known["timm"])
    if "stablehlo" in formats:
        files[STABLEHLO_FILE] = to_stablehlo(model, variables, about.input_shape)
    files[METADATA_FILE] = to_json(about)
    files[CARD_FILE] = model_card(about, list(files))
    _write_folder(out, files, {"format": "pt", "architecture": member.name})
    return list(files)


def describe_network(member: EvalModel, model: Any, origin: Origin, layout: str) -> Metadata:
    """The metadata of a network. model: that of `member` without wrappers."""
    fields = {name: value for name, value in origin.fields.items() if name != "scan"}
    if isinstance(getattr(model, "auxiliary", None), bool):
        fields["auxiliary"] = model.auxiliary
    side = max(member.stored or (member.crop,))
    twins = {
        library: twin(member.name, model, library, side) for library in ("torchvision", "timm")
    }
    if member.dataset.shape[2] != 3:
        twins["torchvision"] = ""  # which has no argument for the number of channels
    protocol = resolve_protocol("1-crop", member.name, member.crop, member.resize, (), None)
    return Metadata(
        network=member.name,
        fields=fields,
        layout=layout,
        twins={library: name for library, name in twins.items() if name},
        source=member.source,
        dataset=member.dataset,
        crop=member.crop,
        shorter_side=protocol.sides[0] if member.dataset.encoded else 0,
        interpolation=member.interpolation,
        resized=member.stored,
        assumed=member.assumed.partition("; override")[0],  # by options of the export
        precision=member.precision,
        licence=origin.licence,
        recipe=origin.recipe,
        metrics=origin.metrics,
        fingerprint=member.trained_on.fingerprint if member.trained_on else "",
        average=origin.average,
    )


def _choose_layout(name: str, known: Mapping[str, TorchLayout], given: Layout | None) -> Any:
    """The given layout, or the network's first, or that of its own paths."""
    allowed = " or ".join(map(repr, known)) or "none"
    why = f"{allowed} for {name}" + ("" if known else ", which has no twin; leave --layout out")
    require(given is None or given in known, "layout", given, why)
    return given or next(iter(known), PATHS)


def _write_folder(out: Path, files: Mapping[str, Any], about: Mapping[str, str]) -> None:
    """Write texts, bytes and tensors into a folder that appears once it is complete."""
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        for name, content in files.items():
            if isinstance(content, str):
                write_text(partial / name, content)
            elif isinstance(content, bytes):
                write_bytes(partial / name, content)
            else:
                write_safetensors(partial / name, content, about, overwrite=False)
        partial.replace(out)
    except OSError as error:
        raise InputError(
            f"cannot write {out}: {error.strerror}; free space, or choose another --output-dir"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
