"""Weights in files: bitwise round trips, and every way in which a file can be wrong."""

import http.server
import pickle
import threading
import warnings

import jax
import ml_dtypes
import numpy as np
import pytest

from deepjax import create_model
from deepjax.errors import InputError
from deepjax.models import stack_blocks
from deepjax.models.weights.convert import from_torch, load_pretrained, save_safetensors, to_torch
from tests.models.torch_reference import needs_torch
from tests.numpy_variables import numpy_variables

NAME, THIN = "resnet18", {"width": 4, "num_classes": 5}


@pytest.fixture(scope="module")
def variables():
    model = create_model(NAME, **THIN)
    return jax.tree.map(np.asarray, numpy_variables(model, (32, 32, 3), seed=3))


@pytest.fixture(scope="module")
def tensors(variables):
    return to_torch(NAME, variables, width=4)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def without_counters(variables):
    return {name: tree for name, tree in variables.items() if name != "counters"}


def test_names_and_shapes_are_torchvision_s(tensors):
    assert tensors["conv1.weight"].shape == (4, 3, 7, 7)
    assert tensors["layer2.0.downsample.1.running_var"].shape == (8,)
    assert tensors["fc.weight"].shape == (5, 32)
    assert tensors["bn1.num_batches_tracked"].dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_files_and_folders_round_trip_bitwise(tmp_path, variables, dtype):
    cast = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
    path = tmp_path / "repository" / "model.safetensors"
    save_safetensors(path, NAME, cast, width=4)
    for source in (path, str(path), path.parent):
        assert_same(without_counters(load_pretrained(NAME, source, **THIN)), cast)
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_nothing_is_overwritten_without_being_asked_for(tmp_path, variables):
    path = tmp_path / "w.safetensors"
    save_safetensors(path, NAME, variables, width=4)
    with pytest.raises(InputError, match=r"w.safetensors exists; .* overwrite=True"):
        save_safetensors(path, NAME, variables, width=4)
    save_safetensors(path, NAME, variables, overwrite=True, width=4)


def test_array_archives(tmp_path, variables, tensors):
    np.savez(tmp_path / "w.npz", **tensors)
    assert_same(without_counters(load_pretrained(NAME, tmp_path / "w.npz", **THIN)), variables)
    np.savez(tmp_path / "bad.npz", **{"conv1.weight": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(InputError, match="without pickled objects"):
        load_pretrained(NAME, tmp_path / "bad.npz", **THIN)


class _Code:
    def __reduce__(self):
        return (pytest.fail, ("code of a file was run",))


@needs_torch
def test_torch_files_are_read_without_their_code(tmp_path, variables, tensors, monkeypatch):
    import torch

    torch.save(
        {name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()},
        tmp_path / "w.pth",
    )
    assert_same(without_counters(load_pretrained(NAME, tmp_path / "w.pth", **THIN)), variables)
    torch.save({"model": _Code()}, tmp_path / "evil.pth")
    with pytest.raises(
        InputError, match=r"cannot be read with weights_only=True .* not read in any other way"
    ):
        load_pretrained(NAME, tmp_path / "evil.pth", **THIN)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(_Code()))
    with pytest.raises(InputError, match="cannot be read with weights_only=True"):
        load_pretrained(NAME, tmp_path / "plain.pth", **THIN)
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    with pytest.raises(InputError, match=r"torch is 2.9.1; .* 2.10 or newer"):
        load_pretrained(NAME, tmp_path / "w.pth", **THIN)


def test_a_damaged_file_is_named(tmp_path, variables):
    path = tmp_path / "w.safetensors"
    save_safetensors(path, NAME, variables, width=4)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"w.safetensors cannot be read as safetensors"):
        load_pretrained(NAME, path, **THIN)


@pytest.mark.parametrize("source", ["no/such/file.safetensors", "weights.h5", "nowhere.npz"])
def test_a_source_that_is_not_there_says_what_is_allowed(source):
    with pytest.raises(InputError, match=r"allowed: a .safetensors, .npz, .pth or .pt file"):
        load_pretrained(NAME, source)


def test_missing_and_unknown_tensors_are_named(tensors):
    fewer = {
        name: tensor for name, tensor in tensors.items() if name != "layer1.0.conv1.weight"
    } | {"extra": np.zeros(3)}
    with pytest.raises(InputError, match=r"layer1.0.conv1.weight is missing; extra is not known"):
        from_torch(NAME, fewer, **THIN)


def test_a_wrong_shape_names_the_tensor_and_both_shapes(tensors):
    other = tensors | {"layer1.0.conv1.weight": np.zeros((4, 4, 5, 5), np.float32)}
    with pytest.raises(
        InputError, match=r"layer1.0.conv1.weight is \(4, 4, 5, 5\), the network has \(4, 4, 3, 3\)"
    ):
        from_torch(NAME, other, **THIN)


