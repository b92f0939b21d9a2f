"""SECURITY.md by rows: hostile files give the documented error, run no code, write nowhere."""

import ast
import io
import json
import os
import pickle
import runpy
import shutil
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.core.download import extractor
from tensorflow_datasets.proto import tf_example_pb2

from deepjax import create_model, model_info
from deepjax.data import dataset_info, list_datasets, load_split
from deepjax.data.embedded import EMBEDDED
from deepjax.data.prepare.prepare import prepare_dataset
from deepjax.errors import InputError
from deepjax.models.weights import files
from deepjax.models.weights.convert import load_pretrained
from deepjax.models.weights.files import read_tensors
from deepjax.study.arms.arm import TrainedArm
from deepjax.study.runner import run_study
from deepjax.study.study import Options, trained_arms
from deepjax.training import TrainConfig
from deepjax.training.checkpoint.inspect import digest
from deepjax.training.checkpoint.manager import Checkpoints
from deepjax.training.run_directory.config_file import init_run_dir
from experiments import degradation
from tests.data.image.test_fixed_size import png_header
from tests.models.torch_reference import needs_torch

ROOT = Path(__file__).parents[1]
BUILT_IN = list_datasets()  # before other tests of this process register more
OUTSIDE = [
    "../x",
    "..",
    "/etc/passwd",
    "a/../../x",
    "cifar_resnet20/../../x",
    "..\\x",
    "",
    "x\0y",
    "cifar_resnet20\n",
    "os.system",
]
DEEP = "[" * 100_000 + "]" * 100_000


class _Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def payload(tmp_path):
    """An object whose unpickling leaves a trace; there must be none at the end."""
    trace = tmp_path / "code-was-run"
    pickle.loads(pickle.dumps(_Payload(trace))).close()  # noqa: S301  # the payload works
    trace.unlink()
    yield _Payload(trace)
    assert not trace.exists()


# No code from files, and names only from closed tables.

