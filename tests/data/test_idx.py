"""Reading idx archives: what is written comes back, and other files are refused by name."""

import gzip

import numpy as np
import pytest

from deepjax.data.idx import read_idx, read_idx_split
from deepjax.errors import InputError


def write_idx(path, array):
    """By the format's definition: zeros, type 8, number of axes, sizes, values."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4) for n in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_what_was_written_is_read(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (300, 3, 2), np.uint8)
    labels = np.arange(300).astype(np.uint8)
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", labels)
    found = read_idx_split(tmp_path, "test")
    np.testing.assert_array_equal(found[0], images)
    np.testing.assert_array_equal(found[1], labels)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", labels[1:])
    with pytest.raises(InputError, match=r"t10k images \(300, 3, 2\), labels \(299,\)"):
        read_idx_split(tmp_path, "test")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x08\x01\0\0\0",
        b"\0\0\x08\x01\0\0\0\x03ab",
        b"\0\0\x08\x01\0\0\0\x01ab",
        b"\0\0\x0d\x01\0\0\0\x01a",
        b"\0\0\x08\x03" + b"\xff" * 12,
        b"\0\0\x08\x04" + b"\x80\0\0\0" * 4,  # a product that is 0 in 64 bits
    ],
)
def test_other_contents_are_refused(data, tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(data))
    with pytest.raises(InputError, match=r"a\.gz is no idx file of unsigned bytes"):
        read_idx(path)


@pytest.mark.parametrize(
    "data", [b"no gzip", gzip.compress(bytes(99), mtime=0)[:-9]], ids=["no gzip", "truncated"]
)
def test_files_that_cannot_be_read_are_named(data, tmp_path):
    path = tmp_path / "a.gz"
    with pytest.raises(InputError, match=r"a\.gz cannot be read"):
        read_idx(path)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.gz cannot be read"):
        read_idx(path)
