"""List the networks, or show one stage by stage: outputs, parameters, MACs, receptive fields.

    deepjax models                # all, with the best known weights
    deepjax models 'resnet*'      # those that match
    deepjax models resnet50       # its stages, and all known weights
    deepjax models --json

MACs are multiply-adds for one image.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from deepjax.analysis.costs.stages import StageRow, stage_table
from deepjax.command_line import parse, print_json
from deepjax.errors import unknown_name_error
from deepjax.help_page import HelpPage
from deepjax.models import ModelInfo, create_model, list_models, model_info

WIDE = 112  # columns of a terminal in which no row of the list takes two lines


@dataclasses.dataclass(frozen=True)
class Options:
    """List the networks, or show one by stages: outputs, parameters, MACs and receptive fields."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = "*"
    """Name of a network, or a shell pattern such as 'resnet*' to list those that match."""
    json: bool = False
    """Print JSON: a list of the networks, or one network with its stages."""


def list_tables(names: Sequence[str], wide: bool) -> Iterator[Table]:
    """One table per paper, with aligned columns. wide: with the column of the paper's table."""
    infos = [model_info(name) for name in names]
    columns = {
        "name": max(len(info.name) for info in infos),
        "params": 7,
        "MACs": 7,
        "input": 7,
    } | ({"table": 15} if wide else {})
    for number, paper in enumerate(dict.fromkeys(info.paper for info in infos)):
        table = Table(
            title=paper,
            title_justify="left",
            title_style="bold",
            box=None,
            pad_edge=False,
            show_header=number == 0,
        )
        table.padding = (0, 2 if wide else 1, 0, 0)
        for head, width in columns.items():
            table.add_column(
                head,
                min_width=width,
                no_wrap=True,
                justify="left" if head in ("name", "table") else "right",
            )
        table.add_column("top-1", min_width=5, no_wrap=True, justify="right")
        table.add_column("best known weights", overflow="fold")
        for info in infos:
            if info.paper == paper:
                sizes = (_short(info.params), _short(info.macs), _by(info.input_shape[:2]))
                table.add_row(info.name, *sizes, *([info.table] if wide else []), *_best(info))
        yield table


def model_table(name: str) -> Table:
    """The stages of a network at the input shape of its row."""
    rows = stage_table(create_model(name), model_info(name).input_shape)
    table = Table(box=None, pad_edge=False, show_footer=True)
    table.add_column("stage", "total", no_wrap=True)
    table.add_column("output", no_wrap=True)
    table.add_column(
        "params", f"{sum(row.params for row in rows):,}", no_wrap=True, justify="right"
    )
    table.add_column("MACs", f"{sum(row.macs for row in rows):,}", no_wrap=True, justify="right")
    table.add_column("field", justify="right")
    table.add_column("stride", no_wrap=True, justify="right")
    for row in rows:
        macs = f"{row.macs:,}" if row.runs else "in training"
        table.add_row(row.name, _by(row.output_shape), f"{row.params:,}", macs, *_field(row))
    return table


def start(arguments: Sequence[str]) -> None:
    """Print a list or a network; raises InputError for an unknown name."""
    options = parse(Options, arguments, page=HelpPage(str(__doc__)))
    name, console = options.name, Console(highlight=False, markup=False)
    if not set(name) & set("*?["):
        info = model_info(name)
        if options.json:
            stages = stage_table(create_model(name), info.input_shape)
            print_json(_facts(info) | {"stages": [*map(dataclasses.asdict, stages)]})
        else:
            _print_model(console, info)
        return
    names = list_models(name)
    if not names:
        raise unknown_name_error("model", name, list_models(), listed_by="deepjax models")
    if options.json:
        print_json([_facts(model_info(each)) for each in names])
    else:
        _print_list(console, names)


def _print_list(console: Console, names: Sequence[str]) -> None:
    wide = console.width >= WIDE
    for table in list_tables(names, wide):
        console.print(table)
        console.print()
    console.print("MACs: multiply-adds for one image of the input size, in evaluation.")
    console.print(
        "top-1: accuracy on ImageNet, in per cent, as the source of the weights states it."
    )
    console.print("All known weights of a network: deepjax models NAME")
    if not wide:
        console.print(f"In a window of {WIDE} columns or more the papers' tables are listed too.")


def _print_model(console: Console, info: ModelInfo) -> None:
    console.print(f"{info.name}: {info.paper}, {info.table}; input {_by(info.input_shape)}\n")
    console.print(model_table(info.name))
    console.print(
        "\nfield: receptive field in pixels, beyond the edges too; MACs: multiply-adds for one "
        "image, in evaluation."
    )
    if info.weights:
        console.print("\nknown weights, with top-1 accuracy on ImageNet in per cent:")
        width = max(len(source) for source, _ in info.weights)
        for source, accuracy in info.weights:
            console.print(f"  {source:{width}}  {accuracy:.2f}")


def _facts(info: ModelInfo) -> dict[str, Any]:
    """The row of a network, for JSON."""
    names = ("name", "params", "macs", "input_shape", "paper", "table", "weights")
    return {name: getattr(info, name) for name in names}


def _field(row: StageRow) -> tuple[str, str]:
    """Receptive field and stride in words."""
    if row.receptive_field is None:
        return "-", "-"
    field = row.receptive_field
    return _by(field.size) if field.size else "all", _by(field.stride)


def _by(sizes: Sequence[int] | None) -> str:
    return "x".join(map(str, sizes)) if sizes else "-"


def _best(info: ModelInfo) -> tuple[str, str]:
    """Accuracy and source of the best known weights."""
    if not info.weights:
        return "-", "-"
    source, accuracy = max(info.weights, key=lambda known: known[1])
    return f"{accuracy:.2f}", source


def _short(count: int) -> str:
    """Three significant digits: 4_089_184_256 -> "4.09 G"."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            value = count / size
            return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"
    return str(count)
