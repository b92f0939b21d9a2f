"""Reports in headless Chromium, on a wide screen and a phone, light and dark, and printed."""

import base64

import pytest

from deepjax.cli.__main__ import start
from deepjax.html_page import Figure, Table
from deepjax.study.report.html import Page, render
from deepjax.study.stats.verdict import Verdict
from tests.browser import Browser, needs_chromium
from tests.study.report.fabricated import control, effect

pytestmark = [pytest.mark.browser, needs_chromium]
WIDE, PHONE = 1400, 390
SEEDS = "12.55 % (13.45, 10.88, 11.95, 12.25, 13.55, 13.63, 12.15, 12.57)"

FIGURES = """
return [...document.querySelectorAll("figure img")].map(image => {
  const box = image.getBoundingClientRect();
  return [image.naturalWidth, image.checkVisibility(), box.width, box.right];
});"""
# WCAG 2.1: (L1 + 0.05) / (L2 + 0.05) with the relative luminances L of text and background.
CONTRASTS = """
const rgb = color => color.match(/[\\d.]+/g).map(Number);
const linear = part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
const luminance = color => rgb(color).slice(0, 3).map(part => linear(part / 255))
  .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
const background = element => {
  const color = getComputedStyle(element).backgroundColor;
  if (rgb(color).length === 3 || rgb(color)[3] > 0) return color;
  return element.parentElement ? background(element.parentElement) : "rgb(255, 255, 255)";
};
return [...document.querySelectorAll("body *")].filter(element => element.checkVisibility()
  && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
  .map(element => {
    const [low, high] = [getComputedStyle(element).color, background(element)].map(luminance)
      .sort((a, b) => a - b);
    return [element.textContent.slice(0, 40), (high + 0.05) / (low + 0.05)];
  });"""


@pytest.fixture(scope="module")
def browser():
    found = Browser()
    yield found
    found.driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The report of a run of two epochs, and one of a study with long texts."""
    out = tmp_path_factory.mktemp("browser")
    run = out / "run"
    small = "--model cifar_plain20 --width 2 --epochs 2 --batch-size 240 --output-dir"
    start(["train", *small.split(), str(run)])
    start(["report", str(run)])
    claim = "The plain network of 44 layers is worse than that of 20."
    verdicts = [
        Verdict(claim, "the rule", outcome, [effect(0.7, 0.1)], exploratory="a reason")
        for outcome in ("supported", "refuted", "inconclusive")
    ]
    text = render(
        Page(
            "Does depth hurt a plain network?",
            "A question",
            [*verdicts, control("A planted defect is found.", "refuted", ["supported"])],
            ["What was done."],
            [Figure(run / "report" / f"{name}.png", name) for name in ("curves", "gradients")],
            [Table("numbers", ("arm", "rate", "training", "test"), [("a", "0.1", SEEDS, SEEDS)])],
            ["a limit"],
            {"command": "python " + "a/long/path/" * 20},
        )
    )
    study = out / "study.html"
    study.write_text(text)
    return {"run": run / "report.html", "study": study}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, PHONE])
@pytest.mark.parametrize("name", ["run", "study"])
def test_figures_are_visible_and_texts_readable(browser, pages, name, width, scheme):
    browser.open(pages[name], width, scheme)
    assert browser.errors() == []
    figures = browser.run(FIGURES)
    assert len(figures) == {"run": 4, "study": 2}[name]
    for natural, visible, shown, right in figures:
        assert natural > 0 and visible and shown > 0.5 * min(width, natural) and right <= width
    assert browser.run("return [innerWidth, document.documentElement.scrollWidth]") == [width] * 2
    dark = browser.run("return matchMedia('(prefers-color-scheme: dark)').matches")
    assert dark == (scheme == "dark")
    assert [each for each in browser.run(CONTRASTS) if each[1] < 4.5] == []


@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_a_figure_enlarges_and_the_keyboard_does_it_too(browser, pages, width):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.open(pages["run"], width, "light")
    state = "const d = document.querySelector('dialog'); return [d.open, d.firstChild.width]"
    button = browser.driver.find_element("css selector", "figure button")
    shown = browser.run(FIGURES)[0][2]
    button.click()
    opened, enlarged = browser.run(state)
    assert opened and enlarged > {WIDE: 1.1, PHONE: 2.5}[width] * shown
    for key, expected in ((Keys.ESCAPE, False), (Keys.ENTER, True), (Keys.ESCAPE, False)):
        ActionChains(browser.driver).send_keys(key).perform()
        assert browser.run(state)[0] == expected
    assert browser.errors() == []


@pytest.mark.parametrize("name", ["run", "study"])
def test_figures_come_before_tables_and_verdicts(browser, pages, name):
    browser.open(pages[name], PHONE, "light")
    kinds = browser.run(
        "return [...document.querySelectorAll('figure, table, section, h2')].map(e => e.tagName)"
    )
    figures = kinds.count("FIGURE")
    assert figures and kinds[:figures] == ["FIGURE"] * figures


def test_print_is_light_and_has_several_figures_on_a_page(browser, pages):
    browser.open(pages["run"], WIDE, "dark", media="print")
    assert browser.run("return getComputedStyle(document.body).backgroundColor") in (
        "rgb(255, 255, 255)",
        "rgba(0, 0, 0, 0)",
    )
    printed = browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    content = base64.b64decode(printed["data"])
    assert content.startswith(b"%PDF") and content.count(b"/Type /Page\n") <= 4
