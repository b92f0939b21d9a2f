"""deepjax: the laboratory for depth.

Models exact to their papers, a pure training path, and instruments for gradients.
"""

from deepjax.models import ModelInfo, create_model, list_models, model_info

__version__ = "0.1.0"
__all__ = ["ModelInfo", "create_model", "list_models", "model_info"]
