"""A recipe, and the page of all recipes in Markdown."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from deepjax.training.config import TrainConfig

NOT_MEASURED = "not measured here"
_HEAD = """# Recipes for ImageNet

`deepjax train --recipe NAME --output-dir DIR` trains one; further options override those of the
recipe, `--dataset` for example. Nothing is scaled with the batch size: a run with another
`--batch-size` needs its own `--learning-rate`. Top-1 and top-5 are accuracies in percent as the
source states them, under the protocol in "measured as". The column "here" has the accuracy of
deepjax, or "not measured here". The notes below the table list choices on which the source is
silent, and deviations from it. In all recipes training crops are resized by OpenCV without
antialiasing, which is faster; torchvision and timm use antialiasing (`--resize-backend pillow`).
This page is the output of `deepjax train --recipe list`.

"""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The training of a network on ImageNet as a source states it."""

    name: str
    config: TrainConfig
    source: str
    """The paper and its section or table, or the reference implementation."""
    top1: float | None
    """Accuracy in percent as the source states it; not measured here."""
    top5: float | None
    protocol: str
    """How the source measured the accuracy."""
    cost: str
    """Time and devices of the source's training, or that they are not stated."""
    differs: tuple[str, ...]
    """Choices on which the source is silent, and deviations from it."""
    measured: str = NOT_MEASURED
    """The accuracy of this configuration in deepjax."""


def page(recipes: Iterable[Recipe]) -> str:
    """Recipes as a table in Markdown, and notes on the differences from their sources."""
    recipes = tuple(recipes)
    head = (
        "recipe",
        "network",
        "epochs",
        "batch",
        "rate",
        "pixels",
        "top-1",
        "top-5",
        "measured as",
        "cost",
        "source",
        "here",
    )
    rows = [head, tuple("---" for _ in head), *map(_row, recipes)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return _HEAD + "\n".join([*lines, "", *_notes(recipes)]) + "\n"


def _row(recipe: Recipe) -> Sequence[str]:
    config = recipe.config
    size, evaluated = config.input_shape[0], config.eval_shape[0]
    sizes = sorted({*config.data.progressive_sizes} or {size})
    pixels = " to ".join(map(str, sizes)) + (
        f", then {evaluated}" if evaluated != sizes[-1] else ""
    )
    numbers = (
        str(config.epochs),
        str(config.batch_size),
        f"{config.learning_rate:g}",
        pixels,
        *map(_percent, (recipe.top1, recipe.top5)),
    )
    words = (recipe.protocol, recipe.cost, recipe.source, recipe.measured)
    return (f"`{recipe.name}`", f"`{config.model}`", *numbers, *words)


def _percent(value: float | None) -> str:
    return "not stated" if value is None else f"{value:.2f}"


def _notes(recipes: Sequence[Recipe]) -> Iterator[str]:
    """One line for all recipes with the same differences from their sources."""
    for differs in dict.fromkeys(recipe.differs for recipe in recipes):
        names = ", ".join(f"`{recipe.name}`" for recipe in recipes if recipe.differs == differs)
        yield f"- {names}: {'; '.join(differs)}."
