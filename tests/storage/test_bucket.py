"""Objects of a bucket through real drivers and servers, with faults injected by a proxy."""

import threading

import pytest

from deepjax.storage.bucket import Bucket, BucketError, one_line

FAULTS = ("503", "429", "drop", "503 after", "drop after")


def test_objects_are_written_read_listed_and_deleted(store, tmp_path):
    bucket = Bucket(store.url("basic"))
    assert bucket.sizes() == {}
    with pytest.raises(FileNotFoundError):
        bucket.read("a")
    bucket.write("a", b"1")
    bucket.write("b/ä c", b"22")
    bucket.write("a", b"333")
    assert bucket.sizes() == {"a": 3, "b/ä c": 2}
    assert bucket.sizes("b") == {"b/ä c": 2}
    assert (bucket.read("a"), bucket.read("b/ä c")) == (b"333", b"22")
    for data in (b"", b"\r", b"\n\r\n"):
        bucket.write("ends", data)
        assert bucket.read("ends") == data
    bucket.delete(["ends"])
    large = bytes(range(256)) * 50_000
    (tmp_path / "large").write_bytes(large)
    bucket.upload(tmp_path / "large", "large")
    bucket.download("large", tmp_path / "folder" / "back")
    assert (tmp_path / "folder" / "back").read_bytes() == large
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["back"]
    bucket.delete(["a", "none", "large"])
    assert list(bucket.sizes()) == ["b/ä c"]
    assert Bucket(store.url("bas")).sizes() == {}  # a prefix is a folder, not a beginning


def test_of_several_creators_one_succeeds(store):
    created = []

    def create(number):
        if Bucket(store.url("create")).create("lock", f"{number}".encode()):
            created.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(created) == 1
    assert Bucket(store.url("create")).read("lock") == f"{created[0]}".encode()


@pytest.mark.parametrize("fault", FAULTS)
def test_two_failures_of_each_operation_are_overcome(store, fault, tmp_path):
    failures = {}

    def twice(method, path):
        failures[method] = failures.get(method, 0) + 1
        return fault if failures[method] <= 2 else ""

    bucket = Bucket(store.url(f"faults {fault}"))
    store.fault = twice
    bucket.write("a", b"1")
    assert bucket.create("lock", b"mine")  # also where the answer was lost
    assert not bucket.create("lock", b"other")
    bucket.download("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"1"
    bucket.delete(["a"])
    assert list(bucket.sizes()) == ["lock"]
    assert max(failures.values()) > 2


def test_a_download_that_is_cut_off_is_tried_again_and_never_half_a_file(store, tmp_path):
    bucket = Bucket(store.url("cut"), patience=5)
    bucket.write("a", b"0123456789" * 1000)
    cuts = iter(["truncate"] * 2)
    store.fault = lambda method, path: next(cuts, "") if method == "GET" else ""
    bucket.download("a", tmp_path / "a")
    assert (tmp_path / "a").stat().st_size == 10_000
    assert next(cuts, None) is None


def test_a_server_that_is_gone_is_one_line_without_credentials(store):
    bucket = Bucket(store.url("gone"), patience=0.05)
    store.fault = lambda method, path: "503"
    with pytest.raises(BucketError, match=f"cannot write {store.url('gone')}/a: ") as caught:
        bucket.write("a", b"")
    assert "\n" not in str(caught.value)
    assert "not-for-logs" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_named(store):
    missing = Bucket(f"{store.scheme}://no-such-bucket/run", patience=0.05)
    with pytest.raises(BucketError, match=f"cannot write {store.scheme}://no-such-bucket/run/a: "):
        missing.write("a", b"")


def test_names_that_leave_the_prefix_are_refused(store, tmp_path):
    bucket = Bucket(store.url("prefix"))
    for name in ("../other/a", "/a", "a/../../b"):
        with pytest.raises(BucketError, match="is no name of an object"):
            bucket.write(name, b"")
        with pytest.raises(BucketError, match="is no name of an object"):
            bucket.download(name, tmp_path / "a")


@pytest.mark.parametrize(
    "secret",
    [
        "https://host/x?X-Amz-Signature=abcdef&b=1",
        "AWSAccessKeyId=abcdef",
        "Signature=abcdef failed",
        "access_token=abcdef",
    ],
)
def test_messages_of_drivers_lose_their_credentials(secret):
    text = one_line(OSError(f"failed:\n{secret}"))
    assert "abcdef" not in text
    assert "\n" not in text