UNPICKLERS = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "joblib",
    "jsonpickle",
}
PACKAGE = sorted([*(ROOT / "deepjax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])


def is_fixed(name: ast.expr) -> bool:
    """A module's name that the code gives, or that lies in deepjax or experiments in any case."""
    first = name.values[0] if isinstance(name, ast.JoinedStr) else name
    return isinstance(first, ast.Constant) and (
        name is first or str(first.value).startswith(("deepjax.", "experiments."))
    )


def suspects(tree: ast.AST) -> list[str]:
    """Imports of unpicklers, and calls that turn text into code or modules."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
            found += [name for name in names if name.split(".")[0] in UNPICKLERS]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            by_text = name in ("importlib.import_module", "__import__") and not is_fixed(
                node.args[0]
            )
            allowing = any(
                k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords
            )
            unsafe = name == "torch.load" and not any(
                k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords
            )
            if name in ("eval", "exec", "compile") or by_text or allowing or unsafe:
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles_or_makes_code_of_text(path):
    """`import_network` imports what the command line or Python code names; see the next test."""
    named = ["importlib.import_module(module_name)"] * (path.name == "custom_network.py")
    assert suspects(ast.parse(path.read_text())) == named


def test_only_a_command_line_or_python_code_names_what_is_imported():
    """No reader of run directories or checkpoints calls `import_network`."""
    calling = [path for path in PACKAGE if "import_network(" in path.read_text()]
    assert sorted(str(path.relative_to(ROOT)) for path in calling) == [
        "deepjax/cli/average.py",
        "deepjax/cli/evaluate.py",
        "deepjax/cli/evaluate_table.py",
        "deepjax/cli/export.py",
        "deepjax/cli/predict.py",
        "deepjax/cli/report.py",
        "deepjax/cli/train.py",
        "deepjax/training/custom_network.py",
        "deepjax/training/network.py",  # in a message
    ]


def test_what_would_be_found():
    text = (
        "import pickle\nfrom dill import load\neval(x)\nimportlib.import_module(x)\n"
        "np.load(x, allow_pickle=True)\ntorch.load(x)"
    )
    assert len(suspects(ast.parse(text))) == 6


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_outside_the_tables_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(model="cifar_resnet20")
    for attempt in (
        lambda: create_model(name),
        lambda: model_info(name),
        lambda: load_pretrained(name, "w.npz"),
        lambda: dataset_info(name),
        lambda: prepare_dataset(name, data_dir=str(tmp_path / "data")),
        lambda: TrainConfig(model=name),
        lambda: TrainConfig(model="cifar_resnet20", dataset=name),
        lambda: run_study(degradation.STUDY, Options(preset=name, output_dir=tmp_path / "out")),
        lambda: TrainedArm(name, config, 0.1, (0,), "", {}),
    ):
        # a dot may stand inside an arm's name
        if name != "os.system" or attempt.__code__.co_names[0] != "TrainedArm":
            with pytest.raises(InputError):
                attempt()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in OUTSIDE if name])
def test_an_arm_outside_the_study_is_refused_before_anything_is_written(name, tmp_path):
    with pytest.raises(InputError, match=r"arm .* is unknown"):
        run_study(degradation.STUDY, Options(arm=name, output_dir=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_every_run_of_a_study_lies_in_its_folder(tmp_path):
    arms = trained_arms(degradation.STUDY, degradation.STUDY.presets["quick"], {})
    folders = [folder for arm in arms.values() for folder in arm.run_dirs(tmp_path)]
    assert all(folder.resolve().is_relative_to(tmp_path / "runs") for folder in folders)


# Weights.


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".pt"])
def test_a_pickle_under_any_name_is_not_run(suffix, payload, tmp_path):
    path = tmp_path / f"evil{suffix}"
    path.write_bytes(pickle.dumps(payload))
    with pytest.raises(InputError, match="evil"):
        load_pretrained("cifar_resnet20", path)


def test_pickled_arrays_are_not_run(payload, tmp_path):
    np.savez(tmp_path / "evil.npz", **{"conv1.weight": np.array([payload], dtype=object)})
    with pytest.raises(InputError, match="without pickled objects"):
        load_pretrained("resnet18", tmp_path / "evil.npz")


@needs_torch
def test_torch_files_are_not_run(payload, tmp_path):
    import torch

    path = tmp_path / "evil.pth"
    for content in (
        {"model": payload},
        payload,
        [payload],
        {"conv1.weight": torch.zeros(3), "x": payload},
    ):
        for new_format in (True, False):
            torch.save(content, path, _use_new_zipfile_serialization=new_format)
            with pytest.raises(
                InputError,
                match=r"cannot be read with weights_only=True .* not read in any other way",
            ):
                load_pretrained("resnet18", path)


@needs_torch
def test_torch_files_of_other_things_are_refused(tmp_path):
    import torch

    path = tmp_path / "odd.pt"
    sparse = torch.zeros(3, 3).to_sparse()
    for content in (
        torch.zeros(3),
        [torch.zeros(3)],
        7,
        None,
        {"a": 1},
        {1: torch.zeros(3)},
        {"model": {"a": "b"}},
        {"a": sparse},
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=r"odd.pt holds"):
            load_pretrained("resnet18", path)
    torch.save({"conv1.weight": torch.nn.Parameter(torch.ones(2))}, path)
    np.testing.assert_array_equal(read_tensors(path)["conv1.weight"], [1, 1])


def npy_header(shape: str) -> bytes:
    """A .npy file without data whose header claims that shape (NumPy format 1.0)."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "shape",
    [
        "(1099511627776,)",
        "(4611686018427387904, 8)",
        "(-1,)",
        "(3,)",
        "__import__('os')",
        "(" * 5000,
    ],
)
def test_array_headers_that_lie(shape, tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.npz", "w") as archive:
        archive.writestr("conv1.weight.npy", npy_header(shape))
    with pytest.raises(InputError, match=r"evil\.npz cannot be read"):
        read_tensors(tmp_path / "evil.npz")


def test_an_archive_that_unpacks_to_too_much(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", zeros=np.zeros(10**6, np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 5000
    monkeypatch.setattr(files, "MAX_UNPACKED_BYTES", 10**6)
    with pytest.raises(
        InputError, match=r"unpacked size of .*bomb.npz is 1000128; allowed: up to 1000000 bytes"
    ):
        read_tensors(tmp_path / "bomb.npz")


@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_damaged_archives(place, tmp_path):
    path = tmp_path / "w.npz"
    np.savez_compressed(path, a=np.random.default_rng(0).integers(0, 256, 5000, np.uint8))
    data = path.read_bytes()
    path.write_bytes(data[: int(place * len(data))])
    with pytest.raises(InputError, match=r"w\.npz cannot be read"):
        read_tensors(path)
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes(8) + data[middle + 8 :])
    with pytest.raises(InputError, match=r"w\.npz cannot be read"):
        read_tensors(path)


def safetensors(header: str, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header.encode() + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        safetensors("{}", length=2**63),
        safetensors(DEEP),
        safetensors(
            '{"a": {"dtype": "F32", "shape": [1099511627776], "data_offsets": [0, 4398046511104]}}',
            bytes(4),
        ),
        safetensors('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', bytes(4)),
        safetensors('{"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 8]}}', bytes(8)),
        safetensors('{"__class__": "os.system"}'),
    ],
)
def test_hostile_safetensors(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        load_pretrained("resnet18", tmp_path)


@pytest.mark.parametrize(
    "name", ["../x", "../..", "/x/y", "hf-hub:../x", "a/b/../c", "file:///etc/passwd", "x\0/y"]
)
def test_sources_that_are_no_file_and_no_repository(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"is not there|there is no such file|is no file|URLs are not|control char"
    ):
        load_pretrained("resnet18", name)


# Configurations and checkpoints.


@pytest.mark.parametrize(
    "text", [DEEP, '{"a":' * 100_000, "[]", "null", "1" * 5000, "\xff\xfe", '{"model": NaN', ""]
)
def test_hostile_configurations(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"config\.json cannot be read as a configuration"):
        init_run_dir(tmp_path, TrainConfig(model="cifar_resnet20"))


@pytest.mark.parametrize(
    "stored",
    [{"__class__": "os.system"}, {"model": {"_target_": "os.system"}}, {"model": "os.system"}],
)
def test_a_configuration_is_compared_and_never_run(stored, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match="holds a run of another configuration"):
        init_run_dir(tmp_path, TrainConfig(model="cifar_resnet20"))


@pytest.fixture
def precious(tmp_path) -> Path:
    """A folder that must stay as it is."""
    folder = tmp_path / "precious"
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "kept").write_text("kept")
    return folder


@pytest.mark.parametrize("name", ["7.partial", "7.damaged", "7.orbax-checkpoint-tmp-1", "7"])
def test_links_among_checkpoints_are_not_followed_by_what_clears_up(name, precious, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / name).symlink_to(precious)
    try:
        Checkpoints(tmp_path / "run").close()
    except InputError as error:
        assert str(folder) in str(error)
    assert (precious / "state" / "kept").read_text() == "kept"


def test_checkpoints_that_are_none(precious, payload, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "7").symlink_to(precious)
    with pytest.raises(InputError, match=r"checkpoint .*/7 "):
        digest(tmp_path / "run")
    (folder / "8" / "state").mkdir(parents=True)
    for name in (
        "../manifest.json",
        "_METADATA",
        "_CHECKPOINT_METADATA",
        "manifest.ocdbt",
        "_sharding",
    ):
        (folder / "8" / "state" / name).write_bytes(pickle.dumps(payload))
    with pytest.raises(InputError, match=r"checkpoint .*/8 "):
        digest(tmp_path / "run")


# Data sets.


@pytest.fixture
def copied_digits(tmp_path, monkeypatch) -> Path:
    """The folder of a copy of the digits, which is then read in their place."""
    copy = shutil.copytree(EMBEDDED["digits"], tmp_path / "digits" / "1.0.0")
    monkeypatch.setitem(EMBEDDED, "digits", copy)
    return copy


def replace_image(folder: Path, index: int, image: bytes) -> None:
    """Another image in one of the test records."""
    path = next(folder.glob("digits-test.array_record*"))
    reader = ArrayRecordReader(str(path))
    records = reader.read_all()
    reader.close()
    example = tf_example_pb2.Example.FromString(records[index])
    example.features.feature["image"].bytes_list.value[0] = image
    records[index] = example.SerializeToString()
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (png_header(65_535, 65_535), "decompression bomb"),
        (png_header(12_000, 12_000), r"image has shape \(12000, 12000, 1\), expected \(8, 8, 1\)"),
        (png_header(8, 9), r"image has shape \(9, 8, 1\)"),
        (b"", "is corrupt"),
        (b"GIF89a" + bytes(100), "is corrupt"),
        (pickle.dumps([1]), "is corrupt"),
    ],
)
def test_a_hostile_image_names_data_set_split_and_record(image, said, copied_digits):
    replace_image(copied_digits, 5, image)
    with pytest.raises(InputError, match=rf"dataset 'digits', split 'test', record 5.*{said}"):
        load_split(dataset_info("digits"), "test")


