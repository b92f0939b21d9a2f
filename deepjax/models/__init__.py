"""Networks as Flax linen modules, found by name."""

from deepjax.models.features import features
from deepjax.models.layers.scanned_blocks import stack_blocks, unstack_blocks
from deepjax.models.nnx import to_nnx
from deepjax.models.preact import preact_stages, wide_stages
from deepjax.models.registry import create_model, list_models, model_info, register_model
from deepjax.models.resnet import ResNet, cifar_stages
from deepjax.models.table import ModelInfo

__all__ = [
    "ModelInfo",
    "ResNet",
    "cifar_stages",
    "create_model",
    "features",
    "list_models",
    "model_info",
    "preact_stages",
    "register_model",
    "stack_blocks",
    "to_nnx",
    "unstack_blocks",
    "wide_stages",
]
