"""The report on own images: every count, and everything that troubles a training."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from deepjax.cli.__main__ import start
from deepjax.data.own.check import check_images, examine
from deepjax.data.own.index import TEST_FRACTION
from deepjax.errors import InputError
from tests.data.own.images import write_classes, write_images
from tests.data.photographs import jpeg, photograph

PIXELS = photograph()[:24, :40]


def encoded(mode: str, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, form, **options)
    return file.getvalue()


def animated() -> bytes:
    frames = [Image.fromarray(np.roll(PIXELS, shift, 1)) for shift in range(3)]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    return file.getvalue()


SIXTEEN = io.BytesIO()
Image.fromarray(np.arange(96, dtype=np.uint16).reshape(8, 12) * 600).save(SIXTEEN, "PNG")
ODD = {
    "grey.jpg": jpeg(PIXELS, "L"),
    "cmyk.jpg": jpeg(PIXELS, "CMYK"),
    "turned.jpg": jpeg(PIXELS, orientation=6),
    "palette.png": encoded("P"),
    "alpha.png": encoded("RGBA"),
    "png_named.jpg": encoded("RGB"),
    "animated.png": animated(),
}
BROKEN = {
    "empty.jpg": (b"", "neither a JPEG nor a PNG"),
    "text.png": (b"text", "neither a JPEG nor a PNG"),
    "half.jpg": (jpeg(PIXELS)[:-20], "without its end marker"),
    "half.png": (encoded("RGB")[:400], "truncated"),
    "sixteen.png": (SIXTEEN.getvalue(), "16 bits or more"),
}


@pytest.fixture
def folder(tmp_path):
    write_classes(tmp_path / "train", {"odd": 3, "plain": 50})
    write_classes(tmp_path / "val", {"plain": 4}, seed=1)
    return tmp_path


def test_a_clean_folder_has_no_warnings(tmp_path):
    write_classes(tmp_path, {"a": 10, "b": 10})
    report = check_images(str(tmp_path), TEST_FRACTION)
    assert report.warnings() == [] and report.modes == {"RGB": 20}
    assert report.counts == {"train": {"a": 8, "b": 8}, "test": {"a": 2, "b": 2}}
    assert "a" in report.text() and "8 train" in report.text()


def test_modes_rotations_and_animations_are_counted(folder):
    for name, data in ODD.items():
        (folder / "train" / "odd" / name).write_bytes(data)
    report = check_images(str(folder), TEST_FRACTION)
    assert report.modes == {"RGB": 60, "L": 1, "CMYK": 1, "P": 1, "RGBA": 1}
    assert report.formats == {"JPEG": 60, "PNG": 4}
    assert (report.rotated, report.animated) == (1, 1)
    warnings = "\n".join(report.warnings())
    assert "EXIF rotation, which training ignores: 1 images" in warnings
    assert "animated, of which the first frame is used: 1 images" in warnings


def test_what_cannot_be_decoded_is_named_with_the_reason(folder):
    for name, (data, _) in BROKEN.items():
        (folder / "val" / "plain" / name).write_bytes(data)
    report = check_images(str(folder), TEST_FRACTION)
    assert len(report.undecodable) == len(BROKEN)
    for name, (_, reason) in BROKEN.items():
        assert reason in report.undecodable[f"val/plain/{name}"].replace("Trunc", "trunc")
    assert report.warnings()[0].startswith("cannot be decoded: 5: ")


def test_equal_images_within_and_between_the_splits_are_named(folder):
    same = (folder / "train" / "plain" / "3.jpg").read_bytes()
    (folder / "train" / "odd" / "copy.jpg").write_bytes(same)
    (folder / "val" / "plain" / "leak.jpg").write_bytes(same)
    report = check_images(str(folder), TEST_FRACTION)
    assert [set(names) for names in report.duplicates] == [
        {"train/plain/3.jpg", "train/odd/copy.jpg"}
    ]
    [(train, test)] = report.leaks
    assert test == "val/plain/leak.jpg" and train in report.duplicates[0]
    assert any(
        each.startswith("test images that are training images") for each in report.warnings()
    )


def test_unbalanced_classes_are_pointed_out(folder):
    [warning] = check_images(str(folder), TEST_FRACTION).warnings()
    assert warning == "unbalanced classes: 'plain' has 50 training images, 'odd' 3"


def test_sizes_mean_and_std_are_those_of_the_pixels(tmp_path):
    sizes, values = [(10, 20), (30, 20), (50, 40), (70, 60)], [0, 100, 200, 60]
    for i, ((width, height), value) in enumerate(zip(sizes, values, strict=True)):
        (tmp_path / "train" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        pixels = np.full((height, width, 3), (value, 2 * value // 3, 10), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "train" / f"class{i % 2}" / f"{i}.png")
    write_images(tmp_path / "val" / "class0", 1)
    report = check_images(str(tmp_path), TEST_FRACTION)
    assert report.widths[2] == 70 and report.heights[2] == 60
    assert report.mean == pytest.approx((90, np.mean([0, 66, 133, 40]), 10))
    assert report.std[0] == pytest.approx(np.std(values)) and report.std[2] == pytest.approx(0)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_small_images_are_images(form):
    for size in ((1, 1), (3, 200)):
        file = io.BytesIO()
        Image.new("RGB", size).save(file, form)
        assert examine(file.getvalue()).problem == ""


def test_a_link_that_leads_nowhere_is_named_and_the_rest_reported(folder):
    (folder / "train" / "odd" / "gone.jpg").symlink_to(folder / "nothing")
    report = check_images(str(folder), TEST_FRACTION)
    assert list(report.undecodable) == ["train/odd/gone.jpg"]
    assert report.duplicates == () or report.duplicates == []


def test_one_pixel_and_one_hundred_megapixels():
    """The second is refused by its header, before any pixel is decoded."""
    one = io.BytesIO()
    Image.new("RGB", (1, 1)).save(one, "PNG")
    assert examine(one.getvalue()).problem == ""
    bomb = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(bomb, "PNG")
    assert "100000000" in (why := examine(bomb.getvalue()).problem) or "10000 x 10000" in why


def test_the_command_prints_text_or_json(folder, capsys):
    start(["data", "check", str(folder)])
    text = capsys.readouterr().out
    assert "folder of classes, 2 classes, 53 train, 4 test" in text
    assert "warning: unbalanced classes" in text and "plain" in text
    start(["data", "check", str(folder), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["test"] == {"odd": 0, "plain": 4}
    assert len(report["mean"]) == 3


def test_other_actions_and_paths_are_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="action 'chek' is unknown; did you mean 'check'"):
        start(["data", "chek", "x"])
    with pytest.raises(InputError, match="does not exist"):
        start(["data", "check", str(tmp_path / "x")])


def test_a_folder_of_broken_images_alone_is_refused(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="has no image that can be decoded"):
        check_images(str(tmp_path), TEST_FRACTION)


def test_a_folder_whose_training_images_are_all_broken_is_refused(folder):
    for path in folder.glob("train/*/*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match="split 'train', has no image that can be decoded; train"):
        check_images(str(folder), TEST_FRACTION)


def test_images_for_tests_alone_are_reported(folder):
    shutil.rmtree(folder / "train")
    write_images(folder / "val" / "odd", 4, seed=3)
    report = check_images(str(folder), TEST_FRACTION)
    assert report.counts == {"test": {"odd": 4, "plain": 4}} and report.warnings() == []
    assert "2 classes, 8 test" in report.text()