def test_metadata_of_a_prepared_data_set_names_no_code(copied_digits, tmp_path, monkeypatch):
    """Features of catalogued data sets come from tfds's code, not from features.json."""
    (tmp_path / "evil_features.py").write_text("import os\nos.environ['EVIL'] = '1'\n")
    monkeypatch.syspath_prepend(tmp_path)
    version = str(tfds.builder("fashion_mnist", data_dir=tmp_path).version)
    folder = shutil.copytree(copied_digits, tmp_path / "data" / "fashion_mnist" / version)
    text = (
        (folder / "dataset_info.json")
        .read_text()
        .replace("digits", "fashion_mnist")
        .replace('"1.0.0"', f'"{version}"')
    )
    (folder / "dataset_info.json").write_text(text)
    features = (folder / "features.json").read_text()
    (folder / "features.json").write_text(
        features.replace("tensorflow_datasets.core.features.image_feature", "evil_features")
    )
    with pytest.raises(InputError, match=r"fashion_mnist.* holds 360 records, expected 10000"):
        load_split(dataset_info("fashion_mnist"), "test", str(tmp_path / "data"))
    assert "evil_features" not in sys.modules and "EVIL" not in os.environ
    with pytest.raises(ValueError, match="evil_features"):
        tfds.builder_from_directory(folder)
    assert os.environ.pop("EVIL") == "1"  # the trap works


