"""The image in a tfds record (a tf.train.Example), read and replaced without TensorFlow."""

from typing import Any


def parse_example(record: bytes) -> Any:
    """The record as a protocol buffer."""
    # brings tfds with it: only where records are read
    from tensorflow_datasets.proto import (
        tf_example_pb2,
    )

    return tf_example_pb2.Example.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]


def image_of(example: Any) -> bytes:
    """The encoded image."""
    return example.features.feature["image"].bytes_list.value[0]


def file_name_of(example: Any) -> str:
    """The image's file name, "" where the record has none."""
    names = example.features.feature["file_name"].bytes_list.value
    return names[0].decode(errors="replace") if names else ""


def sorted_fields(record: bytes) -> bytes:
    """The record with its fields sorted by name: tfds writes them in an order of the process."""
    return parse_example(record).SerializeToString(deterministic=True)


def with_image(record: bytes, image: bytes) -> bytes:
    """The record with another image."""
    example = parse_example(record)
    example.features.feature["image"].bytes_list.value[0] = image
    return example.SerializeToString(deterministic=True)
