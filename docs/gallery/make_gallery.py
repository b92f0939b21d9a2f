"""Draw the thumbnails of the gallery, and write its page.

`python docs/gallery/make_gallery.py` for all thumbnails, or with names such as `trace` or
`degradation`. Those of instruments are the figures of one line of code each, on the network of
docs/instruments/index.md; those of studies are their published first figures. Without the option
`--page`, which writes the page alone, all of them are drawn, in about three minutes.
"""

import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCS = HERE.parent
RESULTS = DOCS / "results"
WIDTH, HEIGHT, COLORS = 400, 260, 128
INCHES, DPI = (5.2, 3.4), 77

# The instrument, the page that describes it, what it shows, and the line of code.
INSTRUMENTS = (
    ("trace", "layers", "What reaches each layer, forwards and backwards",
     "analysis.trace(model, trained, batch)"),
    ("histograms", "layers", "Values of activations and of their gradients",
     "analysis.histograms(model, trained, batch, layers='stage?_block?')"),
    ("cka", "layers", "Which layers have similar representations",
     "analysis.cka(model, trained, batch, layers='stage?_block?')"),
    ("per_example_gradients", "gradients", "Signal and noise of the gradients of single examples",
     "analysis.per_example_gradients(model, trained, batch)"),
    ("noise_scale", "gradients", "The batch size at which noise and signal are equal",
     "analysis.noise_scale(model, initial, batches, small=16)"),
    ("gradient_confusion", "gradients", "Which examples pull in opposite directions",
     "analysis.gradient_confusion(model, trained, batch, layers='head')"),
    ("shattering", "gradients", "Whether gradients at different inputs are like noise",
     "analysis.shattering(model, initial, batch)"),
    ("loss_contributions", "gradients", "Which loss reaches which layer",
     "analysis.loss_contributions(heads, its_variables, pixels)"),
    ("top_eigenvalues", "curvature", "The extreme eigenvalues of the Hessian",
     "analysis.top_eigenvalues(model, trained, batch, k=5, steps=24)"),
    ("spectral_density", "curvature", "All eigenvalues of the Hessian, as a density",
     "analysis.spectral_density(model, trained, batch, steps=24, probes=1)"),
    ("linear_interpolation", "landscape", "The loss between two networks",
     "analysis.linear_interpolation(model, initial, trained, batch, mode=TRAIN, chunk=25)"),
    ("loss_plane", "landscape", "The loss on the plane of a training",
     "analysis.loss_plane(model, trained, batch, *path.directions, path=path, "
     "grid=path.grid(21), chunk=21, mode=TRAIN)"),
    ("ntk", "ntk", "How examples influence each other's outputs",
     "analysis.ntk(model, trained, few)"),
    ("kernel_drift", "ntk", "How training changes the tangent kernel",
     "analysis.kernel_drift(model, initial, trained, few)"),
    ("lesions", "residual", "The error without each residual branch",
     "analysis.lesions(model, trained, batch)"),
    ("path_lengths", "residual", "How many branches the gradient passes",
     "analysis.path_lengths(model, trained, batch)"),
    ("signal_propagation", "propagation", "Mean and variance of the signal by block",
     "analysis.signal_propagation(model, initial, batch)"),
    ("layer_fields", "receptive_field", "The receptive field of every layer",
     "analysis.layer_fields(model, (48, 48, 1))"),
    ("effective_field", "receptive_field", "The pixels that a unit depends on in effect",
     "analysis.effective_field(model, initial, noise, layers='stage2_block2')"),
    ("grad_cam", "attribution", "Where a class is seen",
     "analysis.grad_cam(model, trained, six, 'stage2_block2')"),
    ("integrated_gradients", "attribution", "The part of each pixel in a score",
     "analysis.integrated_gradients(model, trained, six, steps=32)"),
    ("cost", "cost", "Parameters, multiply-adds and memory by layer",
     "analysis.cost(create_model('vgg16'), (224, 224, 3))"),
)  # fmt: skip

# Names of those lines that the page of instruments does not define.
SETUP = """
import jax, jax.numpy as jnp
from deepjax.analysis import TRAIN
batches = [{name: array[i::5] for name, array in data.items()} for i in range(5)]
few, six = ({name: array[:n] for name, array in batch.items()} for n in (32, 6))
noise = jax.random.normal(jax.random.key(1), (16, 48, 48, 1))
path = analysis.trajectory(history[::4])
heads = create_model("googlenet_bn", width=4, num_classes=10)
pixels = {"image": jax.random.normal(jax.random.key(2), (8, 64, 64, 1)), "label": jnp.arange(8)}
its_variables = heads.init(
    {"params": jax.random.key(0), "dropout": jax.random.key(1)}, pixels["image"], train=True,
    mutable=["params", "batch_stats", "auxiliary"],
)
its_variables = {name: its_variables[name] for name in ("params", "batch_stats")}
"""


