"""Parity with torchvision and timm: equal logits and gradients, bitwise round trips of weights.

One name of each kind runs in the suite; all the others are slow, and CI runs them too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepjax import create_model, list_models, model_info
from deepjax.analysis import count_params
from deepjax.models import stack_blocks
from deepjax.models.layers import conv_lowering
from deepjax.models.weights.convert import from_torch, to_torch
from deepjax.models.weights.torch_names import layouts
from tests.models import torch_reference
from tests.models.torch_reference import needs_torch

TORCHVISION = [
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    *(
        "googlenet_tv",
        "inception_v3",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "resnext50_32x4d",
    ),
    *("resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
]
TIMM = [
    *(name for name in TORCHVISION if name != "googlenet_tv"),
    *("resnet200", "resnext101_32x4d", "resnet50_gn", "nf_resnet50", "nf_resnet101"),
    *(f"resnet{depth}d" for depth in (18, 34, 50, 101, 152, 200)),
    *(f"resnetv2_{depth}{deep}" for depth in (18, 34, 50, 101, 152) for deep in ("", "d")),
]
QUICK = {
    "torchvision": {"googlenet_tv", "resnet18", "resnext50_32x4d"},
    "timm": {"resnet18d", "resnet50_gn", "resnetv2_18", "resnetv2_50d", "nf_resnet50"},
}
THEIR_NAMES = {"googlenet_tv": "googlenet"}
# Each auxiliary head, torchvision's module for it, and the module whose output it stands on.
HEADS = {
    "googlenet_tv": {"4a": ("aux1", "inception4a"), "4d": ("aux2", "inception4d")},
    "inception_v3": {"6e": ("AuxLogits", "Mixed_6e")},
}
# timm's Inception-v3 has no auxiliary head unless asked for.
OVERRIDES = {("timm", "inception_v3"): {"auxiliary": False}}

pytestmark = [needs_torch, pytest.mark.reference]


def cases(source: str, names: list[str]):
    return [
        pytest.param(source, name, marks=() if name in QUICK[source] else pytest.mark.slow)
        for name in names
    ]


def images_of(height: int, width: int, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(height).standard_normal(
        (batch, height, width, 3), dtype=np.float32
    )


def our_logits(name: str, variables, images: np.ndarray, **overrides) -> np.ndarray:
    """Blocks are scanned where possible, so that 200 layers compile in seconds.

    See test_resnet.py.
    """
    model = create_model(name, **overrides)
    variables = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
    if hasattr(model, "scan") and not name.startswith("nf_"):
        model, variables = model.clone(scan=True), stack_blocks(variables)
    compiled = (
        jax.jit(model.apply).lower(variables, images).compile({"xla_backend_optimization_level": 0})
    )
    return np.asarray(compiled(variables, images))


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize(
    ("source", "name"), cases("torchvision", TORCHVISION) + cases("timm", TIMM)
)
def test_logits_are_equal_and_weights_round_trip_bitwise(source, name):
    overrides = OVERRIDES.get((source, name), {})
    theirs = torch_reference.network(
        source,
        THEIR_NAMES.get(name, name),
        **({"init_weights": False} if name == "googlenet_tv" else {}),
    )
    tensors = torch_reference.tensors(theirs)
    variables = from_torch(name, tensors, **overrides)

    back = to_torch(name, variables, layout=source, **overrides)
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert back[key].dtype == tensor.dtype
        np.testing.assert_array_equal(back[key], tensor)

    side = model_info(name).input_shape[0]
    small = (75, 107) if name == "inception_v3" else (64, 97)
    for height, width in ((side, side), small):
        images = images_of(height, width)
        error = relative_error(
            our_logits(name, variables, images, **overrides), torch_reference.logits(theirs, images)
        )
        assert error <= 1e-5, f"{height}x{width}: {error}"


@pytest.mark.parametrize(("source", "name"), [("torchvision", "resnet18"), ("timm", "resnetv2_18")])
def test_logits_are_equal_in_the_call_that_users_make(source, name):
    """Blocks unrolled, all variables handed over, the compiler at its usual level."""
    theirs = torch_reference.network(source, name)
    variables = from_torch(name, torch_reference.tensors(theirs))
    images = images_of(64, 97)
    ours = np.asarray(jax.jit(create_model(name).apply)(variables, images))
    assert relative_error(ours, torch_reference.logits(theirs, images)) <= 1e-5


@pytest.mark.parametrize(("source", "name"), cases("timm", TIMM))
def test_counts_equal_those_of_pytorch(source, name):
    theirs = torch_reference.network(source, name)
    info = model_info(name)
    params = (
        count_params(create_model(name, **OVERRIDES[source, name]), info.input_shape)
        if (source, name) in OVERRIDES
        else info.params
    )
    assert torch_reference.count(theirs, info.input_shape[0]) == (params, info.macs)


def test_every_shared_name_is_tested():
    ours = set(list_models())
    timm = set(torch_reference.library("timm").list_models())
    torchvision = {
        name for name in torch_reference.library("torchvision").list_models() if "/" not in name
    }
    assert set(TIMM) == ours & timm
    # torchvision's googlenet is not the paper's, which has that name here; densenets and others are
    # no family of ours
    assert set(TORCHVISION) == ours & torchvision - {"googlenet"} | {"googlenet_tv"}
    exchanged = {name for name in ours if layouts(create_model(name))}
    assert set(TORCHVISION) | set(TIMM) <= exchanged


@pytest.fixture(params=["cpu", "gpu"])
def form(request, monkeypatch):
    """Layers as on a backend; a GPU's space-to-depth in float32 too, as PyTorch computes here."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)
    if request.param == "gpu":
        monkeypatch.setattr(
            conv_lowering,
            "is_faster_as_space_to_depth",
            lambda x, strides: x.shape[-1] == 3 and tuple(strides) == (2, 2),
        )


