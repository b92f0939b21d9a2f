"""torchvision's ImageFolder with PyTorch's DataLoader: blocks for own_images.py."""

import os
from typing import Any

from block_server import Block, input_arguments, serve
from input_torch import MEAN, STD, torchvision


def main() -> None:
    """Serve the blocks."""
    folder, cores, size, batch_size = input_arguments()
    import torch  # pyright: ignore[reportMissingImports]  # only where PyTorch is measured

    vision = torchvision(torch)
    torch.set_num_threads(1)
    transforms = vision.transforms
    count = int(os.environ["IMAGES_A_BLOCK"])
    crop = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    scaled = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]

    def block(*after: Any, workers: int = cores, **options: Any) -> Block:
        steps = transforms.Compose([*crop, *after])
        images = vision.datasets.ImageFolder(str(folder), steps, **options)
        return loader(torch, images, batch_size, count, workers)

    blocks: dict[str, Block] = {
        "ImageFolder and DataLoader, uint8": block(transforms.PILToTensor()),
        "ImageFolder and DataLoader, float32, normalised": block(*scaled),
    }
    if cores == 1:
        blocks["ImageFolder and DataLoader, uint8, without a worker"] = block(
            transforms.PILToTensor(), workers=0
        )
    if decoder := native_decoder(torch, vision):
        blocks["ImageFolder and DataLoader, uint8, torchvision.io"] = block(loader=decoder)
    without = "" if decoder else ", whose torchvision.io cannot be loaded"
    serve(blocks, f"torch {torch.__version__}, torchvision {vision.__version__}{without}")


def loader(torch: Any, images: Any, batch_size: int, count: int, workers: int) -> Block:
    """Batches of `count` random images; the workers stay."""
    chosen = torch.utils.data.RandomSampler(images, num_samples=count - count % batch_size)
    batches = torch.utils.data.DataLoader(
        images, batch_size, sampler=chosen, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: sum(len(images) for images, _ in batches)


def native_decoder(torch: Any, vision: Any) -> Any:
    """The decoder of torchvision.io, of a file to a tensor; None where its build does not load."""
    io = vision.io
    try:
        io.decode_jpeg(io.encode_jpeg(torch.zeros((3, 8, 8), dtype=torch.uint8)))
    except RuntimeError:
        return None
    return lambda path: io.decode_jpeg(io.read_file(path), mode=io.ImageReadMode.RGB)


if __name__ == "__main__":
    main()
