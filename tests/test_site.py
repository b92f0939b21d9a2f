"""The documentation site: docstrings as Markdown, complete API pages, the gallery, links.

`make docs` builds it strictly; here is what that does not see.
"""

import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import jax
import pytest

from deepjax import analysis
from tests.test_docs_examples import compare, make_pictures

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
API = sorted((DOCS / "api").glob("*.md"))
DOCUMENTED = [
    name for page in API for name in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)
]


def script(path: str):
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, DOCS / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


layout = script("site/docstring_layout.py").layout
check_links = script("site/check_links.py")
gallery = script("gallery/make_gallery.py")


@pytest.mark.parametrize(
    ("docstring", "markdown"),
    [
        ("One line.", "One line."),
        (
            "Measure.\n\nlayers: paths. key: one key, or\nmany of JAX. Raises InputError for it.",
            "Measure.\n\n- `layers`: paths.\n- `key`: one key, or many of JAX.\n\n"
            "Raises InputError for it.",
        ),
        ("`layers`, `key`: as there.", "- `layers`, `key`: as there."),
        ("other: no parameter.", "other: no parameter."),
        ("Text.\n\n>>> f(1)\n2", "Text.\n\n```pycon\n>>> f(1)\n2\n```"),
        ("A line that ends early.\nAnother one.", "A line that ends early.\n\nAnother one."),
    ],
)  # fmt: skip
def test_docstrings_as_markdown(docstring, markdown):
    assert layout(docstring, ["layers", "key"], 4) == markdown


def test_a_line_that_is_full_is_continued():
    text = "A" * 90 + ".\n" + "B" * 20
    assert layout(text, [], 4) == text.replace("\n", " ")


@pytest.mark.parametrize("package", ["models", "data", "analysis", "training", "evaluation"])
def test_every_public_name_is_in_the_reference(package):
    public = importlib.import_module(f"deepjax.{package}")
    documented = {name.rpartition(".")[2] for name in DOCUMENTED}
    objects = {
        name
        for name in public.__all__
        if inspect.isclass(getattr(public, name)) or inspect.isfunction(getattr(public, name))
    }
    assert sorted(objects - documented) == []


def test_names_of_the_reference_can_be_imported():
    for name in DOCUMENTED:
        module, _, attribute = name.rpartition(".")
        assert inspect.getdoc(getattr(importlib.import_module(module), attribute)), name


def test_the_page_of_the_gallery_is_that_of_its_script():
    assert gallery.page() == (DOCS / "gallery" / "index.md").read_text()


def test_thumbnails_are_small_and_complete():
    wanted = {name for name, *_ in gallery.INSTRUMENTS} | {study for study, _ in gallery.studies()}
    found = {path.stem: path.stat().st_size for path in (DOCS / "gallery").glob("*.png")}
    assert found.keys() == wanted
    assert max(found.values()) < 40_000 and sum(found.values()) < 1_000_000
    assert all(hasattr(analysis, name) for name, *_ in gallery.INSTRUMENTS)


def test_a_thumbnail_is_drawn_by_its_line(tmp_path):
    line = next(code for name, *_, code in gallery.INSTRUMENTS if name == "layer_fields")
    names = {"analysis": analysis, "model": importlib.import_module("deepjax").create_model(
        "cifar_resnet20", stages=(1, 1), width=4, num_classes=10)}  # fmt: skip
    gallery.save(gallery.draw(line, names), tmp_path / "drawn.png")
    assert 1000 < (tmp_path / "drawn.png").stat().st_size < 40_000


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ('<a href="other.html#here">', ""),
        ('<a href="https://example.org/x">', ""),
        ('<a href="missing.html">', "no such file"),
        ('<a href="other.html#there">', "no such anchor"),
        ('<a href="../outside.html">', "no such file"),
        ('<script src="https://example.org/x.js">', "loaded from another host"),
    ],
)
def test_broken_links_are_found(tmp_path, capsys, link, message):
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "outside.html").touch()
    (site / "index.html").write_text(link)
    (site / "other.html").write_text('<h2 id="here">')
    assert check_links.main(str(site)) == bool(message)
    assert message in capsys.readouterr().out
    check_links.page_of.cache_clear()


@pytest.mark.system  # compiles two networks of 20 layers
def test_the_ten_lines_of_the_front_page_print_what_it_shows():
    (block,) = make_pictures.BLOCK.finditer((DOCS / "index.md").read_text())
    assert len(block["code"].splitlines()) <= 11
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        printed = make_pictures.run(block["code"], {})
    compare(printed, block["output"].rstrip(), int(block["percent"]))
