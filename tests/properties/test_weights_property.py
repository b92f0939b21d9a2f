"""Weights in files, on generated names, prefixes, types and formats.

What is read is what was written, or an error of one line. The expected numbers are PyTorch's with
their axes moved by `np.einsum`, and the expected logits are those of PyTorch itself.
"""

import tempfile
import warnings
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from deepjax import create_model
from deepjax.errors import InputError
from deepjax.models.weights.convert import from_torch, load_pretrained
from deepjax.models.weights.tensor_pairs import TensorPair
from deepjax.models.weights.torch_prefixes import WRAPPERS, unwrap
from tests.models.torch_reference import needs_torch
from tests.properties.examples import examples

# A ResNet of one block: every kind of tensor, and small enough to be made anew for each example.
NAME, FIELDS = "cifar_resnet20", {"stages": (1,), "width": 3, "num_classes": 4}
SHAPES = {
    "conv1.weight": (3, 3, 3, 3),
    "layer1.0.conv1.weight": (3, 3, 3, 3),
    "layer1.0.conv2.weight": (3, 3, 3, 3),
    "fc.weight": (4, 3),
    "fc.bias": (4,),
}
NORMS = {
    "bn1": "stem_norm",
    "layer1.0.bn1": "stage1_block1/norm1",
    "layer1.0.bn2": "stage1_block1/norm2",
}
CONVS = {
    "conv1": "stem_conv",
    "layer1.0.conv1": "stage1_block1/conv1",
    "layer1.0.conv2": "stage1_block1/conv2",
}
KEYS = (
    "model",
    "state_dict",
    "model_state",
    "state_dict_ema",
    "model_ema",
    "net",
    "backbone",
    "a-b_c",
    "0",
    "ünïcode",
)
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)

prefixes = st.lists(st.sampled_from(KEYS), max_size=3).map(tuple)
words = st.text("abcdw1_", min_size=1, max_size=4)
names = st.lists(words, min_size=1, max_size=4).map(".".join)


def numbers(seed: int, dtype=np.float32) -> dict[str, np.ndarray]:
    """Random tensors of the network in a type, counters in int64."""
    rng = np.random.default_rng(seed)
    tensors = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    for norm in NORMS:
        tensors |= {
            f"{norm}.{leaf}": rng.standard_normal(3) for leaf in ("weight", "bias", "running_mean")
        }
        tensors[f"{norm}.running_var"] = rng.uniform(0.5, 2, 3)
    cast = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    return cast | {
        f"{norm}.num_batches_tracked": np.asarray(rng.integers(0, 2**62)) for norm in NORMS
    }


