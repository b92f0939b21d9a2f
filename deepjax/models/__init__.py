"""Networks as Flax linen modules, found by name."""

from deepjax.models.registry import ModelInfo, create_model, list_models, model_info
from deepjax.models.resnet import CifarResNet

__all__ = ["CifarResNet", "ModelInfo", "create_model", "list_models", "model_info"]
