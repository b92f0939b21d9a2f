"""The speedrun's recipe in PyTorch: trains once for each seed named on stdin; for speedrun_pair.py.

The same network, initialisation, whitening, flips, optimizer (with optax's constants), schedule,
averages and evaluation. The kernels of Muon that have one shape are orthogonalised together.
"""

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

torch: Any = importlib.import_module("torch")  # only where PyTorch is measured
nn = torch.nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
BETA, SECOND, EPSILON, AVERAGING = 0.9, 0.999, 1e-8, 0.95


class Network(nn.Module):
    """The network of experiments/speedrun.py, channels last."""

    def __init__(self, stem: Sequence[int], stages: Sequence[Sequence[int]], channels: int) -> None:
        super().__init__()
        side, stride = stem
        filters = 2 * side**2 * channels
        self.stem = nn.Conv2d(channels, filters, side, stride, (side - 1) // 2, bias=False)
        self.stem_norm = norm(filters)
        self.stages = nn.ModuleList()
        for stage in stages:
            layers = nn.ModuleList()
            for out in stage:
                layers.append(nn.Conv2d(filters, out, 3, padding=1, bias=False))
                layers.append(norm(out))
                filters = out
            self.stages.append(layers)
        self.classifier = nn.Linear(filters, 10)

    def forward(self, x: Any) -> Any:
        """Images (batch, channels, height, width) -> logits."""
        x = self.stem_norm(self.stem(x)).relu()
        for i, layers in enumerate(self.stages):
            x = nn.functional.max_pool2d(x, 2) if i else x
            for j in range(0, len(layers), 2):
                y = layers[j + 1](layers[j](x)).relu()
                x = x + y if j and x.shape == y.shape else y
        return self.classifier(x.mean((2, 3)))


def norm(channels: int) -> Any:
    """Batch norm whose averages change by 0.2 a step."""
    return nn.BatchNorm2d(channels, momentum=0.2)


def initialise(net: Any, stem: np.ndarray) -> None:
    """He's normal distribution, LeCun's truncated one for the classifier, and the given stem."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    std = 1 / math.sqrt(net.classifier.in_features) / 0.87962566103423978
    nn.init.trunc_normal_(net.classifier.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(net.classifier.bias)
    with torch.no_grad():
        net.stem.weight.copy_(torch.from_numpy(stem.transpose(3, 2, 0, 1).copy()))
    net.stem.weight.requires_grad_(False)


def orthogonalised(matrices: Any) -> Any:
    """Five Newton-Schulz steps of Muon on matrices (count, rows, columns), rows <= columns."""
    a, b, c = NEWTON_SCHULZ
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + EPSILON)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon:
    """optax.contrib.muon: Muon for weights, Adam with Nesterov's momentum for the rest."""

    def __init__(self, net: Any) -> None:
        trained = [p for p in net.parameters() if p.requires_grad]
        self.weights = [p for p in trained if p.ndim > 1]
        self.means = [torch.zeros_like(p) for p in self.weights]
        self.others = [p for p in trained if p.ndim <= 1]
        self.firsts = [torch.zeros_like(p) for p in self.others]
        self.seconds = [torch.zeros_like(p) for p in self.others]
        self.count = 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update of all parameters."""
        self.count += 1
        now, later = 1 - BETA**self.count, 1 - BETA ** (self.count + 1)
        gradients = [p.grad for p in self.weights]
        torch._foreach_lerp_(self.means, gradients, 1 - BETA)
        by_shape: dict[Any, list[int]] = {}
        for i, p in enumerate(self.weights):
            by_shape.setdefault(p.shape, []).append(i)
        for shape, group in by_shape.items():
            rows = torch.stack(
                [BETA / later * self.means[i] + (1 - BETA) / now * gradients[i] for i in group]
            ).flatten(2)
            out, inside = rows.shape[1:]
            updates = orthogonalised(rows) if out <= inside else orthogonalised(rows.mT).mT
            scale = rate * math.sqrt(max(1.0, out / inside))
            for i, update in zip(group, updates, strict=True):
                self.weights[i].add_(update.reshape(shape), alpha=-scale)
        self._adam(rate, now, later)

    def _adam(self, rate: float, now: float, later: float) -> None:
        """Nesterov's Adam, whose first moment has the constant of Muon's here."""
        gradients = [p.grad for p in self.others]
        torch._foreach_lerp_(self.firsts, gradients, 1 - BETA)
        torch._foreach_mul_(self.seconds, SECOND)
        torch._foreach_addcmul_(self.seconds, gradients, gradients, 1 - SECOND)
        means = torch._foreach_mul(self.firsts, BETA / later)
        torch._foreach_add_(means, gradients, alpha=(1 - BETA) / now)
        scales = torch._foreach_div(self.seconds, 1 - SECOND**self.count)
        torch._foreach_sqrt_(scales)
        torch._foreach_add_(scales, EPSILON)
        torch._foreach_addcdiv_(self.others, means, scales, -rate)


class Trainer:
    """The recipe on the images of a task."""

    def __init__(self, task: Any, compiled: bool) -> None:
        self.task, self.recipe = task, json.loads(str(task["recipe"]))
        self.compiled = compiled
        self.mean, self.std = (
            torch.tensor(task[name], device=DEVICE, dtype=torch.float32).view(1, -1, 1, 1)
            for name in ("mean", "std")
        )

    def prepare(self, images: Any) -> Any:
        """uint8 (batch, height, width, channels) -> normalised, channels first in shape alone."""
        x = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return x.contiguous(memory_format=torch.channels_last)

    def network(self) -> Any:
        """A new network."""
        channels = self.task["images"].shape[-1]
        net = Network(self.recipe["stem"], self.recipe["stages"], channels)
        initialise(net, self.task["kernel"])
        return net.to(DEVICE).to(memory_format=torch.channels_last)

    def train(self, seed: int) -> tuple[float, float]:
        """Test accuracy in per cent, and seconds."""
        torch.manual_seed(seed)
        began = time.perf_counter()
        images = torch.from_numpy(self.task["images"]).to(DEVICE)
        labels = torch.from_numpy(self.task["labels"]).long().to(DEVICE)
        net = self.network()
        averages = [t.clone() for t in tensors(net)]
        optimizer, steps = Muon(net), self.recipe["steps"]
        loss_of = self.loss_of(net)
        for step, ids in zip(range(steps), self.order(len(images)), strict=False):
            flip = torch.rand(len(ids), 1, 1, 1, device=DEVICE) < 0.5
            batch = images[ids]
            batch = torch.where(flip, batch.flip(2), batch)
            net.zero_grad(set_to_none=True)
            loss_of(batch, labels[ids]).backward()
            optimizer.step(self.recipe["rate"] * (1 - step / steps))
            if self.recipe["averaging"]:
                torch._foreach_lerp_(averages, tensors(net), 1 - AVERAGING)
        if self.recipe["averaging"]:
            torch._foreach_copy_(tensors(net), averages)
        accuracy = self.accuracy(net)
        return accuracy, time.perf_counter() - began

    def loss_of(self, net: Any) -> Any:
        """(uint8 images, labels) -> the loss."""
        entropy = nn.CrossEntropyLoss(label_smoothing=0.2)

        def loss(images: Any, labels: Any) -> Any:
            return entropy(net(self.prepare(images)), labels)

        return torch.compile(loss) if self.compiled else loss

    def order(self, count: int) -> Iterator[Any]:
        """The ids of the images of each batch: complete batches, in a new order each epoch."""
        size = self.recipe["batch_size"]
        while True:
            ids = torch.randperm(count, device=DEVICE)
            yield from ids[: count // size * size].view(-1, size)

    @torch.inference_mode()
    def accuracy(self, net: Any) -> float:
        """Of the test images, each with its mirror image."""
        net.eval()
        right = 0
        images, labels = self.task["test_images"], self.task["test_labels"]
        for start in range(0, len(images), 2000):
            x = self.prepare(torch.from_numpy(images[start : start + 2000]).to(DEVICE))
            found = (net(x) + net(x.flip(3))).argmax(1).cpu().numpy()
            right += int((found == labels[start : start + 2000]).sum())
        return 100 * right / len(images)


def tensors(net: Any) -> list[Any]:
    """Parameters and running statistics."""
    buffers = [b for b in net.buffers() if b.is_floating_point()]
    return [p.data for p in net.parameters()] + buffers


def main() -> None:
    """Serve one training for each line of stdin, which is its seed."""
    with np.load(sys.argv[1]) as file:
        trainer = Trainer(dict(file), "--compiled" in sys.argv[2:])
    answer = os.fdopen(os.dup(1), "w")
    threads = torch.get_num_threads()
    print(json.dumps(f"torch {torch.__version__}, {threads} threads"), file=answer, flush=True)
    for line in sys.stdin:
        print(json.dumps(trainer.train(int(line))), file=answer, flush=True)


if __name__ == "__main__":
    main()
