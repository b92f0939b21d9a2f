"""The ladder of depths: plain and residual networks that several studies train and measure."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from deepjax.models import cifar_stages, create_model, list_models
from deepjax.study.arms.arm import Arm

DEPTHS = (8, 20, 44)

LADDER: Mapping[str, Any] = {"epochs": 12, "batch_size": 64, "width": 8, "augment": False}
"""Training of the preset "small". In twelve epochs without augmentation the plain network of 44
layers gets better than a linear classifier, by about a point; in eight it does not."""
LADDER_GPU: Mapping[str, Any] = {
    "epochs": 30, "batch_size": 128, "width": 16, "precision": "bfloat16",
}  # fmt: skip
"""Training of the preset "gpu"."""


def ladder_arm(kind: str, depth: int, **options: Any) -> Arm:
    """A "plain" or "resnet" network of He et al. 2015, section 4.2; options: of `Arm`.

    depth: any 6 n + 2; those that the table of networks lacks, such as 8, are by that formula.
    """
    name = f"cifar_{kind}{depth}"
    if name in list_models():
        return Arm(name, **options)
    make = partial(create_model, f"cifar_{kind}20", stages=cifar_stages(depth))
    return Arm(f"own/{name}", make, **options)
