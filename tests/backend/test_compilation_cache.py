"""The compilation cache: used by later processes, configurable, and robust to corrupt files."""

import json
import os
import subprocess
import sys

import pytest

from deepjax.backend.compilation_cache import enable_compilation_cache, evict_oldest

PROGRAM = """
import json, jax, jax.numpy as jnp
from jax import monitoring
from deepjax.backend import compilation_cache
compilation_cache.MIN_COMPILE_SECONDS = 0.0
folder = compilation_cache.enable_compilation_cache()
heard = []
monitoring.register_event_listener(lambda event, **_: heard.append(event))
value = jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.arange(12.0).reshape(3, 4))
hits = sum(event == "/jax/compilation_cache/cache_hits" for event in heard)
print(json.dumps({"folder": str(folder), "hits": hits, "value": value.tolist()}))
"""


def run(folder, **environment):
    plain = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    variables = plain | {"XDG_CACHE_HOME": str(folder), "JAX_PLATFORMS": "cpu"} | environment
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=variables, check=True, capture_output=True, text=True
    )
    return json.loads(ended.stdout)


@pytest.mark.system
def test_a_second_process_compiles_nothing_and_gives_bitwise_identical_results(tmp_path):
    first, second = run(tmp_path), run(tmp_path)
    assert first["hits"] == 0
    assert second["hits"] > 0
    assert second["value"] == first["value"]
    assert first["folder"].startswith(str(tmp_path / "deepjax" / "compiled"))


@pytest.mark.system
def test_a_corrupt_file_is_compiled_again(tmp_path):
    first = run(tmp_path)
    for path in tmp_path.rglob("*-cache"):
        path.write_bytes(path.read_bytes()[:20])
    assert run(tmp_path)["value"] == first["value"]


@pytest.mark.system
@pytest.mark.parametrize(
    "settings", [{"JAX_COMPILATION_CACHE_DIR": "{}/own"}, {"JAX_ENABLE_COMPILATION_CACHE": "false"}]
)
def test_settings_of_jax_take_precedence(tmp_path, settings):
    assert (
        run(tmp_path, **{name: value.format(tmp_path) for name, value in settings.items()})[
            "folder"
        ]
        == "None"
    )
    assert not (tmp_path / "deepjax").exists()


def test_no_cache_where_the_folder_cannot_be_created(tmp_path):
    (tmp_path / "deepjax").write_text("a file in the way")
    assert run(tmp_path)["folder"] == "None"


def test_the_oldest_files_are_deleted_first(tmp_path):
    for age, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    evict_oldest(tmp_path, max_bytes=25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_the_test_suite_sets_another_folder():
    assert enable_compilation_cache() is None
