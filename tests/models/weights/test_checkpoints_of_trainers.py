"""Weights saved by trainers: wrapped modules, nested checkpoints, other dtypes, other networks."""

import warnings

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn

from deepjax import create_model
from deepjax.errors import InputError
from deepjax.models.weights.convert import from_torch, load_pretrained, to_torch
from deepjax.models.weights.torch_prefixes import unwrap
from tests.models.torch_reference import needs_torch
from tests.numpy_variables import numpy_variables

NAME, FIELDS = "cifar_resnet20", {"width": 4}


@pytest.fixture(scope="module")
def tensors():
    return to_torch(
        NAME,
        jax.tree.map(
            np.asarray, numpy_variables(create_model(NAME, **FIELDS), (32, 32, 3), seed=5)
        ),
        **FIELDS,
    )


def under(prefix, tensors):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype
        np.testing.assert_array_equal(tensor, b[name])


def back(tensors, **fields):
    return to_torch(NAME, from_torch(NAME, tensors, **FIELDS, **fields), **FIELDS)


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("module.", "'module.'"),
        ("_orig_mod.", "'_orig_mod.'"),
        ("_orig_mod.module.", "'module.' and '_orig_mod.'"),
        ("state_dict.", "'state_dict.'"),
        ("model_state.module.", "'model_state.' and 'module.'"),
        ("state_dict.net.backbone._orig_mod.", "'state_dict.net.backbone.' and '_orig_mod.'"),
    ],
)
def test_prefixes_are_removed_with_a_warning(prefix, said, tensors):
    with pytest.warns(UserWarning, match=f"^{NAME}: names are read without {said}$"):
        assert_same(back(under(prefix, tensors)), tensors)


def test_no_warning_where_nothing_is_removed(tensors):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(back(tensors), tensors)


def test_a_compiled_or_sharded_part_of_a_network(tensors):
    renamed = {
        name.replace("layer2.", "layer2._fsdp_wrapped_module._orig_mod."): tensor
        for name, tensor in tensors.items()
    }
    with pytest.warns(
        UserWarning, match="names are read without '_orig_mod.' and '_fsdp_wrapped_module.'"
    ):
        assert_same(back(renamed), tensors)


def test_tensors_outside_of_a_prefix_are_named(tensors):
    given = under("model.", tensors) | {"queue": np.zeros((8, 2)), "criterion.weight": np.zeros(3)}
    with pytest.warns(
        UserWarning, match="names are read without 'model.'; ignored: criterion.weight, queue$"
    ):
        assert_same(back(given), tensors)


def test_of_two_networks_one_must_be_chosen(tensors):
    average = {name: tensor + np.ones((), tensor.dtype) for name, tensor in tensors.items()}
    given = (
        under("model.", tensors)
        | under("model_ema.module.", average)
        | {"model_ema.n_averaged": np.int64(3)}
    )
    with pytest.raises(
        InputError,
        match="tensors of 2 networks; give entry='model' or entry='model_ema', or save the one",
    ):
        back(given)
    for entry, expected in (
        ("model", tensors),
        ("model_ema", average),
        ("model_ema.module", average),
    ):
        with pytest.warns(UserWarning, match="ignored: model"):
            assert_same(back(given, entry=entry), expected)
    with pytest.raises(InputError, match="entry 'ema' is unknown; did you mean 'model_ema'"):
        back(given, entry="ema")
    with pytest.raises(InputError, match="give entry='' or entry='ema'"):
        back(tensors | under("ema.", average))
    with pytest.warns(UserWarning, match="ignored: ema"):
        assert_same(back(tensors | under("ema.", average), entry=""), tensors)


def test_one_name_twice_is_refused(tensors):
    with pytest.raises(
        InputError,
        match=r"conv1.weight is there twice, as 'conv1.weight' and 'module.conv1.weight'",
    ):
        back({"conv1.weight": tensors["conv1.weight"]} | under("module.", tensors))


def test_what_is_wrong_below_a_prefix_is_named_without_it(tensors):
    given = under("module.", tensors) | {"module.extra": np.zeros(2)}
    with (
        pytest.warns(UserWarning, match="names are read without"),
        pytest.raises(
            InputError,
            match=r"are not weights of cifar_resnet20: fc.bias is missing; extra is not known$",
        ),
    ):
        del given["module.fc.bias"]
        back(given)


