"""PyTorch's networks as references: random weights, logits, gradients, counts; where installed."""

import importlib
import importlib.util
import os
import sys
import warnings
from typing import Any

import numpy as np
import pytest

REQUIRED = os.environ.get("DEEPJAX_REQUIRE_TORCH") == "1"
IS_THERE = importlib.util.find_spec("torch") is not None or REQUIRED
needs_torch = pytest.mark.skipif(
    not IS_THERE,
    reason="torch is not installed (make reference installs it)",
)


def library(name: str) -> Any:
    """torchvision.models or timm; whatever goes wrong in an import is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch

        try:
            importlib.import_module("torchvision")
        # built for CUDA, beside a torch for CPU: its models need none of its compiled operators,
        # but declare two
        except RuntimeError:
            _forget("torchvision")
            _declare_operators(torch)
        torch.set_num_threads(2)
        return importlib.import_module("torchvision.models" if name == "torchvision" else "timm")


_KEPT = []


def _declare_operators(torch: Any) -> None:
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(operators)  # dropped, it would take the declarations with it
    importlib.import_module("torchvision")


def _forget(package: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]


def network(source: str, name: str, seed: int = 0, **options: Any) -> Any:
    """A torchvision or timm network in evaluation mode, with random parameters and statistics."""
    models = library(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make = (
            getattr(models, name)
            if source == "torchvision"
            else lambda **o: models.create_model(name, **o)
        )
        made = make(**options)
    randomize(made, seed)
    return made.eval()


def randomize(module: Any, seed: int) -> None:
    """Fill parameters and statistics in place, at scales at which no deep network overflows."""
    import torch

    rng = np.random.default_rng(seed)
    bank = rng.standard_normal(1_000_003, dtype=np.float32)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(int(rng.integers(1, 10_000)))
                continue
            numbers = np.resize(np.roll(bank, int(rng.integers(len(bank)))), tuple(tensor.shape))
            tensor.copy_(torch.from_numpy(_scaled(name, numbers)))


def _scaled(name: str, numbers: np.ndarray) -> np.ndarray:
    if name.endswith("running_var"):
        return 1 + 0.5 * np.abs(numbers)
    if numbers.ndim >= 2 and not name.endswith("gain"):
        return numbers * np.float32(np.sqrt(2 / np.prod(numbers.shape[1:])))
    if name.endswith(("weight", "gain")):
        return 0.5 + 0.2 * np.abs(numbers)
    return 0.1 * numbers


def tensors(module: Any) -> dict[str, np.ndarray]:
    """The state_dict as NumPy arrays."""
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def logits(module: Any, images: np.ndarray) -> np.ndarray:
    """Output in evaluation. images: (batch, height, width, channels)."""
    import torch

    with torch.no_grad():
        return module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


def count(module: Any, size: int) -> tuple[int, int]:
    """Parameters, and multiply-adds of convolutions and linear layers for one image, by hooks."""
    import torch

    total = 0

    def hook(layer: Any, _: Any, output: Any) -> None:
        nonlocal total
        total += layer.weight[0].numel() * output.numel()

    handles = [
        m.register_forward_hook(hook)
        for m in module.modules()
        if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)
    ]
    logits(module, np.zeros((1, size, size, 3), np.float32))
    for handle in handles:
        handle.remove()
    return sum(parameter.numel() for parameter in module.parameters()), total
