"""The page docs/refusals.md, from the tables `REFUSED` of both tests of all instruments.

`python -m tests.analysis.refusals` writes it, and `test_refusals.py` checks that it is current.
"""

import dataclasses
from pathlib import Path

from tests.analysis import test_every_instrument as forms
from tests.analysis import test_field_networks as field
from tests.analysis.forms import FORMS

PAGE = Path(__file__).parents[2] / "docs" / "refusals.md"


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why something is refused."""

    what: str
    why: str
    instead: str


REASONS: dict[str, Reason] = {
    "has no residual sums": Reason(
        "networks without residual sums",
        "A sum of two arrays is not seen as one of a shortcut and a branch.",
        "Give the sum a module of its own whose call is `(shortcut, branch)`. `lesions` also takes "
        "`layers=`, modules that return an array of their input's shape; the message names some.",
    ),
    "has no auxiliary heads": Reason(
        "networks without auxiliary heads",
        "There is one loss, whose contribution is all.",
        'Sow the logits of heads: `self.sow("auxiliary", name, logits)`.',
    ),
    "which has no layers": Reason(
        "functions",
        "The layers of a function cannot be seen.",
        "Use a linen module, or the network of `from_nnx(module)`.",
    ),
    "inside nn.scan": Reason(
        "layers inside `nn.scan` or another loop, `nn.vmap` or `jax.jvp`",
        "The output of one run cannot be read there, and all runs would be changed as one.",
        "Unroll the blocks (in `deepjax.models` by `scan=False`), or name layers outside by "
        "`layers=`. `trace` and `histograms` add up over the runs.",
    ),
    "times inside a scan or vmap": Reason(
        "layers that run several times",
        "The activation and the gradient of one run are not those of the layer.",
        "Use `trace` or `histograms`, which add up over the runs.",
    ),
    "choose by Network": Reason(
        "networks that return a dict or a tuple",
        "Kernels, linearisations and the loss of a classifier are of one array.",
        "Choose by `Network(module, output=...)`, an index, key, attribute or function.",
    ),
    r"one array of floats, which Network\(module": Reason(
        "networks that return a dict or a tuple, for the field of their output",
        "The centre unit is that of one map.",
        "Choose by `Network(module, output=...)`, or a layer by `layers=`.",
    ),
    r"allowed: floats \(examples, classes\)": Reason(
        "networks whose output is not one score per class",
        "An attribution explains one number of an example.",
        "Choose a score by `Network(module, output=...)`, for maps and sequences a function such "
        "as `lambda logits: logits.mean((1, 2))`.",
    ),
    r"a layer that returns \(examples, places": Reason(
        "layers without places",
        "The map of Grad-CAM is over the places of a layer.",
        "Name a layer that returns (examples, places..., channels), such as a convolution.",
    ),
    "batch has no labels": Reason(
        "batches without labels",
        "The Fisher matrix is that of a classifier by softmax cross-entropy.",
        "Use `gauss_newton` or `empirical_fisher` with `loss=`.",
    ),
    "labels have the shape": Reason(
        "labels that do not have the shape of the outputs without the classes",
        "The Fisher matrix is that of a classifier by softmax cross-entropy.",
        "Give labels of the shape that the message names, or use `gauss_newton` with `loss=`.",
    ),
    "whose first axis is the examples'": Reason(
        "graphs and other inputs without an axis of examples",
        "The quantity is one of single examples.",
        "Give a list of graphs of one size as `batch` to the instruments of whole batches; "
        "`gradient_confusion` compares the batches of a list.",
    ),
    "a start and an end that are single examples": Reason(
        "graphs and other inputs without an axis of examples",
        "The points of the line are the examples of a batch.",
        "Make a network that takes a batch of such examples: `from_function(jax.vmap(...))`.",
    ),
    "collection 'cache' is of 4 examples": Reason(
        "networks whose state is of all examples, such as a cache",
        "A single example does not fit the state of the batch.",
        "Use the network without it, as in training (such as `decode=False`).",
    ),
    "of inputs u?int.*allowed: floats": Reason(
        "inputs of integers, such as tokens and uint8 images",
        "They have no gradient.",
        "Give images / 255 in float32, or a network of the embeddings of the tokens.",
    ),
    "has no inputs of floats": Reason(
        "inputs of integers, such as tokens and uint8 images",
        "They have no gradient.",
        "Give images / 255 in float32, or a network of the embeddings of the tokens.",
    ),
    "inputs of which one is an image": Reason(
        "inputs without an image of floats",
        "A receptive field is one of pixels.",
        "Give images (batch, height, width, channels), uint8 ones as floats.",
    ),
    "is no linen module": Reason(
        "NNX modules",
        "They are created with their variables.",
        "Use the variables that `from_nnx(module)` returns.",
    ),
}
"""By the part of the message that the tests look for."""

COLUMNS = {
    "cnn": "CNN",
    "vae": "VAE",
    "seq2seq": "seq2seq LSTM",
    "decoder": "decoder, cache",
    "t5": "T5",
    "graph": "graph",
    "unet": "U-Net",
    "pixelcnn": "PixelCNN",
    "actor_critic": "actor-critic",
    "shared": "shared, scanned",
    "ensemble": "ensemble",
    "burgers": "jax.jvp inside",
    "nnx_cnn": "CNN (NNX)",
    "nnx_vae": "VAE (NNX)",
    "nnx_shared": "shared, scanned (NNX)",
}
NAMES = {"linen": "linen", "nnx": "NNX", "function": "function"}


def page() -> str:
    """The text of the page."""
    known = list(dict.fromkeys(REASONS[message] for message in _messages()))
    numbers = {message: str(known.index(REASONS[message]) + 1) for message in _messages()}
    reasons = [
        (str(number), f"{_instruments(reason)} on {reason.what}", reason.why, reason.instead)
        for number, reason in enumerate(known, 1)
    ]
    cells = {
        (name, network): numbers.get(field.REFUSED.get((network, name), ""), "=")
        for network in COLUMNS
        for name in field.CALLS
    }
    right = sum(mark == "=" for mark in cells.values())
    by_network = [
        (f"`{name}`", *(cells[name, network] for network in COLUMNS)) for name in field.CALLS
    ]
    return "\n".join(
        [
            "# What the instruments refuse",
            "",
            "Every instrument either returns the right number or raises an `InputError` of one "
            "line that says what to do instead. This page lists the refusals that the tests "
            "expect; `python -m tests.analysis.refusals` writes it from their tables.",
            "",
            *_table(("", "Refused", "Why", "Instead"), reasons),
            "",
            "## Networks of the field",
            "",
            "Twelve small networks, written as in the field (`tests/zoo/field.py`), three of them "
            f"also in NNX, and every instrument: {len(cells)} cells. In {right} (=) the result is "
            "that of `jax.grad`, `jax.hessian`, `jax.jacrev` or a count by hand; the other "
            f"{len(cells) - right} are refused for the reason of that number "
            "(`tests/analysis/test_field_networks.py`).",
            "",
            *_table(("", *COLUMNS.values()), by_network),
            "",
            "## Forms of one network",
            "",
            "One residual network in linen, NNX and as a function, plain and under `jit`, remat, "
            "scan and on several devices, with batches as tuples, dicts and lists "
            "(`tests/analysis/test_every_instrument.py`). All other instruments are right in "
            "every form.",
            "",
            *_table(("", *_form_columns()), _forms(numbers)),
            "",
        ]
    )


def _messages() -> list[str]:
    """Those of both tables, in the order of `REASONS`; raises KeyError for one without words."""
    used = dict.fromkeys((*forms.REFUSED.values(), *field.REFUSED.values()))
    for message in used:
        REASONS[message]
    return [message for message in REASONS if message in used]


def _instruments(reason: Reason) -> str:
    known = dict.fromkeys((*field.CALLS, *forms.CALLS))
    pairs = [(name, message) for (_, name), message in field.REFUSED.items()]
    pairs += [(name, message) for (name, _, _), message in forms.REFUSED.items()]
    names = {name for name, message in pairs if REASONS[message] == reason}
    return ", ".join(f"`{name}`" for name in known if name in names)


def _transforms() -> list[str]:
    """Those with a refusal of their own."""
    return [each for each in forms.TRANSFORMS if any(key[2] == each for key in forms.REFUSED)]


def _form_columns() -> list[str]:
    return [
        NAMES[form] + (f", {transform}" if transform else "")
        for form in FORMS
        for transform in ("", *_transforms())
    ]


def _forms(numbers: dict[str, str]) -> list[tuple[str, ...]]:
    refused = dict.fromkeys(name for name, _, _ in forms.REFUSED)
    return [
        (f"`{name}`", *(_mark(name, form, transform, numbers) for form, transform in _kinds()))
        for name in forms.CALLS
        if name in refused
    ]


def _kinds() -> list[tuple[str, str]]:
    return [(form, transform) for form in FORMS for transform in ("plain", *_transforms())]


def _mark(name: str, form: str, transform: str, numbers: dict[str, str]) -> str:
    everywhere = forms.REFUSED.get((name, form, "*"))
    reason = everywhere or forms.REFUSED.get((name, form, transform))
    return numbers[reason] if reason else "="


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


if __name__ == "__main__":
    PAGE.write_text(page())
