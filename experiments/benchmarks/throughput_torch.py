"""Networks of torchvision and timm, eager and compiled: blocks for throughput.py."""

import importlib
import sys
from typing import Any

import numpy as np
from block_server import Block, serve
from input_torch import torchvision
from throughput_task import DECAY, HEADS, MEAN, MOMENTUM, SMOOTHING, STD, Task, given

torch: Any = importlib.import_module("torch")  # only where PyTorch is measured
nn = torch.nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
if DEVICE == "cuda":  # whose tensor cores want the other
    del FORMATS["contiguous"]


def main() -> None:
    """Serve a block for each layout; --compiled: through torch.compile; --timm: of timm."""
    task, name_of_all, flags = given(), sys.argv[2], sys.argv[3:]
    torch.backends.cudnn.benchmark = True
    compiled = "--compiled" in flags
    blocks, losses = {}, {}
    for layout in FORMATS:
        name = f"{name_of_all} {'compiled' if compiled else 'eager'}, {layout}"
        blocks[name], losses[name] = steps(task, network(task, "--timm" in flags), layout, compiled)
    versions = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    serve(
        blocks,
        versions,
        losses=losses,
        device=torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
    )


def steps(task: Task, net: Any, layout: str, compiled: bool) -> tuple[Block, list[float]]:
    """Steps of training, or applications; and the first losses."""
    net = net.to(DEVICE).to(memory_format=FORMATS[layout])
    images, labels = (torch.from_numpy(array).to(DEVICE) for array in task.batch())
    mean, std = (torch.tensor(values, device=DEVICE).view(1, 3, 1, 1) for values in (MEAN, STD))
    cross_entropy = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    labels = labels.long()

    def forward(net: Any, images: Any) -> Any:
        x = (images.permute(0, 3, 1, 2).float() - mean) / std
        with torch.autocast(DEVICE, torch.bfloat16, enabled=task.precision == "bfloat16"):
            return net(x.contiguous(memory_format=FORMATS[layout]))

    def loss_of(images: Any, labels: Any) -> tuple[Any, Any]:
        outputs = forward(net, images)
        logits, *heads = outputs if isinstance(outputs, tuple) else (outputs,)
        own = cross_entropy(logits.float(), labels)
        return own, own + HEADS * sum(
            cross_entropy(head.float(), labels) for head in heads if head is not None
        )

    if task.inference:
        return inference(task, net.eval(), forward, images, compiled)
    loss_of = torch.compile(loss_of) if compiled else loss_of
    kernels = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, task.learning_rate, MOMENTUM, nesterov=True, fused=True)

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss, total = loss_of(images, labels)
        total.backward()
        optimizer.step()
        return loss.detach()

    losses = [float(step()) for _ in range(task.checked)]

    def block() -> int:
        for _ in range(task.steps):
            step()
        _wait()
        return task.steps * task.batch_size

    return block, losses


def inference(
    task: Task, net: Any, forward: Any, images: Any, compiled: bool
) -> tuple[Block, list[float]]:
    """Applications in evaluation mode; "losses" is the mean logit's size."""
    net = torch.compile(net) if compiled else net

    @torch.inference_mode()
    def apply() -> Any:
        return forward(net, images)

    def block() -> int:
        for _ in range(task.steps):
            apply()
        _wait()
        return task.steps * task.batch_size

    return block, [float(apply().float().abs().mean())]


def network(task: Task, of_timm: bool) -> Any:
    """The network with the driver's weights, dropout off."""
    weights = {name: torch.from_numpy(np.array(tensor)) for name, tensor in task.weights().items()}
    models = torchvision(torch).models  # timm needs it too
    if of_timm:
        timm: Any = importlib.import_module("timm")
        net = timm.create_model(task.model, num_classes=task.classes)
        net.load_state_dict(weights)
        return net.train()
    plain = {"weights": None, "num_classes": task.classes}
    heads = {"aux_logits": True, "transform_input": False, "init_weights": False, "dropout": 0.0}
    makers = {
        "cifar_resnet20": lambda: cifar_resnet(models.resnet, (3, 3, 3)),
        "resnet50": lambda: models.resnet50(**plain),
        "vgg16_bn": lambda: models.vgg16_bn(**plain, dropout=0.0),
        "googlenet_tv": lambda: models.googlenet(**plain, **heads, dropout_aux=0.0),
        "inception_v3": lambda: models.inception_v3(**plain, **heads),
    }
    net = makers[task.model]()
    net.load_state_dict(weights)
    return net.train()


def cifar_resnet(resnet: Any, blocks: tuple[int, ...]) -> Any:
    """He et al. 2015, section 4.2, from torchvision's basic blocks; shortcuts of kind A."""
    net, channels = nn.Module(), 16
    net.conv1, net.bn1, net.fc = (
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.Linear(64, 10),
    )
    for stage, count in enumerate(blocks):
        layers = []
        for block in range(count):
            stride, out = (2, 2 * channels) if stage and not block else (1, channels)
            layers.append(
                resnet.BasicBlock(
                    channels, out, stride, Padded(out - channels) if stride > 1 else None
                )
            )
            channels = out
        net.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
    net.forward = lambda x: net.fc(
        net.layer3(net.layer2(net.layer1(net.bn1(net.conv1(x)).relu()))).mean((2, 3))
    )
    return net


class Padded(nn.Module):
    """The shortcut of kind A: every other pixel, and zeros for the new channels."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Any) -> Any:
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.more))


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