def test_other_numbers_of_classes_need_num_classes_and_warn(tensors, variables):
    with pytest.raises(
        InputError,
        match=r"fc.weight is \(5, 32\), the network has \(1000, 32\).* give num_classes=",
    ):
        from_torch(NAME, tensors, width=4)
    with pytest.warns(
        UserWarning, match="the weights have 5 classes, num_classes is 7: head newly initialised"
    ):
        new = from_torch(NAME, tensors, width=4, num_classes=7, key=jax.random.key(1))
    assert new["params"]["head"]["kernel"].shape == (32, 7)
    del new["params"]["head"]
    assert_same(
        new["params"], {name: leaf for name, leaf in variables["params"].items() if name != "head"}
    )


def test_variables_of_another_network_are_refused(variables):
    with pytest.raises(
        InputError,
        match=r"these are not variables of resnet34: .*stage1_block3/norm1/mean \(4,\) is missing",
    ):
        to_torch("resnet34", variables, width=4)
    with pytest.raises(InputError, match="these are not variables of cifar_plain20"):
        to_torch("cifar_plain20", variables, width=4)
    with pytest.raises(InputError, match="layout of resnet18 'keras' is unknown"):
        to_torch(NAME, variables, layout="keras", width=4)
    with pytest.raises(InputError, match="scan=True: exchange the weights"):
        to_torch(NAME, variables, scan=True)


def test_errors_of_variables_name_the_remedy(variables):
    with pytest.raises(InputError, match="the collection 'params' is missing; there are head; "):
        to_torch(NAME, variables["params"], width=4)
    with pytest.raises(
        InputError, match=r"resnet18 with scan=True; give unstack_blocks\(variables\)"
    ):
        to_torch(NAME, stack_blocks(variables), width=4)


@pytest.mark.parametrize("name", ["vgg11_lrn", "vgg11_lrn_bn", "googlenet"])
def test_weights_of_another_function_are_refused(name):
    """Their shapes are those of vgg11 and torchvision's googlenet; what they compute is not."""
    with pytest.raises(InputError, match=f"{name} has no twin in torchvision or timm"):
        from_torch(name, {})


@pytest.mark.parametrize(("name", "size"), [("googlenet_tv", 32), ("inception_v3", 75)])
def test_auxiliary_heads_are_dropped_only_on_request(name, size):
    model = create_model(name, width=4, num_classes=5)
    tensors = to_torch(
        name, jax.tree.map(np.asarray, numpy_variables(model, (size, size, 3))), width=4
    )
    main = {name: tensor for name, tensor in tensors.items() if not name.lower().startswith("aux")}
    assert len(main) < len(tensors)
    with pytest.raises(InputError, match="auxiliary=False or auxiliary=True says"):
        from_torch(name, main, width=4, num_classes=5)
    # torchvision's aux_logits=False takes the whole of its weights too
    for given in (
        main,
        tensors,
    ):
        back = to_torch(
            name, from_torch(name, given, width=4, num_classes=5, auxiliary=False), width=4
        )
        assert_same(back, main)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("cifar_resnet20", {"width": 4}),
        ("resnet18d", {"width": 4}),
        ("resnetv2_18", {"width": 4, "stem_width": 4}),
        ("vgg11_bn", {"width": 2}),
        ("googlenet_tv", {"width": 2}),
        ("nf_resnet50", {"width": 4}),
    ],
)
def test_networks_for_grey_images_are_exchanged_too(name, fields):
    variables = jax.tree.map(np.asarray, numpy_variables(create_model(name, **fields), (32, 32, 1)))
    tensors = to_torch(name, variables, **fields)
    assert any(tensor.ndim == 4 and tensor.shape[1] == 1 for tensor in tensors.values())
    assert_same(without_counters(from_torch(name, tensors, **fields)), variables)


def test_a_repository_is_downloaded_by_the_hub_s_own_client(tmp_path, variables, monkeypatch):
    """The real client against a folder served on loopback, in the form of the hub's answers."""
    from huggingface_hub import constants

    save_safetensors(tmp_path / "model.safetensors", NAME, variables, width=4)
    content, commit = (tmp_path / "model.safetensors").read_bytes(), "0" * 40
    asked = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append((self.command, self.path))
            found = self.path == "/deepjax/thin/resolve/main/model.safetensors"
            self.send_response(200 if found else 404)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{"1" * 40}"')
            if not found:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(content) if found else 0))
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = load_pretrained(NAME, "deepjax/thin", **THIN)
            downloads = len(asked)
            again = load_pretrained(NAME, "hf-hub:deepjax/thin", **THIN)
            with pytest.raises(
                InputError,
                match=r"'deepjax/none' is no file, and as a repository it gives no model.safet",
            ):
                load_pretrained(NAME, "deepjax/none", **THIN)
        server.shutdown()
    assert_same(without_counters(got), variables)
    assert_same(got, again)
    assert ("GET", "/deepjax/thin/resolve/main/model.safetensors") in asked[:downloads]
    # from the cache
    assert [
        request for request in asked[downloads:] if request[0] == "GET" and "thin" in request[1]
    ] == []


def test_no_memory_is_shared(tensors):
    """A network of PyTorch changes its statistics in place; ours must not change with it."""
    own = {name: tensor.copy() for name, tensor in tensors.items()}
    variables = from_torch(NAME, own, **THIN)
    before = jax.tree.map(np.copy, variables)
    for tensor in own.values():
        tensor += 1
    assert_same(variables, before)
