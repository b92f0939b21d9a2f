"""URLs of object storage: which are accepted, and one line for the others."""

from pathlib import Path

import pytest

from deepjax.errors import InputError
from deepjax.storage.url import is_safe_name, is_url, parse_url, path_or_url


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("gs://bucket/run", "gs://bucket/run"),
        ("s3://bucket//a///b/", "s3://bucket/a/b"),
        ("GS://bucket/run", "gs://bucket/run"),
        (Path("gs://bucket/run"), "gs://bucket/run"),  # which is "gs:/bucket/run"
        ("s3://my.bucket-1/Über ä", "s3://my.bucket-1/Über ä"),
    ],
)
def test_one_form(given, url):
    assert is_url(given)
    assert parse_url(given, "output_dir") == url == path_or_url(given, "output_dir")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("http://host/run", "output_dir is 'http://host/run'; allowed: a path of this m"),
        ("file:///tmp/run", "allowed: a path of this machine"),
        ("gs://bucket", "gs://bucket/FOLDER, not a complete bucket"),
        ("gs://Bucket/run", "allowed: gs://BUCKET/FOLDER"),
        ("s3:///run", "allowed: s3://BUCKET/FOLDER"),
        ("s3://bucket/../other", "names without .."),
        ("s3://bucket/a\nb", "names without .."),
        ("s3://bucket/a\\b", "names without .."),
        (f"s3://bucket/{'a' * 800}", "at most 768 bytes"),
    ],
)
def test_others_are_refused_in_one_line(given, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_url(given, "output_dir")
    assert "\n" not in repr(str(caught.value)).replace("\\n", "")


@pytest.mark.parametrize(
    "given", ["s3://key:secret@bucket/run", "gs://bucket/run?token=secret", "s3://bucket/a#secret"]
)
def test_credentials_in_a_url_are_refused_and_not_repeated(given):
    with pytest.raises(InputError, match="credentials come from the system") as caught:
        parse_url(given, "output_dir")
    assert "secret" not in str(caught.value)


def test_a_path_is_a_path(tmp_path):
    assert not is_url(tmp_path)
    assert path_or_url(tmp_path, "run") == tmp_path


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("config.json", True),
        ("checkpoints/10.00000001/state/d/0", True),
        ("../config.json", False),
        ("a/../../b", False),
        ("/etc/passwd", False),
        ("a//b", False),
        ("a/./b", False),
        ("a\\b", False),
        ("C:/b", False),
        ("a\x00b", False),
        ("", False),
    ],
)
def test_names_that_would_leave_their_folder(name, safe):
    assert is_safe_name(name) == safe