# Small images and batches: rounding moves some activation in a million across ReLU's kink, and each
# moves a gradient by far more than rounding does: vgg11 at 64 pixels, batch 8, differs by 2e-3 in
# its first kernel, at 32 pixels, batch 2, by 2e-6.
@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(
    ("name", "size", "batch", "train"),
    [
        pytest.param("vgg11", 32, 2, True, marks=pytest.mark.slow),  # 133 million parameters
        pytest.param("googlenet_tv", 64, 2, False, marks=pytest.mark.slow),
        ("resnet18", 64, 4, True),
    ],
)
def test_gradients_are_equal(name, size, batch, train):
    """Training with batch statistics.

    GoogLeNet, with 57 norms over few pixels, with running ones.
    """
    import torch

    theirs = torch_reference.network("torchvision", THEIR_NAMES.get(name, name), num_classes=10)
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    images = np.random.default_rng(0).standard_normal((batch, size, size, 3), dtype=np.float32)
    labels = np.arange(batch)
    dropout = {"dropout": 0.0} if name != "resnet18" else {}
    variables = from_torch(name, torch_reference.tensors(theirs), num_classes=10, **dropout)
    model = create_model(name, num_classes=10, **dropout)

    theirs.train(train)
    outputs = head_outputs(theirs, name)
    main = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    cross_entropy = torch.nn.functional.cross_entropy
    loss = cross_entropy(main, torch.from_numpy(labels))
    for scores in outputs().values():
        loss = loss + 0.3 * cross_entropy(scores, torch.from_numpy(labels))
    loss.backward()

    def our_loss(params):
        stats = {"batch_stats": variables["batch_stats"]} if "batch_stats" in variables else {}
        scores, updated = model.apply(
            {"params": params, **stats}, images, train=train, mutable=["batch_stats", "auxiliary"]
        )
        main, *heads = [
            jnp.mean(optax.softmax_cross_entropy_with_integer_labels(of, labels))
            for of in (scores, *updated.get("auxiliary", {}).values())
        ]
        return main + sum(0.3 * head for head in heads), updated.get("batch_stats")

    (value, stats), gradients = jax.jit(jax.value_and_grad(our_loss, has_aux=True))(
        variables["params"]
    )
    assert abs(float(value) - float(loss.detach())) <= 1e-4 * float(loss.detach())
    collections = {"params": gradients} | ({"batch_stats": stats} if stats else {})
    got = to_torch(name, collections, **dropout)
    for key, parameter in theirs.named_parameters():
        expected = parameter.grad.numpy()
        error = np.linalg.norm(got[key] - expected) / max(np.linalg.norm(expected), 1e-3)
        assert error <= 1e-4, f"{key}: {error}"
    for key, statistic in theirs.named_buffers():
        # the running variance is unbiased in PyTorch, not in flax and here
        if key.endswith("running_mean"):
            np.testing.assert_allclose(got[key], statistic.numpy(), rtol=1e-4, atol=1e-5)


def head_outputs(theirs, name: str):
    """The logits of the auxiliary heads after a forward pass.

    In evaluation PyTorch does not call them.
    """
    maps = {}
    heads = HEADS.get(name, {})
    for _, below in heads.values():
        theirs.get_submodule(below).register_forward_hook(
            lambda _, __, output, below=below: maps.update({below: output})
        )
    return lambda: {
        head: theirs.get_submodule(module)(maps[below]) for head, (module, below) in heads.items()
    }


@pytest.mark.parametrize(("name", "size"), [("googlenet_tv", 96), ("inception_v3", 299)])
def test_auxiliary_heads_give_equal_logits(name, size):
    import torch

    theirs = torch_reference.network("torchvision", THEIR_NAMES.get(name, name), num_classes=10)
    variables = from_torch(name, torch_reference.tensors(theirs), num_classes=10)
    outputs = head_outputs(theirs, name)
    images = images_of(size, size)
    torch_reference.logits(theirs, images)
    model = create_model(name, num_classes=10)
    apply = jax.jit(lambda v, x: model.apply(v, x, mutable=["auxiliary"])[1]["auxiliary"])
    sown = apply({key: variables[key] for key in ("params", "batch_stats")}, images)
    with torch.no_grad():
        expected = outputs()
    assert sown.keys() == expected.keys() == HEADS[name].keys()
    for head, scores in expected.items():
        assert relative_error(np.asarray(sown[head]), scores.numpy()) <= 1e-5