def expected(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The network's variables by path, in float32."""
    wide = {
        name: tensor.astype(np.float32)
        for name, tensor in tensors.items()
        if "num_batches" not in name
    }
    paths = {
        f"params/{ours}/kernel": np.einsum("oihw->hwio", wide[f"{theirs}.weight"])
        for theirs, ours in CONVS.items()
    }
    for theirs, ours in NORMS.items():
        paths |= {
            f"params/{ours}/scale": wide[f"{theirs}.weight"],
            f"params/{ours}/bias": wide[f"{theirs}.bias"],
        }
        paths |= {f"batch_stats/{ours}/mean": wide[f"{theirs}.running_mean"]}
        paths |= {f"batch_stats/{ours}/var": wide[f"{theirs}.running_var"]}
        paths |= {f"counters/{ours}/batches": tensors[f"{theirs}.num_batches_tracked"]}
    return paths | {"params/head/kernel": wide["fc.weight"].T, "params/head/bias": wide["fc.bias"]}


def flat(tree, before="") -> dict[str, np.ndarray]:
    if not isinstance(tree, dict):
        return {before: tree}
    return {
        path: leaf
        for key, value in tree.items()
        for path, leaf in flat(value, f"{before}/{key}".strip("/")).items()
    }


def assert_variables(variables, tensors) -> None:
    got, wanted = flat(variables), expected(tensors)
    assert got.keys() == wanted.keys()
    for path, leaf in wanted.items():
        assert got[path].dtype == leaf.dtype and got[path].shape == leaf.shape
        np.testing.assert_array_equal(got[path], leaf)


@st.composite
def wrapped(draw, names, prefix=()):
    """{name: name in the file}, with wrappers anywhere among the parts, behind a prefix."""
    cut = draw(st.integers(0, 2))
    wrapper = draw(st.lists(st.sampled_from(WRAPPERS), max_size=2))
    return {
        name: ".".join([*prefix, *name.split(".")[:cut], *wrapper, *name.split(".")[cut:]])
        for name in names
    }


@examples(few=100, many=10_000)
@given(st.data(), st.sets(names, min_size=1, max_size=12), prefixes, st.sets(names, max_size=4))
def test_every_name_is_found_behind_wrappers_and_prefixes(data, wanted, prefix, others):
    """The tensors of one network behind any prefix, among tensors that end in no wanted name."""
    renamed = data.draw(wrapped(sorted(wanted), prefix))
    ends = {
        other for other in others if not any(f".{other}".endswith(f".{name}") for name in wanted)
    }
    outside = {f"other.{name}" for name in ends} if prefix else set()
    inner = {
        name
        for name in wanted
        if any(f".{name}".endswith(f".{short}") and name != short for short in wanted)
    }
    found = unwrap([*renamed.values(), *outside], wanted)
    assert found.given == renamed
    changed = [name for name, full in renamed.items() if name != full]
    assert bool(found.note) == bool(changed or outside)
    # A name may be the end of another: conv1.weight, layer1.0.conv1.weight.
    assert not inner or found.given.keys() == wanted


@examples(few=100, many=10_000)
@given(
    st.data(),
    st.sets(names, min_size=1, max_size=12),
    st.lists(prefixes, min_size=2, max_size=3, unique=True),
)
def test_of_several_networks_one_must_be_chosen(data, wanted, places):
    renamed = [data.draw(wrapped(sorted(wanted), place)) for place in places]
    given_names = [name for each in renamed for name in each.values()]
    if len(set(given_names)) < len(given_names):
        return
    with pytest.raises(InputError, match=f"tensors of {len(places)} networks; give entry="):
        unwrap(given_names, wanted)
    for place, each in zip(places, renamed, strict=True):
        assert unwrap(given_names, wanted, ".".join(place)).given == each


@examples(few=100, many=10_000)
@given(st.lists(names, max_size=12, unique=True), st.sets(names, max_size=12), st.none() | names)
def test_any_names_give_names_of_theirs_or_an_error_in_a_line(given_names, wanted, entry):
    try:
        found = unwrap(given_names, wanted, entry)
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert set(found.given.values()) <= set(given_names)
    # No wrappers among their parts.
    assert all(full == short or full.endswith(f".{short}") for short, full in found.given.items())
    assert not set(found.given) - set(given_names) or found.note


@examples(few=100, many=10_000)
@given(
    st.lists(st.integers(1, 4), min_size=4, max_size=4),
    st.integers(0, 2**32 - 1),
    st.sampled_from(DTYPES),
)
def test_the_order_of_axes(shape, seed, dtype):
    """A kernel and the kernel of a linear layer over a flattened map, element by element."""
    out, channels, rows, columns = shape
    tensor = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    ours = (rows, columns, channels, out)
    pair = TensorPair(("params", "kernel"), ours, "weight", tuple(shape), (3, 2, 0, 1), ours)
    kernel = pair.from_torch(tensor)
    assert all(kernel[i, j, c, o] == tensor[o, c, i, j] for o, c, i, j in np.ndindex(*shape))
    np.testing.assert_array_equal(pair.to_torch(kernel), tensor)
    side = rows
    linear = (
        np.random.default_rng(seed).standard_normal((out, channels * side * side)).astype(dtype)
    )
    split = (side, side, channels, out)
    pair = TensorPair(
        ("params", "kernel"),
        (side * side * channels, out),
        "weight",
        linear.shape,
        (3, 2, 0, 1),
        split,
    )
    matrix = pair.from_torch(linear)
    # PyTorch flattens channel, height, width; here height, width, channel.
    places = np.ndindex(out, channels, side, side)
    assert all(
        matrix[(i * side + j) * channels + c, o] == linear[o, (c * side + i) * side + j]
        for o, c, i, j in places
    )
    np.testing.assert_array_equal(pair.to_torch(matrix), linear)


def write(path: Path, tensors: dict[str, np.ndarray], nested: bool) -> None:
    """A file in the format of its suffix; `nested`: a .pth with prefixes as nested dictionaries."""
    if path.suffix == ".npz":
        np.savez(path, **tensors)
    elif path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch = pytest.importorskip("torch")
        content = (
            {"epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}} if nested else {}
        )
        for name, tensor in tensors.items():
            is_16 = tensor.dtype == ml_dtypes.bfloat16
            theirs = torch.from_numpy(tensor.astype(np.float32) if is_16 else tensor.copy())
            *keys, rest = name.split("/") if nested else [name.replace("/", ".")]
            place = content
            for key in keys:
                place = place.setdefault(key, {})
            place[rest] = theirs.to(torch.bfloat16) if is_16 else theirs
        torch.save(content, path)


def read(path: Path):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        variables = load_pretrained(NAME, path, **FIELDS)
    return variables, [str(warning.message) for warning in said]


def file_round_trip(data, suffix, seed, dtype, prefix, nested) -> None:
    tensors = numbers(seed, dtype)
    renamed = data.draw(wrapped(sorted(tensors)))
    joined = {
        "".join(f"{key}/" for key in prefix) + renamed[name]: tensor
        for name, tensor in tensors.items()
    }
    joined = (
        joined
        if suffix == ".pth"
        else {name.replace("/", "."): tensor for name, tensor in joined.items()}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"w{suffix}"
        write(path, joined, nested)
        if dtype == ml_dtypes.bfloat16 and suffix == ".npz":
            with pytest.raises(InputError, match=r"a \.npz cannot hold bfloat16"):
                read(path)
            return
        variables, said = read(path)
    assert_variables(variables, tensors)
    assert any("names are read without" in each for each in said) == (
        bool(prefix) or list(renamed) != list(renamed.values())
    )
    assert any("rounded to float32" in each for each in said) == (dtype == np.float64)


@examples(few=10, many=1_000)
@given(
    st.data(),
    st.sampled_from([".npz", ".safetensors"]),
    st.integers(0, 2**32 - 1),
    st.sampled_from(DTYPES),
    prefixes,
)
def test_a_file_gives_the_network_s_variables(data, suffix, seed, dtype, prefix):
    file_round_trip(data, suffix, seed, dtype, prefix, nested=False)


@needs_torch
@examples(few=10, many=1_000)
@given(st.data(), st.integers(0, 2**32 - 1), st.sampled_from(DTYPES), prefixes, st.booleans())
def test_a_file_of_torch_gives_the_network_s_variables(data, seed, dtype, prefix, nested):
    file_round_trip(data, ".pth", seed, dtype, prefix, nested)


@examples(few=10, many=1_000)
@given(st.data(), st.sampled_from(["missing", "extra", "shape", "type"]), prefixes)
def test_what_is_wrong_is_named(data, kind, prefix):
    """One tensor is missing, not known, turned to (rows, columns, in, out), or quantised."""
    tensors = numbers(0)
    name = data.draw(st.sampled_from(sorted(SHAPES)))
    if kind == "missing":
        del tensors[name]
    elif kind == "extra":
        tensors["layer1.7.weight"] = np.zeros(3)
    elif kind == "shape":
        tensors[name] = np.zeros((*SHAPES[name], 1), np.float32)
    else:
        tensors[name] = tensors[name].astype(np.int8)
    about = {
        "missing": f"{name} is missing",
        "extra": "layer1.7.weight is not known",
        "shape": f"{name} is {(*SHAPES[name], 1)}, the network has {SHAPES[name]}",
        "type": f"{name} is int8",
    }
    with warnings.catch_warnings(), pytest.raises(InputError) as raised:
        warnings.simplefilter("ignore")
        from_torch(
            NAME, {".".join([*prefix, name]): tensor for name, tensor in tensors.items()}, **FIELDS
        )
    assert about[kind] in str(raised.value) and "\n" not in str(raised.value)


APPLY = jax.jit(create_model(NAME, **FIELDS).apply)


@needs_torch
@examples(few=10, many=1_000)
@given(st.integers(0, 2**32 - 1), st.sampled_from(DTYPES))
def test_logits_are_pytorch_s_after_upcasting(seed, dtype):
    import torch
    from torch.nn import functional

    tensors = numbers(seed, dtype)
    wide = {name: torch.from_numpy(tensor.astype(np.float32)) for name, tensor in tensors.items()}
    images = np.random.default_rng(seed).standard_normal((2, 8, 8, 3), dtype=np.float32)

    def unit(x, conv, norm):
        y = functional.conv2d(x, wide[f"{conv}.weight"], padding=1)
        running = wide[f"{norm}.running_mean"], wide[f"{norm}.running_var"]
        return functional.batch_norm(y, *running, wide[f"{norm}.weight"], wide[f"{norm}.bias"])

    x = functional.relu(unit(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), "conv1", "bn1"))
    y = unit(
        functional.relu(unit(x, "layer1.0.conv1", "layer1.0.bn1")), "layer1.0.conv2", "layer1.0.bn2"
    )
    theirs = functional.linear(
        functional.relu(x + y).mean((2, 3)), wide["fc.weight"], wide["fc.bias"]
    ).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = np.asarray(APPLY(from_torch(NAME, tensors, **FIELDS), images))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * max(1.0, np.abs(theirs).max()))
