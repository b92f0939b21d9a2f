"""The pages of the instruments: every example runs and prints what the page shows.

`python docs/instruments/make_pictures.py` rewrites their outputs, signatures and pictures.
"""

import importlib.util
import inspect
import re
from pathlib import Path

import jax
import pytest

from deepjax import analysis

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "instruments"
SPEC = importlib.util.spec_from_file_location("make_pictures", FOLDER / "make_pictures.py")
make_pictures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_pictures)

NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")
ROUNDING = 1e-6  # the mean of a normalised layer
PAGES = make_pictures.pages()
WITHOUT_PICTURE = ("index", "networks")


@pytest.fixture(scope="module")
def names():
    """What the examples of the first page define: a network that is trained for some steps."""
    found = {}
    execute("index", found)
    return found


def execute(page, names):
    """Run the examples of a page, as users do: with JAX's default promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in make_pictures.BLOCK.finditer(make_pictures.text_of(page)):
            printed = make_pictures.run(block["code"], names)
            compare(printed, (block["output"] or "").rstrip(), int(block["percent"] or 0))


def compare(found, wanted, percent):
    """Equal texts, up to spaces, with numbers that differ by `percent` or in their last digit."""
    assert words(found) == words(wanted)
    for one, other in zip(NUMBER.findall(found), NUMBER.findall(wanted), strict=True):
        tolerance = max(percent / 100 * abs(value(other)), 1.01 * last_digit(other), ROUNDING)
        assert abs(value(one) - value(other)) <= tolerance, f"{one} in place of {other}"


def words(text):
    return NUMBER.sub("#", text).split()


def value(number):
    return float(number.replace(",", ""))


def last_digit(number):
    digits, _, power = number.partition("e")
    return 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))


@pytest.mark.parametrize("page", PAGES[1:])
def test_examples_print_what_their_page_shows(page, names):
    execute(page, dict(names))


@pytest.mark.parametrize("page", PAGES[1:])
def test_pages_say_what_their_example_continues(page):
    assert "(index.md#the-network-of-the-examples)" in make_pictures.text_of(page)


def test_outputs_are_compared():
    compare("loss 1.02, layer2  8x8", "loss 1.01, layer2 8x8", 0)
    compare("-1,200.0e-3 (network)", "-1,300.0e-3 (network)", 10)
    for found, wanted, percent in (("1.03", "1.01", 0), ("a1", "a2", 50), ("-1", "1", 50)):
        with pytest.raises(AssertionError):
            compare(found, wanted, percent)


def test_signatures_are_those_of_the_functions_and_every_function_has_a_page():
    found = [
        each
        for page in PAGES
        for each in make_pictures.SIGNATURE.finditer(make_pictures.text_of(page))
    ]
    for each in found:
        assert each[0] == make_pictures.signature(each["name"])
    public = {name for name in analysis.__all__ if inspect.isfunction(getattr(analysis, name))}
    assert sorted(each["name"] for each in found) == sorted(public - {"Ghost"})
    index = make_pictures.text_of("index")
    assert [name for name in sorted(public - {"Ghost"}) if f"`{name}" not in index] == []


@pytest.mark.parametrize("page", PAGES)
def test_pictures_are_small_and_pages_are_in_the_menu(page):
    picture = FOLDER / f"{page}.png"
    assert picture.is_file() == (page not in WITHOUT_PICTURE)
    if picture.is_file():
        assert picture.stat().st_size < 60_000
        assert make_pictures.text_of(page).count(f"]({picture.name})") == 1
    assert f"instruments/{page}.md" in (ROOT / "mkdocs.yml").read_text()
    if page != "index":
        assert f"]({page}.md)" in make_pictures.text_of("index")
