"""`deepjax report`: its numbers are those of the log and of `deepjax evaluate`, in one file."""

import html
import json
import re
import shutil
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from deepjax.cli.__main__ import start
from deepjax.errors import InputError
from deepjax.evaluation.report.figures import (
    class_texts,
    draw_confusion,
    draw_curves,
    draw_gradient_map,
    draw_time,
    draw_worst,
)
from deepjax.training import train, train_config
from deepjax.training.metrics.loop_clock import PARTS
from deepjax.training.metrics.metrics_log import read_rows
from deepjax.training.run_directory.config_file import init_run_dir
from tests.data.own.images import write_classes
from tests.training.run_directory.test_average import Net

NAMES = ("<b>ant", "$5 and $6", "犬")
SMALL = "--model cifar_plain20 --width 2 --epochs 2 --batch-size"
FIGURES = {"curves.png", "gradients.png", "time.png", "confusion.png", "worst.png"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Digits, with the log and the evaluation of its last checkpoint."""
    out = tmp_path_factory.mktemp("report") / "digits"
    start(["train", *SMALL.split(), "240", "--output-dir", str(out)])
    start(["evaluate", "--run", str(out), "--output-dir", str(out.with_name("result"))])
    start(["report", str(out)])
    return out


class Tags(HTMLParser):
    """The tags that are open, and the cells of tables by their captions."""

    EMPTY = ("meta", "img")

    def __init__(self, page):
        super().__init__()
        self.open, self.tables, self.caption = [], {}, ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag not in self.EMPTY:
            self.open.append("caption" if ("class", "caption") in attributes else tag)

    def handle_endtag(self, tag):
        assert self.open.pop() in (tag, "caption")

    def handle_data(self, data):
        if self.open[-1:] == ["caption"]:
            self.caption = data
        elif self.open[-1:] == ["td"]:
            self.tables.setdefault(self.caption, []).append(data)


def page_of(run):
    text = (run / "report.html").read_text()
    tags = Tags(text)
    assert not tags.open  # each tag is closed
    return text, tags


def test_the_numbers_are_those_of_the_log_and_of_an_evaluation(run):
    text, tags = page_of(run)
    final = read_rows(run / "metrics.jsonl")[-1]
    [found] = json.loads((run.with_name("result") / "result.json").read_text())["sets"]
    assert f"<h1>cifar_plain20 on digits: test error {100 * final['test_error']:.2f} %</h1>" in text
    [(caption, cells)] = [each for each in tags.tables.items() if "Test error after" in each[0]]
    assert (
        f"step 10, in one crop of each image: {100 * found['top1_error']:.2f} % of 360" in caption
    )
    rows = [cells[i : i + 4] for i in range(0, len(cells), 4)]
    wanted = sorted(found["classes"], key=lambda each: -each["error"])
    assert rows == [
        [each["label"], f"{100 * each['error']:.2f} %", str(each["errors"]), str(each["images"])]
        for each in wanted
    ]
    last = tags.tables["At the end of training, in evaluation mode"]
    assert last[4:] == [
        "test",
        f"{100 * final['test_error']:.2f} %",
        f"{final['test_loss']:.4f}",
        "360",
    ]


def test_the_page_is_one_file_and_names_how_it_was_trained(run):
    text, _ = page_of(run)
    assert text.count('src="data:image/png;base64,') == 5 == text.count("<figure>")
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert {path.name for path in (run / "report").iterdir()} == FIGURES
    for option in ("--width 2", "--epochs 2", "--batch-size 240", f"--output-dir {run}"):
        assert option in text
    assert "deepjax train --model cifar_plain20 --dataset digits " in text
    assert "from step 0 at " in text and "jaxlib" in text


def test_the_log_alone_is_enough(run, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "report*"))
    start(["report", str(tmp_path / "run"), "--no-predict"])
    text, tags = page_of(tmp_path / "run")
    assert text.count("<figure>") == 3 and not any(
        "Test error after" in name for name in tags.tables
    )
    assert {path.name for path in (tmp_path / "run" / "report").iterdir()} == {
        "curves.png",
        "gradients.png",
        "time.png",
    }
    with pytest.raises(InputError, match="run holds no checkpoint"):
        start(["report", str(tmp_path / "run")])


@pytest.mark.filterwarnings("error")
def test_photographs_of_classes_of_any_name(tmp_path):
    """Names are no markup in the page and no mathematics in figures; what the font lacks is a
    number there.
    """
    write_classes(tmp_path / "photos", dict.fromkeys(NAMES, 10))
    out = tmp_path / "run"
    data = ["--dataset", str(tmp_path / "photos"), "--image-size", "32", "--output-dir", str(out)]
    start(["train", *SMALL.split(), "8", *data])
    start(["report", str(out)])
    text, _ = page_of(out)
    assert "<b>" not in text and html.escape("<b>ant") in text and "<td>犬</td>" in text
    assert class_texts(NAMES, 24) == ["<b>ant", "$5 and $6", "2"]
    assert class_texts(["a long name", "short"], 6) == ["a lon…", "short"]


def test_an_average_is_described_by_its_checkpoints(run, tmp_path):
    start(["average", str(run), "--batches", "1", "--output-dir", str(tmp_path / "average")])
    start(["report", str(tmp_path / "average")])
    text, _ = page_of(tmp_path / "average")
    assert "the mean of the parameters of" in text and "deepjax train" not in text
    assert "not measured (an average of checkpoints)" in text


def test_a_network_of_python_code_has_no_command(tmp_path):
    train(train_config("own/net", steps=3, batch_size=600), tmp_path, make=Net)
    start(["report", str(tmp_path), "--no-predict"])
    assert "deepjax train" not in page_of(tmp_path)[0]


def test_a_run_without_an_epoch_is_refused(tmp_path):
    init_run_dir(tmp_path, train_config("cifar_plain20"))
    with pytest.raises(InputError, match="has no epoch in its log yet"):
        start(["report", str(tmp_path), "--no-predict"])
    with pytest.raises(InputError, match="none holds no config"):
        start(["report", str(tmp_path / "none")])


def test_figures_draw_the_numbers_of_the_log(run):
    epochs = [row for row in read_rows(run / "metrics.jsonl") if row["kind"] == "epoch"]
    top, middle, bottom = draw_curves(epochs, "net on digits").axes
    for line, name in zip(top.lines, ("running_error", "test_error"), strict=True):
        np.testing.assert_allclose(line.get_ydata(), [100 * row[name] for row in epochs])
    for line, name in zip(middle.lines, ("running_loss", "test_loss"), strict=True):
        np.testing.assert_allclose(line.get_ydata(), [row[name] for row in epochs])
    np.testing.assert_allclose(
        bottom.lines[0].get_ydata(), [row["learning_rate"] for row in epochs]
    )
    error = f"{100 * epochs[-1]['test_error']:.2f} %"
    assert f"net on digits: test error {error} after epoch 2" in title(top)
    norms = [
        [row["gradient_norms"][layer] for row in epochs] for layer in epochs[0]["gradient_norms"]
    ]
    ax = draw_gradient_map(epochs).axes[0]
    np.testing.assert_allclose(ax.collections[0].get_array().reshape(-1, 2), np.log10(norms))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [*epochs[0]["gradient_norms"]]
    plt.close("all")


def test_the_bars_of_time_are_stacked_and_the_title_names_the_largest_part():
    """Epochs that end at 1 and 1.5, the first without times, and the end: 2 + 1 and 5 seconds."""
    times = [{}, {"device": 2.0, "input": 1.0}, {"evaluation": 5.0}]
    rows = [{"time": dict.fromkeys(PARTS, 0.0) | time} if time else {} for time in times]
    facts = ({"kind": "epoch", "epoch": 1.0}, {"kind": "epoch", "epoch": 1.5}, {"kind": "final"})
    (ax,) = draw_time([row | of_row for row, of_row in zip(rows, facts, strict=True)]).axes
    bars = {bars.get_label(): list(bars) for bars in ax.containers}
    assert [*bars] == ["input", "device", "evaluation"]  # those that took time
    heights = {part: [bar.get_height() for bar in bars[part]] for part in bars}
    assert heights == {"input": [0, 1, 0], "device": [0, 2, 0], "evaluation": [0, 0, 5]}
    assert [bar.get_y() for bar in bars["device"]] == [0, 1, 0]
    assert [(bar.get_x(), bar.get_width()) for bar in bars["input"]] == [(0, 1), (1, 0.5), (1.5, 1)]
    assert title(ax) == "Where the time went: evaluation took 62.5 % of 8.0 s"
    plt.close("all")


def test_the_confusion_matrix_names_what_is_mistaken_most_often():
    figure = draw_confusion([[6, 2, 0], [0, 4, 0], [1, 0, 0]], ["ant", "bee", "cat"])
    (ax,) = figure.axes
    np.testing.assert_allclose(ax.images[0].get_array(), [[75, 25, 0], [0, 100, 0], [100, 0, 0]])
    assert title(ax) == "Most often mistaken: cat for ant, 100.0 % of its images"
    perfect = draw_confusion([[3, 0], [0, 0]], ["ant", "bee"]).axes[0]
    assert title(perfect) == "No test image is misclassified"
    plt.close("all")


def test_the_worst_images_are_those_of_the_highest_probability_for_another_class(run):
    """Grey and coloured ones, in rows of six."""
    for channels in (1, 3):
        images = [np.full((4, 4, channels), 20 * i, np.uint8) for i in range(10)]
        figure = draw_worst(images, [f"caption {i}" for i in range(10)], 12, 360)
        shown = [ax for ax in figure.axes if ax.images]
        assert len(shown) == 10 and len(figure.axes) == 12
        assert shown[3].get_title() == "caption 3"
        np.testing.assert_array_equal(
            np.asarray(shown[3].images[0].get_array()).reshape(4, 4, -1), images[3]
        )
        heading = "12 of 360 test images are misclassified; here the 10 most confident"
        assert figure.get_suptitle() == heading
    plt.close("all")
    assert Image.open(run / "report" / "worst.png").size[0] > 500


def title(ax):
    return ax.get_title(loc="left")
