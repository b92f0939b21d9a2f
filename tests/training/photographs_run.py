"""experiments/train.py on the small ImageNet in $TFDS_DATA_DIR, which it registers first."""

import dataclasses
import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from deepjax.data import dataset_info, register  # noqa: E402

if __name__ == "__main__":
    # As tests.data.archives.small_imagenet names it: ilsvrc_TRAIN_TEST.
    name = os.environ["SMALL_IMAGENET"]
    train_size, test_size = map(int, name.split("_")[1:])
    sizes = {"train_size": train_size, "test_size": test_size}
    register(
        dataclasses.replace(
            dataset_info("imagenet2012"),
            name=name,
            source="photographs of installed packages",
            **sizes,
        )
    )
    runpy.run_path(str(ROOT / "experiments" / "train.py"), run_name="__main__")
