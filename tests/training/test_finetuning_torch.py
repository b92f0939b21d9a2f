"""Training from torchvision's weights follows PyTorch's: the loss of every step.

Both begin with one file, as `torch.save` writes it, and see the same images in the same order. The
weights are such that PyTorch's own float32 and float64 agree: within 1.3e-5 over 20 steps of full
fine-tuning. With torchvision's plain initialisation they are 3e-4 apart at a rate of 1e-5, and 0.06
at 1e-4, because rounding flips units of ReLU.
"""

import numpy as np
import pytest

from deepjax.training import compile_training, train_config
from tests.models import torch_reference
from tests.models.torch_reference import needs_torch

pytestmark = [needs_torch, pytest.mark.reference]

STEPS, CLASSES = 20, 5
RECIPE = {
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 0.5,
    "decay_norm_and_bias": True,
    "schedule": "constant",
    "warmup_epochs": 0.0,
    "augment": False,
}
FULL = {"learning_rate": 5e-5}
PROBE = {"learning_rate": 1e-3, "freeze": ("!classifier",), "freeze_batch_norm": True}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """96 images of 64x64 pixels in 5 classes, whose colours and directions differ."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % CLASSES
    rows, columns = np.mgrid[:64, :64] / 64
    waves = np.stack([np.sin(9 * (rows * np.cos(k) + columns * np.sin(k))) for k in range(CLASSES)])
    colours = rng.uniform(-60, 60, (CLASSES, 3))
    images = 128 + waves[labels][..., None] * 40 + colours[labels][:, None, None]
    images = np.clip(images + rng.normal(0, 40, images.shape), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "images.npz"
    parts = {"train_images": images[:80], "train_labels": labels[:80]}
    parts |= {"val_images": images[80:], "val_labels": labels[80:]}
    np.savez(path, **parts)
    return path


def their_network(classes: int):
    """Torchvision's resnet18 with its own random initialisation."""
    models = torch_reference.library("torchvision")
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    return models.resnet18(num_classes=classes)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A resnet18 for 1000 classes in a file, with the statistics of some batches of noise."""
    network = their_network(1000)
    import torch

    with torch.no_grad():
        for name, module in network.named_modules():
            if name.endswith("bn2"):  # the last of a block: branches are small, as in trained nets
                module.weight.fill_(0.1)
        for _ in range(10):
            network(torch.randn(8, 3, 64, 64))
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(network.state_dict(), path)
    return path


def their_start(weights, head, probe: bool):
    """The network from the file in training mode, with a given new classifier."""
    import torch

    network = their_network(1000)
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.requires_grad_(not probe)
    network.fc = torch.nn.Linear(512, CLASSES)
    with torch.no_grad():
        network.fc.weight.copy_(torch.tensor(np.asarray(head["kernel"]).T))
        network.fc.bias.copy_(torch.tensor(np.asarray(head["bias"])))
    return network.train(not probe)  # a residual network has no layer but batch norm with modes


def their_losses(network, rate: float, batches, dataset) -> list[float]:
    """The losses of PyTorch's SGD before each step."""
    import torch

    free = [parameter for parameter in network.parameters() if parameter.requires_grad]
    sgd = torch.optim.SGD(
        free,
        lr=rate,
        momentum=RECIPE["momentum"],
        weight_decay=RECIPE["weight_decay"],
    )
    losses = []
    for images, labels in batches:
        normal = (images.astype(np.float32) - np.float32(dataset.mean)) / np.float32(dataset.std)
        logits = network(torch.tensor(normal.transpose(0, 3, 1, 2)))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels).long())
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("options", [FULL, PROBE], ids=["full", "probe"])
def test_losses_of_20_steps_are_those_of_pytorch(options, photographs, weights):
    config = train_config(
        "resnet18", str(photographs), steps=STEPS, batch_size=16, weights=str(weights),
        **RECIPE, **options,
    )  # fmt: skip
    programs = compile_training(config)
    state = programs.starting_state(config)
    theirs = their_start(weights, state.params["head"], probe=options == PROBE)
    seen, losses = [], []
    for batch in programs.batches(config):
        seen.append((np.asarray(batch["image"]), np.asarray(batch["label"])))
        state, metrics = programs.train_step(state, batch)
        losses.append(float(metrics["loss"]))
    wanted = their_losses(theirs, config.learning_rate, seen, programs.dataset)
    assert len(losses) == STEPS
    assert wanted[-1] < 0.9 * wanted[0]
    np.testing.assert_allclose(losses, wanted, rtol=0, atol=1e-4)