@needs_torch
def test_checkpoints_of_training_scripts(tmp_path, tensors):
    import torch

    theirs = {name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()}
    optimizer = {
        "state": {0: {"exp_avg": torch.ones(3)}},
        "param_groups": [{"lr": 0.1, "params": [0]}],
    }
    for key in ("model", "state_dict", "model_state", "model_ema"):
        torch.save(
            {key: under("module.", theirs), "optimizer": optimizer, "epoch": 3, "best": None},
            tmp_path / "w.pth",
        )
        with pytest.warns(UserWarning, match=f"names are read without '{key}.' and 'module.'$"):
            variables = load_pretrained(NAME, tmp_path / "w.pth", **FIELDS)
        assert_same(to_torch(NAME, variables, **FIELDS), tensors)
    torch.save({"state_dict": theirs, "state_dict_ema": theirs}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="give entry='state_dict' or entry='state_dict_ema'"):
        load_pretrained(NAME, tmp_path / "w.pth", **FIELDS)
    within_itself = {"state_dict": theirs}
    within_itself["again"] = within_itself
    torch.save(within_itself, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"tensors of . networks"):
        load_pretrained(NAME, tmp_path / "w.pth", **FIELDS)


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16, ">f4", "float32"])
def test_floats_of_a_file_become_those_of_the_network(dtype, tensors):
    """float16 would stay float16 in an optimizer; upcasting is exact."""
    given = {
        name: tensor.astype(dtype) if tensor.dtype == np.float32 else tensor
        for name, tensor in tensors.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(
            back(given),
            {name: tensor.astype(tensors[name].dtype) for name, tensor in given.items()},
        )


def test_float64_is_rounded_with_a_word_or_kept(tensors):
    given = {
        name: tensor.astype(np.float64) / 3 if tensor.dtype == np.float32 else tensor
        for name, tensor in tensors.items()
    }
    with pytest.warns(
        UserWarning,
        match=r"97 tensors of float64 are rounded to float32; .*JAX_ENABLE_X64=1 keep them",
    ):
        rounded = back(given)
    assert_same(
        rounded, {name: tensor.astype(tensors[name].dtype) for name, tensor in given.items()}
    )
    with jax.enable_x64(True):
        assert_same(back(given, dtype="float64", param_dtype="float64"), given)


def test_numbers_that_do_not_fit_are_refused(tensors):
    large = tensors | {"conv1.weight": np.full(tensors["conv1.weight"].shape, 1e39)}
    with pytest.raises(
        InputError, match=f"conv1.weight of {NAME} has numbers too large for float32"
    ):
        back(large)
    with pytest.raises(InputError, match="numbers too large for float16"):
        back(
            tensors | {"conv1.weight": tensors["conv1.weight"] + np.float32(1e5)},
            param_dtype="float16",
        )


@pytest.mark.parametrize(
    ("dtype", "message"),
    [("int8", "fc.weight is int8$"), ("V2", r"fc.weight is \|V2; a .npz cannot hold bfloat16")],
)
def test_what_is_no_float_is_refused(dtype, message, tensors):
    """Integers are quantised weights, whose scale is elsewhere.

    .npz reads bfloat16 back as raw bytes.
    """
    with pytest.raises(InputError, match=message):
        back(tensors | {"fc.weight": np.zeros(tensors["fc.weight"].shape, dtype)})


def test_boxed_variables_are_written(tensors):
    variables = from_torch(NAME, tensors, **FIELDS)
    boxed = jax.tree.map(lambda leaf: nn.Partitioned(leaf, (None,) * leaf.ndim), variables)
    assert_same(to_torch(NAME, boxed, **FIELDS), tensors)


@pytest.mark.parametrize("classes", [1000, 10])
def test_the_network_that_a_file_is_of_is_named(classes):
    model = create_model("resnet18", num_classes=classes)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    tensors = to_torch(
        "resnet18",
        jax.tree.map(lambda leaf: np.broadcast_to(np.float32(1), leaf.shape), dict(shapes)),
    )
    with pytest.raises(
        InputError,
        match=f"157 more; their names and shapes are those of resnet18, num_classes={classes}$",
    ):
        from_torch("resnet50", tensors)


@pytest.mark.parametrize("source", [True, None, 7])
def test_a_source_is_a_path_or_a_name(source):
    with pytest.raises(
        InputError, match=rf"source is {source}; allowed: .*, such as 'timm/resnet50.tv2_in1k'"
    ):
        load_pretrained("resnet50", source)


def test_weights_that_only_torchvision_has():
    """The names that `deepjax models resnet50` lists."""
    with pytest.raises(
        InputError,
        match=r"only torchvision has; .*get_model\('googlenet', weights='IMAGENET1K_V1'\)",
    ):
        load_pretrained("googlenet_tv", "torchvision IMAGENET1K_V1")


def test_a_name_within_another_is_no_network():
    """bn1.weight stands in layer1.0.bn1.weight; a file with one tensor has one network."""
    wanted = {"bn1.weight", "layer1.0.bn1.weight"}
    assert unwrap(["layer1.0.bn1.weight"], wanted).given == {
        "layer1.0.bn1.weight": "layer1.0.bn1.weight"
    }
