"""Files of named arrays: safetensors, .npz, .pth without pickled code, hub repositories."""

import importlib
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from deepjax.errors import InputError, require
from deepjax.paths import user_path

Tensors = dict[str, np.ndarray]

WEIGHTS_FILE = "model.safetensors"
# Of an unpacked array archive: 14 times those of vgg19_bn, the largest network here.
MAX_UNPACKED_BYTES = 2**33
# torch.load(weights_only=True) of older versions could be made to run code
MIN_TORCH_VERSION = (
    2,
    10,
)
MAX_NESTING = 4  # dictionaries within dictionaries of a .pth


def read_tensors(source: str | Path, revision: str | None = None) -> Tensors:
    """Arrays by name from a .safetensors, .npz, .pth or .pt file, a folder, or a repository.

    A folder must hold model.safetensors; a repository is "owner/name". The keys of nested
    dictionaries in a .pth are joined by "."; what is no tensor there is dropped. Raises InputError
    when there is no such thing, or it cannot be read; never unpickles.
    """
    path = weights_file(source, revision)
    return _READERS[path.suffix](path)


def weights_file(source: str | Path, revision: str | None = None, field: str = "source") -> Path:
    """The file of a source of `read_tensors`, downloaded if it is a repository.

    field: the option's name in messages. Raises InputError when there is no such file.
    """
    require(isinstance(source, str | Path), field, source, SOURCES)
    path = user_path(source, field)
    if path.is_dir():
        path = path / WEIGHTS_FILE
    elif not path.exists():
        name = re.fullmatch(r"(?:hf-hub:|hf_hub:)?([\w.-]+/[\w.-]+)", str(source))
        if name is None or path.suffix in _READERS:
            raise InputError(
                f"{field} is {str(source)!r}; allowed: {SOURCES}; there is no such file"
            )
        path = _download(name[1], revision)
    if path.suffix not in _READERS:
        raise InputError(f"{field} is {str(source)!r}; allowed: {SOURCES}")
    if not path.is_file():
        raise InputError(f"{path} is not there; allowed: {SOURCES}")
    return path


def write_safetensors(
    path: Path, tensors: Tensors, metadata: Mapping[str, str], overwrite: bool
) -> None:
    """Write a file, complete or absent.

    Raises InputError when it exists (unless `overwrite`) or cannot be written.
    """
    from safetensors.numpy import save_file

    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; choose another name, or set overwrite=True")
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, dict(metadata))
        partial.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another path"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _read_safetensors(path: Path) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(
            f"{path} cannot be read as safetensors ({error}); fetch it again"
        ) from error


def _read_npz(path: Path) -> Tensors:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        require(
            size <= MAX_UNPACKED_BYTES,
            f"unpacked size of {path}",
            size,
            f"up to {MAX_UNPACKED_BYTES} bytes",
        )
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except InputError:
        raise
    # NumPy, zipfile and zlib each raise their own kinds; a false header ends in MemoryError
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as an array archive without pickled objects ({_line(error)})"
        ) from error


def _read_torch(path: Path) -> Tensors:
    try:
        # not a dependency, so the type checker must not look for it
        torch: Any = importlib.import_module("torch")
    except ImportError as error:
        raise InputError(
            f"{path} needs torch 2.10 or newer to be read; or save it as safetensors where torch is"
        ) from error
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < MIN_TORCH_VERSION:
        raise InputError(
            f"torch is {torch.__version__}; {path} is only read by 2.10 or newer, whose "
            "weights_only=True runs no code"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # an unpickler that refuses, a zip that is corrupt: each library version has its own
    except Exception as error:
        reason = _line(error)
        raise InputError(
            f"{path} cannot be read with weights_only=True ({reason}); it is not read in any other "
            "way: save the state_dict alone"
        ) from error
    tensors = dict(_by_name(content, torch))
    if not tensors:
        raise InputError(f"{path} holds no tensors by name; save a state_dict")
    try:
        return {name: _to_numpy(tensor.detach(), torch) for name, tensor in tensors.items()}
    except (TypeError, RuntimeError) as error:  # sparse, quantised and 8-bit floating tensors
        raise InputError(
            f"{path} holds tensors that NumPy does not know ({_line(error)}); save them dense, in "
            "float32"
        ) from error


def _by_name(
    content: Any, torch: Any, before: str = "", depth: int = 0
) -> Iterator[tuple[str, Any]]:
    """The tensors of nested dictionaries, to a limited depth, as one may contain itself."""
    if isinstance(content, torch.Tensor) and before:
        yield before, content
    elif isinstance(content, dict) and depth <= MAX_NESTING:
        for key, value in content.items():
            if isinstance(key, str):  # an optimizer's state has numbers as keys
                yield from _by_name(value, torch, f"{before}.{key}" if before else key, depth + 1)


def _to_numpy(tensor: Any, torch: Any) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:  # NumPy has no such type of its own
        return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
    return tensor.numpy()


def _line(error: Exception) -> str:
    # PyTorch's messages are coloured
    text = re.sub(r"\x1b\[[0-9;]*m", "", f"{type(error).__name__}: {error}")
    return text.splitlines()[0][:200]


def _download(repository: str, revision: str | None) -> Path:
    """The weights file of a repository, from the user's cache or the hub."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError as error:
        raise InputError(
            f"{repository!r} is no file; a repository needs the extra: pip install 'deepjax[hub]'"
        ) from error
    try:
        return Path(hf_hub_download(repository, WEIGHTS_FILE, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{repository!r} is no file, and as a repository it gives no {WEIGHTS_FILE} ({reason})"
        ) from error


_READERS = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pt": _read_torch,
}
SOURCES = (
    "a .safetensors, .npz, .pth or .pt file, a folder with model.safetensors, or a repository "
    "'owner/name'"
)
