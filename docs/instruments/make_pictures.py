"""Execute the examples of these pages; write their outputs, their pictures and the signatures.

`python docs/instruments/make_pictures.py` for all pages, or with names such as `curvature`. Every
```python block of a page is executed, in order; those of index.md come first, and the names that
they define are those of every page. A ```text block after it is what it prints, with a tolerance
for its numbers in a comment before it: <!-- numbers within 20 % -->. The last figure of NAME.md is
NAME.png. A paragraph such as `trace(model, ...)` is the signature of that instrument.
`tests/test_docs_examples.py` compares all of these.
"""

import contextlib
import inspect
import io
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n(?:<!-- numbers within (?P<percent>\d+) % -->\n\n?)?"
    r"```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
SIGNATURE = re.compile(r"^`(?P<name>\w+)\([^`]*\)`$", re.MULTILINE)
COLORS = 256
DPI = 90


def pages() -> list[str]:
    """Names of the pages, index first."""
    return ["index", *sorted({page.stem for page in HERE.glob("*.md")} - {"index"})]


def text_of(name: str) -> str:
    """The text of a page."""
    return (HERE / f"{name}.md").read_text()


def run(code: str, names: dict[str, Any]) -> str:
    """What a block prints; the names that it defines are added to `names`."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<example>", "exec"), names)  # noqa: S102 - the pages are ours
    return "\n".join(line.rstrip() for line in printed.getvalue().splitlines())


def signature(name: str) -> str:
    """The call of an instrument with its defaults, without types."""
    from deepjax import analysis

    found = inspect.signature(getattr(analysis, name))
    parameters = [_without_type(each) for each in found.parameters.values()]
    short = found.replace(parameters=parameters, return_annotation=found.empty)
    return "\n".join(textwrap.wrap(f"`{name}{short}`", 100, break_long_words=False))


class _Default:
    """A default that is shown as it is written: the name of a function."""

    def __init__(self, value: Any) -> None:
        self.text = getattr(value, "__name__", None) or repr(value)

    def __repr__(self) -> str:
        return self.text


def _without_type(parameter: inspect.Parameter) -> inspect.Parameter:
    if parameter.default is not parameter.empty:
        parameter = parameter.replace(default=_Default(parameter.default))
    return parameter.replace(annotation=parameter.empty)


def refresh(name: str, names: dict[str, Any]) -> None:
    """Rewrite a page with what its examples print now, and its picture."""
    import matplotlib.pyplot as plt

    from deepjax.analysis.plots import STYLE

    def executed(found: re.Match[str]) -> str:
        printed = run(found["code"], names)
        percent = found["percent"]
        comment = f"<!-- numbers within {percent} % -->\n\n" if percent else ""
        output = f"\n{comment}```text\n{printed}\n```\n" if printed else ""
        return f"```python\n{found['code']}```\n{output}"

    text = SIGNATURE.sub(lambda found: signature(found["name"]), text_of(name))
    with plt.style.context(STYLE):
        (HERE / f"{name}.md").write_text(BLOCK.sub(executed, text))
        if plt.get_fignums():
            save(plt.figure(plt.get_fignums()[-1]), HERE / f"{name}.png")
    plt.close("all")


def save(figure: Any, path: Path) -> None:
    """A figure as a small PNG, with a palette."""
    from PIL import Image

    pixels = io.BytesIO()
    figure.savefig(pixels, dpi=DPI)
    image = Image.open(pixels).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    image.save(path, optimize=True)


def main() -> None:
    """Refresh the pages that are named on the command line, or all."""
    import matplotlib

    matplotlib.use("agg")
    names: dict[str, Any] = {}
    for name in pages():
        if name == "index" or not sys.argv[1:] or name in sys.argv[1:]:
            refresh(name, names if name == "index" else dict(names))


if __name__ == "__main__":
    main()