@pytest.mark.parametrize(
    "text",
    ["", "[]", DEEP, '{"splits": [{"name": "test", "shardLengths": ["9223372036854775807"]}]}'],
)
def test_hostile_metadata_of_a_data_set(text, copied_digits):
    (copied_digits / "dataset_info.json").write_text(text)
    with pytest.raises(InputError, match="dataset 'digits', split 'test'"):
        load_split(dataset_info("digits"), "test")


def test_nothing_here_unpacks_archives():
    """Tfds does it; see the next test. `data/own/tar.py` reads members in place."""
    words = ("extractall", "unpack_archive", ".extract(")
    assert [path for path in PACKAGE if any(word in path.read_text() for word in words)] == []


def test_archives_stay_in_their_folder_in_the_hands_of_tfds(tmp_path):
    """Of a hostile archive tfds takes what lies inside, and makes neither links nor devices."""
    tar, zipped = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in ("../x", "/etc/x", "a/../../x", "good"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        for name, kind in (
            ("link", tarfile.SYMTYPE),
            ("hard", tarfile.LNKTYPE),
            ("device", tarfile.CHRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    with zipfile.ZipFile(zipped, "w") as archive:
        for name in ("../x", "/etc/x", "a/../../x", "good"):
            archive.writestr(name, "")
    tar.seek(0)
    assert [path for path, _ in extractor.iter_tar(tar)] == ["good"]
    assert [path for path, _ in extractor.iter_zip(zipped)] == ["good"]
    checksums = {
        name: tfds.builder(name, data_dir=tmp_path).url_infos
        for name in BUILT_IN
        if name not in EMBEDDED
    }
    assert all(checksums.values())  # without them preparing would refuse


# Supply chain.


def test_the_audit_never_calls_unanswered_questions_clean():
    judge = runpy.run_path(str(ROOT / ".ci" / "audit.py"))["judge"]
    good, bad = (
        {"name": "a", "version": "1", "vulns": []},
        {"name": "b", "skip_reason": "not found"},
    )
    hit = {"name": "c", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}

    def code(*packages: dict) -> int:
        return judge(json.dumps({"dependencies": packages}), "")[0]

    assert (code(good), code(good, bad), code(bad), code(hit), code(hit, bad)) == (0, 3, 3, 1, 1)
    code_of_failure, lines = judge("", "Traceback\nConnectionError: no route")
    assert code_of_failure == 3 and lines == [
        "audit: nothing was looked up: pip-audit or its vulnerability service failed "
        "(ConnectionError: no route)"
    ]
