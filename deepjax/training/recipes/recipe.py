"""What a recipe is, and all recipes as a table for people."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from deepjax.training.config import TrainConfig

NOT_MEASURED = "not measured here"
_HEAD = """# Recipes for ImageNet

`python experiments/train.py --recipe NAME --output-dir DIR` trains one; options beside it override its fields, `--dataset` among them.
Nothing is scaled with the batch: who changes `--batch-size` chooses `--learning-rate` too. Top-1 and top-5 are accuracies in
percent as the source states them, measured as it says. ImageNet is not at hand here: the column "here" says what deepjax
reached, and where it says "not measured here", nobody knows yet. Under the table: what is chosen as the source is silent, and
what is done otherwise; in all of them crops for training are scaled by OpenCV and not smoothed, which is faster, where torchvision
and timm smooth (`--resize-backend pillow`). This page is `python experiments/train.py --recipe list`.

"""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training of a network on ImageNet as its source states it, for `experiments/train.py --recipe NAME`."""

    name: str
    config: TrainConfig
    source: str
    """The paper and its section or table, or the reference implementation."""
    top1: float | None
    """Accuracy in percent that the source states; none of these numbers was measured here."""
    top5: float | None
    protocol: str
    """How the source measured that."""
    cost: str
    """What the source's training took, or that it does not say."""
    differs: tuple[str, ...]
    """What is chosen here as the source is silent, and what is done otherwise."""
    measured: str = NOT_MEASURED
    """The accuracy of this configuration in deepjax."""


def page(recipes: Iterable[Recipe]) -> str:
    """Recipes as a table in Markdown, a line each, and under it what differs from their sources."""
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
    """A line for all recipes that differ from their sources in the same."""
    for differs in dict.fromkeys(recipe.differs for recipe in recipes):
        names = ", ".join(f"`{recipe.name}`" for recipe in recipes if recipe.differs == differs)
        yield f"- {names}: {'; '.join(differs)}."
