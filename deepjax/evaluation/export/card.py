"""README.md of an exported folder: the model card."""

import json
from collections.abc import Sequence

from deepjax.evaluation.export.metadata import PATHS, Metadata
from deepjax.evaluation.export.timm_config import TIMM_FILE
from deepjax.models.weights.files import WEIGHTS_FILE

STABLEHLO_FILE = "model.stablehlo"
MAX_CLASSES = 20  # names in the card; deepjax.json has all


def model_card(about: Metadata, files: Sequence[str]) -> str:
    """The card: results, preprocessing, classes, how to load each file, recipe."""
    sections = [
        _front_matter(about),
        f"# {about.network}, {about.dataset.name}",
        _facts(about),
        f"## Results\n\n{_results(about)}",
        f"## Images\n\n{_images(about)}",
        f"## Classes\n\n{_classes(about)}",
        f"## Loading\n\n{_loading(about, files)}",
        f"## Recipe\n\n{_recipe(about)}",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(about: Metadata) -> str:
    licence = json.dumps(about.licence, ensure_ascii=False)  # a string of YAML too
    return f"---\nlicense: {licence}\npipeline_tag: image-classification\ntags:\n- deepjax\n---"


def _facts(about: Metadata) -> str:
    own = {key: value for key, value in about.fields.items() if key != "num_classes"}
    network = about.network + "".join(f", {key} {value}" for key, value in own.items())
    dataset = about.dataset
    rows = {
        "network": network,
        "weights": about.source,
        "data set": f"{dataset.name}: {dataset.train_size:,} training and {dataset.test_size:,} "
        f"test images of {dataset.num_classes:,} classes",
        "licence of the weights": about.licence,
        "precision of the activations": about.precision,
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {row} |" for key, row in rows.items())])


def _results(about: Metadata) -> str:
    found = about.metrics
    if "test_error" in found:
        lines = [f"- test error {100 * found['test_error']:.2f} %"]
        if "test_top5_error" in found:
            lines.append(f"- test top-5 error {100 * found['test_top5_error']:.2f} %")
        lines.append(f"- test loss {found['test_loss']:.4g}")
        return "\n".join(lines) + (
            f"\n\nMeasured on all {found['test_images']:,} test images at the end of the training, "
            f"step {found['step']:,}."
        )
    if "stated_top1" in found:
        return (
            f"Top-1 accuracy {found['stated_top1']} %, top-5 {found['stated_top5']} %, as the "
            "source of the weights states them. Not measured here."
        )
    return "Not measured."


def _images(about: Metadata) -> str:
    height, width, channels = about.input_shape
    mean, std = about.mean_and_std
    order = {1: "one channel, grey", 3: "RGB"}.get(channels, f"{channels} channels")
    if about.dataset.encoded:
        steps = [
            f"scale the shorter side to {about.shorter_side} pixels, {about.interpolation} with "
            "antialiasing, as by Pillow",
            f"take the {height} x {width} pixels at the centre",
        ]
    else:
        stored = about.dataset.shape[:2]
        steps = [f"arrays of {stored[0]} x {stored[1]} pixels"]
        if stored != (height, width):
            steps.append(f"resize to {height} x {width} pixels, bilinear with antialiasing")
    steps += [
        f"channel order: {order}",
        "divide by 255, so that pixels are 0 to 1",
        f"subtract the mean {mean}, divide by the standard deviation {std}",
    ]
    assumed = f"\n\nAssumed: {about.assumed}." if about.assumed else ""
    return "\n".join(f"{place}. {step}" for place, step in enumerate(steps, 1)) + assumed


def _classes(about: Metadata) -> str:
    names = about.dataset.label_names
    shown = ", ".join(f"{label} {name}" for label, name in enumerate(names[:MAX_CLASSES]))
    return shown + (f", ...; `deepjax.json` has all {len(names):,}" if names[MAX_CLASSES:] else "")


def _loading(about: Metadata, files: Sequence[str]) -> str:
    option = " --model " + about.network if ":" in about.network else ""
    parts = []
    if WEIGHTS_FILE in files:
        parts = [
            "In deepjax:\n\n    deepjax predict IMAGES --weights FOLDER" + option,
            _tensor_names(about, files),
        ]
    if STABLEHLO_FILE in files:
        height, width, channels = about.input_shape
        parts.append(
            "In JAX alone, with the package flatbuffers, on a CPU, a GPU or a TPU. The images are "
            f"float32 (batch, {height}, {width}, {channels}), normalised as above:\n\n"
            "```python\nfrom pathlib import Path\n\nfrom jax import export\n\n"
            f'program = export.deserialize(bytearray(Path("{STABLEHLO_FILE}").read_bytes()))\n'
            "logits = program.call(images)\n```"
        )
    return "\n\n".join(parts)


def _tensor_names(about: Metadata, files: Sequence[str]) -> str:
    """How PyTorch reads the tensors, or why it does not."""
    if about.layout == PATHS:
        return (
            f"The tensors of `{WEIGHTS_FILE}` have the paths of the variables in Flax as names, "
            "and Flax's order of axes: the network is in neither torchvision nor timm."
        )
    parts = []
    if about.layout == "torchvision" and "torchvision" in about.twins:
        arguments = f"num_classes={about.dataset.num_classes}"
        if "auxiliary" in about.fields:
            arguments += f", aux_logits={about.fields['auxiliary']}, init_weights=False"
        parts.append(
            "In torchvision:\n\n```python\nimport torchvision\n"
            "from safetensors.torch import load_file\n\n"
            f"model = torchvision.models.{about.twins['torchvision']}({arguments})\n"
            f'model.load_state_dict(load_file("{WEIGHTS_FILE}"))\nmodel.eval()\n```'
        )
    if TIMM_FILE in files:
        parts.append(
            "In timm, which takes the preprocessing from `config.json`:\n\n```python\n"
            'import timm\n\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True).eval()'
            "\n```"
        )
    return "\n\n".join(parts) or (
        f"The tensors have names by the rules of {about.layout}, which has no network that "
        "computes the same."
    )


def _recipe(about: Metadata) -> str:
    if not about.recipe:
        return "Unknown: the weights are not of a run of deepjax."
    options = json.dumps(dict(about.recipe), indent=2, ensure_ascii=False)
    listed = f"that are not the defaults:\n\n```json\n{options}\n```"
    if about.average:
        return (
            f"The weights are {about.average}. Options of `deepjax train` for the first of these "
            f"runs {listed}"
        )
    return f"Options of `deepjax train` {listed}"
