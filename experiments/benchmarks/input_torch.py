"""PyTorch's DataLoader and torchvision's transforms, as in PyTorch's ImageNet example."""

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

from block_server import Block, input_arguments, serve
from PIL import Image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_KEPT = []


class Files:
    """Images as torchvision's ImageFolder reads them."""

    def __init__(self, paths: list[Path], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        with self.paths[index].open("rb") as file:
            return self.transform(Image.open(file).convert("RGB")), index % 1000


def main() -> None:
    """Serve the blocks."""
    folder, cores, size, batch_size = input_arguments()
    import torch  # pyright: ignore[reportMissingImports]  # only where PyTorch is measured

    transforms = torchvision(torch).transforms
    torch.set_num_threads(1)
    paths = sorted(folder.glob("*.jpg"))
    crop, flip = transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()
    floats = [crop, flip, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    workers = 0 if cores == 1 else cores
    blocks: dict[str, Block] = {
        "DataLoader, as PyTorch's example": loader(
            torch, Files(paths, transforms.Compose(floats)), batch_size, workers
        ),
        "DataLoader, no flip, uint8": loader(
            torch,
            Files(paths, transforms.Compose([crop, transforms.PILToTensor()])),
            batch_size,
            workers,
        ),
    }
    serve(blocks, f"torch {torch.__version__}, torchvision {torchvision(torch).__version__}")


def loader(torch: Any, files: Files, batch_size: int, workers: int) -> Block:
    """Every batch of an epoch; the workers stay."""
    batches = torch.utils.data.DataLoader(
        files,
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )
    return lambda: sum(len(images) for images, _ in batches)


def torchvision(torch: Any) -> Any:
    """Import torchvision with a CPU torch too, for which its compiled operators are not built."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("torchvision")
        except RuntimeError:
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
            operators = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                operators.define(
                    f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
            _KEPT.append(operators)
            return importlib.import_module("torchvision")


if __name__ == "__main__":
    main()
