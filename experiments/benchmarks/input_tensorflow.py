"""tf.data with the fused decode-and-crop, as in flax's ImageNet example: blocks for input.py.

Source: google/flax, examples/imagenet/input_pipeline.py.

Blocks for input.py; runs where TensorFlow is installed, without deepjax.
"""

import os
from pathlib import Path
from typing import Any

from block_server import Block, input_arguments, serve

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def main() -> None:
    """Serve the blocks."""
    folder, cores, size, batch_size = input_arguments()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(cores)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    records = write_records(tf, folder / "images.tfrecord", files)
    blocks: dict[str, Block] = {
        "tf.data, as flax's example": loader(
            tf, records, batch_size, lambda encoded: example_of_flax(tf, encoded, size)
        ),
        "tf.data, bilinear, uint8": loader(
            tf, records, batch_size, lambda encoded: least_work(tf, encoded, size)
        ),
    }
    if cores == 1:
        blocks |= {
            "TensorFlow, whole image": lambda: len(
                [tf.io.decode_jpeg(file, channels=3) for file in files]
            ),
            "TensorFlow, decode and crop": lambda: len([cropped(tf, file) for file in files]),
        }
    serve(blocks, f"TensorFlow {tf.__version__}")


def write_records(tf: Any, path: Path, files: list[bytes]) -> str:
    """One TFRecord of examples with the features of tfds's imagenet2012."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for i, file in enumerate(files):
            feature = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[file])),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[i % 1000])),
            }
            writer.write(
                tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
            )
    return str(path)


def loader(tf: Any, records: str, batch_size: int, images: Any) -> Block:
    """Every batch of an epoch, as NumPy arrays."""

    def parse(record: Any) -> Any:
        features = {
            "image": tf.io.FixedLenFeature([], tf.string),
            "label": tf.io.FixedLenFeature([], tf.int64),
        }
        example = tf.io.parse_single_example(record, features)
        return {"image": images(example["image"]), "label": example["label"]}

    dataset = tf.data.TFRecordDataset(records).map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(10)
    return lambda: sum(len(batch["image"]) for batch in dataset.as_numpy_iterator())


def cropped(tf: Any, encoded: Any) -> Any:
    """A random-resized-crop's box, decoded alone."""
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.io.extract_jpeg_shape(encoded),
        bounding_boxes=tf.constant([0.0, 0.0, 1.0, 1.0], shape=[1, 1, 4]),
        min_object_covered=0.1,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    top, left, _ = tf.unstack(begin)
    height, width, _ = tf.unstack(size)
    return tf.io.decode_and_crop_jpeg(encoded, tf.stack([top, left, height, width]), channels=3)


def example_of_flax(tf: Any, encoded: Any, size: int) -> Any:
    """Crop, bicubic, flip, normalise: float32."""
    image = tf.image.resize(
        [cropped(tf, encoded)], [size, size], method=tf.image.ResizeMethod.BICUBIC
    )[0]
    image = tf.image.random_flip_left_right(tf.reshape(image, [size, size, 3]))
    return (image - tf.constant(MEAN, shape=[1, 1, 3])) / tf.constant(STD, shape=[1, 1, 3])


def least_work(tf: Any, encoded: Any, size: int) -> Any:
    """The least that gives what deepjax's loader gives: bilinear, no flip, uint8."""
    image = tf.image.resize(cropped(tf, encoded), [size, size])
    return tf.cast(tf.reshape(image, [size, size, 3]), tf.uint8)


if __name__ == "__main__":
    main()
