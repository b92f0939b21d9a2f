"""Undecodable images are found at preparation, and no others."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from deepjax.data.image.crops import Box
from deepjax.data.image.decode import decode_crop
from deepjax.data.prepare.shrink import shrink
from deepjax.data.prepare.tf_example import (
    file_name_of,
    image_of,
    parse_example,
    sorted_fields,
    with_image,
)
from deepjax.data.prepare.verify import decode_error, find_undecodable
from deepjax.data.shards import list_splits, read_records, write_records
from deepjax.errors import InputError
from tests.data.archives import DAMAGED as FEW
from tests.data.archives import ODD, small_files, write_prepared
from tests.data.image.test_fixed_size import png_header
from tests.data.photographs import DAMAGED, crops, jpeg, photograph, variants


@pytest.mark.parametrize("name", variants())
def test_exactly_the_damaged_are_found(name):
    why = decode_error(variants()[name])
    assert bool(why) == (name in DAMAGED) and "\n" not in why and "0x" not in why


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("form", ["baseline", "progressive", "grey", "cmyk", "png"])
def test_a_file_cut_short_anywhere_is_found(form, share):
    """Decoding at an eighth reads the same bytes as full decoding.

    Pillow's full decoder is the reference.
    """
    cut = variants()[form][: int(share * len(variants()[form]))]
    with pytest.raises((OSError, SyntaxError)):
        Image.open(io.BytesIO(cut)).load()
    assert decode_error(cut)


@pytest.mark.parametrize("share", [0.7, 0.9, 0.99])
@pytest.mark.parametrize("form", ["baseline", "progressive", "grey", "cmyk", "restarts"])
def test_a_jpeg_whose_end_was_overwritten_is_found_everywhere(form, share):
    """Zeros, which decode to something, are found at preparation, in training and in smaller
    copies.
    """
    whole = variants()[form]
    kept = int(share * len(whole))
    for rest in (bytes(len(whole) - kept), b"\xff" * 9, b"\x12\x34" * 40):
        file = whole[:kept] + rest
        assert "JPEG without its end marker" in decode_error(file)
        for exact in (True, False):
            with pytest.raises(ValueError, match="JPEG without its end marker"):
                decode_crop(file, lambda h, w: Box(0, 0, h, w), 32, exact)
        assert shrink(file, 32) is file


@pytest.mark.parametrize("after", [b"", bytes(500), b"anything \xff\xd8"])
def test_what_follows_the_end_and_what_a_thumbnail_ends_with_do_not_matter(after):
    pixels = photograph()[40:230, 60:310]
    file = io.BytesIO()
    Image.fromarray(pixels).save(
        file, "JPEG", exif=b"Exif\0\0" + jpeg(pixels[:40, :40]), comment=b"\xff\xd9"
    )
    whole = file.getvalue()
    assert not decode_error(whole + after)
    assert "end marker" in decode_error(whole[:-2] + after)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("side", "words"), [(10_000, "allowed: 89478485"), (65_535, "exceeds limit")]
)
def test_an_image_of_too_many_pixels_is_damaged(side, words):
    """As in training: above Pillow's first limit, and above its second, which it refuses itself."""
    assert words in decode_error(png_header(side, side))


def test_damaged_images_of_a_data_set_are_named_by_record(tmp_path):
    """The two are where tfds's order by hash has put them; every other record is valid."""
    files = small_files(30, 5, damaged=True)
    folder = write_prepared(tmp_path, files)
    found = find_undecodable(folder)
    assert {damage.file for damage in found} == set(list(files.train)[len(ODD) - FEW : len(ODD)])
    records = [
        record for shard in list_splits(folder)["train"] for record in read_records(shard.path)
    ]
    for damage in found:
        example = parse_example(records[damage.record])
        assert (
            damage.split == "train"
            and file_name_of(example) == damage.file
            and decode_error(image_of(example)) == damage.why
        )


@pytest.mark.parametrize("harm", ["missing", "cut", "short"])
def test_a_damaged_shard_is_named(tmp_path, harm):
    shard = list_splits(write_prepared(tmp_path, small_files(20, 5)))["validation"][1].path
    if harm == "missing":
        shard.unlink()
    elif harm == "cut":
        os.truncate(shard, 2000)
    else:
        write_records(shard, iter(list(read_records(shard))[1:]))
    with pytest.raises(
        InputError,
        match=rf"shard {shard.name} (in .* cannot be read|holds \d records, expected \d)",
    ):
        find_undecodable(shard.parent)


def test_another_image_in_a_record_leaves_the_rest(tmp_path):
    folder = write_prepared(tmp_path, small_files(20, 5))
    record = next(read_records(list_splits(folder)["train"][0].path))
    before, after = parse_example(record), parse_example(with_image(record, b"new"))
    assert image_of(after) == b"new" and file_name_of(after) == file_name_of(before)
    assert after.features.feature["label"] == before.features.feature["label"]
    assert parse_example(with_image(with_image(record, b"new"), image_of(before))) == before


def test_records_with_their_fields_sorted_do_not_depend_on_the_order_in_which_they_were_written():
    """Protocol buffers merge when their bytes are concatenated, so this record is written twice."""
    image, label = parse_example(b""), parse_example(b"")
    image.features.feature["image"].bytes_list.value.append(b"image")
    label.features.feature["label"].int64_list.value.append(3)
    parts = image.SerializeToString(), label.SerializeToString()
    assert sorted_fields(parts[0] + parts[1]) == sorted_fields(parts[1] + parts[0])
    assert image_of(parse_example(sorted_fields(parts[1] + parts[0]))) == b"image"


# Small copies.


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (300, 301), (257, 600)])
def test_the_shorter_side_is_what_was_asked_for(height, width):
    """torchvision.transforms.Resize: the longer side is int(size * longer / shorter)."""
    image = Image.fromarray(photograph("hopper")).resize((width, height))
    small = Image.open(io.BytesIO(shrink(jpeg(np.asarray(image)), 256)))
    assert (min(small.size), max(small.size)) == (
        256,
        int(256 * max(height, width) / min(height, width)),
    )
    assert (small.width >= small.height) == (width > height) and (small.format, small.mode) == (
        "JPEG",
        "RGB",
    )


def test_the_small_copy_shows_the_same_picture():
    """Compared with Pillow's resizing without storing.

    Brightness within 1.5 of 256 levels on average.

    Quality 95 divides table K.1 of ITU-T T.81 by ten, so that its waves are kept in steps of 1 to
    12.
    """
    for pixels in crops(6, seed=3, shortest=300):
        small = Image.open(io.BytesIO(shrink(jpeg(pixels, quality=100), 160)))
        want = Image.fromarray(pixels).resize(small.size, Image.Resampling.BICUBIC)
        assert (
            abs(np.asarray(small.convert("L"), float) - np.asarray(want.convert("L"), float)).mean()
            < 1.5
        )


@pytest.mark.parametrize("name", variants())
def test_small_or_damaged_images_stay_to_the_byte(name):
    """All variants have a shorter side of at most 190."""
    assert shrink(variants()[name], 190) is variants()[name]


@pytest.mark.parametrize("name", ["grey", "cmyk", "png", "png_palette", "rotated"])
def test_every_form_becomes_plain_rgb(name):
    small = Image.open(io.BytesIO(shrink(variants()[name], 100)))
    assert (small.format, small.mode, small.size) == (
        "JPEG",
        "RGB",
        (131, 100),
    ) and not small.getexif()