def studies() -> list[tuple[str, dict[str, Any]]]:
    """The published studies with their results, in the order of the page of results."""
    found = {path.parent.name: path for path in RESULTS.glob("*-small/result.json")}
    text = (RESULTS / "README.md").read_text()
    names = sorted(found, key=lambda name: text.find(f"]({name}/report.html)"))
    return [(name.removesuffix("-small"), json.loads(found[name].read_text())) for name in names]


def page() -> str:
    """The text of docs/gallery/index.md."""
    parts = [
        "# Gallery",
        "Figures of instruments and studies. `python docs/gallery/make_gallery.py` draws all of "
        "them and writes this page.",
        "## Instruments",
        "Each figure is the result of the line below it, followed by `.plot()`, on the network of "
        "[the examples](../instruments/index.md#the-network-of-the-examples): 14 layers, 40 steps "
        "on digits. The exceptions are `cost`, on VGG-16, and `loss_contributions`, on an "
        "untrained GoogLeNet.",
        '<div class="gallery" markdown>',
        "\n".join(
            f"- [![{text}]({name}.png)](../instruments/{where}.md#{_anchor(name, where)})\n"
            f"  **{text}**<br>`{code}`"
            for name, where, text, code in INSTRUMENTS
        ),
        "</div>",
        "## Studies",
        "The first figure of each study, with its question. The verdicts are on [the page of all "
        "claims](../results/README.md).",
        '<div class="gallery" markdown>',
        "\n".join(
            f"- [![{result['title']}]({study}.png)](../results/{study}-small/report.html)\n"
            f"  **{result['title']}**<br>[claims](../results/README.md#{study}) · "
            f"`python experiments/{study}.py --preset small`"
            for study, result in studies()
        ),
        "</div>",
    ]
    return "\n\n".join(parts) + "\n"


def _anchor(name: str, where: str) -> str:
    """The heading of an instrument on its page, or that of the one that it is described with."""
    text = (DOCS / "instruments" / f"{where}.md").read_text()
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    return name if name in headings else headings[0]


def names_of_the_examples() -> dict[str, Any]:
    """What the first page of the instruments defines, and what the lines need in addition."""
    path = DOCS / "instruments" / "make_pictures.py"
    spec = importlib.util.spec_from_file_location("make_pictures", path)
    pictures = importlib.util.module_from_spec(spec)  # pyright: ignore[reportArgumentType]
    spec.loader.exec_module(pictures)  # pyright: ignore[reportOptionalMemberAccess]
    names: dict[str, Any] = {}
    for block in pictures.BLOCK.finditer(pictures.text_of("index")):
        pictures.run(block["code"], names)
    pictures.run(SETUP, names)
    return names


def draw(code: str, names: dict[str, Any]) -> bytes:
    """The figure of one line, as a PNG."""
    import matplotlib.pyplot as plt

    from deepjax.analysis.plots import STYLE

    with plt.style.context([STYLE, {"figure.figsize": INCHES, "font.size": 9}]):
        eval(code, names).plot()  # noqa: S307  # the table above
        pixels = io.BytesIO()
        plt.figure(plt.get_fignums()[-1]).savefig(pixels, dpi=DPI, bbox_inches="tight")
    plt.close("all")
    return pixels.getvalue()


def save(pixels: bytes, path: Path) -> None:
    """A figure as a small PNG of the gallery's size, with a palette, on white."""
    from PIL import Image

    image = Image.open(io.BytesIO(pixels)).convert("RGB")
    image.thumbnail((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    image.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


def main(chosen: list[str]) -> None:
    """Draw the thumbnails that are named, or all; write the page."""
    import matplotlib

    matplotlib.use("agg")
    (HERE / "index.md").write_text(page())
    if chosen == ["--page"]:
        return
    for study, result in studies():
        if not chosen or study in chosen:
            figure = RESULTS / f"{study}-small" / result["figures"][0]["file"]
            save(figure.read_bytes(), HERE / f"{study}.png")
    wanted = [each for each in INSTRUMENTS if not chosen or each[0] in chosen]
    names = names_of_the_examples() if wanted else {}
    for name, _, _, code in wanted:
        print(name, flush=True)
        save(draw(code, names), HERE / f"{name}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
