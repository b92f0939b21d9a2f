"""How a step is partitioned: FSDP and pmap compute what jit computes, or say what they cannot."""

import dataclasses
import os
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from deepjax.data.augment.mixup import mixup_or_cutmix
from deepjax.errors import InputError
from deepjax.training import RunOptions, TrainConfig, compile_training, memory
from deepjax.training.config import replace_options
from deepjax.training.distributed.sharding import (
    SMALLEST_SHARD,
    Partitioner,
    batch_sharding,
    make_mesh,
)
from deepjax.training.memory import StepCost, check_fits, memory_hint
from tests.faults import spread as faults
from tests.faults.spread import Thin, apart, largest_apart, mesh_of, path_of

GIB = 2**30


@pytest.mark.eight_devices
def test_fsdp_shards_the_longest_axis_that_divides():
    sharded = Partitioner(make_mesh(), fsdp=True)
    shapes = {
        "conv": (3, 3, 64, 128),
        "odd": (3, 3, 64, 100),
        "bias": (128,),
        "prime": (101, 103),
        "last": (128, 128),
    }
    got = {
        name: sharded.state_shardings(jax.ShapeDtypeStruct(shape, np.float32)).spec
        for name, shape in shapes.items()
    }
    assert got == {
        "conv": PartitionSpec(None, None, None, "data"),
        "odd": PartitionSpec(None, None, "data"),
        "bias": PartitionSpec(),  # below the size that is worth it
        "prime": PartitionSpec(),
        "last": PartitionSpec(None, "data"),
    }
    assert SMALLEST_SHARD > 128


@dataclasses.dataclass(frozen=True)
class Chip:
    """What jax.experimental.mesh_utils reads of a device; only TPUs have several slices."""

    id: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "chip"


def test_several_slices_are_an_axis_of_their_own():
    chips = [Chip(id=i, slice_index=i % 2) for i in range(8)]
    mesh = make_mesh(chips)
    assert dict(mesh.shape) == {"slice": 2, "data": 4}
    assert [[chip.id for chip in row] for row in mesh.devices] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert batch_sharding(mesh).spec == PartitionSpec(("slice", "data"))
    sharded = Partitioner(mesh, fsdp=True)
    shape = jax.ShapeDtypeStruct((6, 100, 100), np.float32)  # divides by 4, and not by 8
    assert sharded.state_shardings(shape).spec == PartitionSpec(None, None, "data")


@pytest.fixture
def eight_layers(monkeypatch):
    """`make faults` takes networks of five kinds."""
    monkeypatch.setitem(faults.NETWORKS, "cifar_resnet20", {"width": 4, "stages": (1, 1, 1)})


SLICES = Mesh(
    np.asarray(jax.devices()).reshape(2, -1), ("slice", "data"), axis_types=(AxisType.Auto,) * 2
)
WAYS = {
    "pmap": Partitioner(make_mesh(), "pmap"),
    "two devices": Partitioner(mesh_of(2)),
    "fsdp": Partitioner(make_mesh(), fsdp=True),
    "two slices": Partitioner(SLICES),
    "fsdp in two slices": Partitioner(SLICES, fsdp=True),
}


@pytest.mark.eight_devices
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_spread_computes_the_same_step(way, monkeypatch, eight_layers):
    monkeypatch.setattr("deepjax.training.distributed.sharding.SMALLEST_SHARD", 16)
    mixed = replace_options(Thin.config, mixup=0.5, cutmix=1.0, label_smoothing=0.1)
    jit = Thin("cifar_resnet20", Partitioner(mesh_of(8)), mixed)
    path = path_of(jit, jit.start(), 2)
    other = Thin("cifar_resnet20", way, mixed)
    state, step = other.start()
    if way.fsdp:
        assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))
    assert largest_apart(other, step, path) <= 1e-5
    assert apart(path[1], path[0]) > 1e-5  # a step moves by more than the tolerance


@pytest.mark.eight_devices
def test_a_step_without_the_mean_over_devices_would_be_noticed(monkeypatch, eight_layers):
    """The negative control of the test above."""
    jit = Thin("cifar_resnet20", Partitioner(mesh_of(8)))
    path = path_of(jit, jit.start(), 1)
    monkeypatch.setattr("deepjax.training.step.step._over_devices", lambda axis, *rest: rest)
    monkeypatch.setattr("deepjax.models.layers.norms._is_in_pmap", lambda axis: False)
    other = Thin("cifar_resnet20", Partitioner(make_mesh(), "pmap"))
    assert largest_apart(other, other.start()[1], path) > 1e-5


@pytest.mark.eight_devices
@pytest.mark.slow
def test_a_device_s_share_is_the_same_under_jit_and_pmap(monkeypatch):
    """bn_scope="replica": not the statistics of the whole batch, but equal in both strategies."""
    fields = {"width": 4, "stages": (1, 1, 1)}
    monkeypatch.setitem(faults.NETWORKS, "cifar_resnet20", fields | {"bn_scope": "replica"})
    jit, pmap = (
        Thin("cifar_resnet20", Partitioner(make_mesh(), strategy)) for strategy in ("jit", "pmap")
    )
    with jax.set_mesh(jit.spread.mesh):
        path = path_of(jit, jit.start(), 2)
    assert largest_apart(pmap, pmap.start()[1], path) <= 1e-5
    monkeypatch.setitem(faults.NETWORKS, "cifar_resnet20", fields)
    assert largest_apart(pmap, pmap.start()[1], path) > 1e-4


@pytest.mark.eight_devices
@pytest.mark.parametrize(
    "fields", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}], ids=str
)
def test_images_are_mixed_with_the_same_partners_on_all_devices_of_pmap(fields):
    """By an image's place in the whole batch, whatever device it is on, and in one share."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((16, 8, 8, 1)).astype(np.float32)
    targets = np.eye(16, dtype=np.float32)
    strengths = (fields.get("mixup", 0.0), fields.get("cutmix", 0.0))
    whole_of = jax.jit(lambda i, t, key: mixup_or_cutmix(key, i, t, *strengths))
    shares_of = jax.pmap(
        lambda i, t, key: mixup_or_cutmix(key, i, t, *strengths, axis="data"),
        "data",
        in_axes=(0, 0, None),
    )
    shares = [leaf.reshape(8, 2, *leaf.shape[1:]) for leaf in (images, targets)]
    for seed in range(3):
        whole, mixed = (
            whole_of(images, targets, jax.random.key(seed)),
            shares_of(*shares, jax.random.key(seed)),
        )
        for one, other in zip(mixed, whole, strict=True):
            np.testing.assert_allclose(
                np.asarray(one).reshape(other.shape), other, rtol=1e-6, atol=1e-6
            )


def test_pmap_says_what_it_cannot_do():
    with pytest.raises(InputError, match=r"strategy is 'pmap'; .* drop --fsdp"):
        Partitioner(make_mesh(), "pmap", fsdp=True)
    with pytest.raises(InputError, match="strategy is 'xmap'"):
        Partitioner(make_mesh(), "xmap")  # pyright: ignore[reportArgumentType]


def test_a_step_that_does_not_fit_is_refused_with_advice(monkeypatch):
    with pytest.raises(
        InputError, match=r"takes 3.00 GiB .* has 2.00 GiB; try a smaller batch_size than 64, or"
    ):
        check_fits(StepCost(3 * GIB, 2 * GIB, 1e9, 1.0), memory_hint(64, 1, "none"))
    check_fits(StepCost(3 * GIB, None, 1e9, 1.0), memory_hint(64, 1, "none"))
    check_fits(StepCost(3 * GIB, 4 * GIB, 1e9, 1.0), memory_hint(64, 1, "none"))
    monkeypatch.setattr(memory, "device_memory", lambda: 1000)
    with pytest.raises(InputError, match="remat='convolutions' or 'blocks'"):
        compile_training(TrainConfig(model="cifar_plain20", width=2, batch_size=16), RunOptions())


def test_what_the_compiler_finds_too_large_is_refused_with_the_same_advice():
    """XLA:GPU's words, of jax 0.10."""
    said = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99000000000 bytes."
    step = mock.Mock()
    step.lower.return_value.compile.side_effect = jax.errors.JaxRuntimeError(said)
    with pytest.raises(
        InputError,
        match=r"RESOURCE_EXHAUSTED.*; try a smaller batch_size than 64, "
        r"or grad_accum_steps above 1",
    ):
        memory.compile_step(step, advice=memory.memory_hint(64, 1, "none"))
    step.lower.return_value.compile.side_effect = jax.errors.JaxRuntimeError(
        "INTERNAL: ptxas failed"
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="ptxas"):
        memory.compile_step(step)


def test_the_memory_of_a_container_is_its_own(tmp_path):
    """The files of cgroup version 2 (Linux, admin-guide/cgroup-v2.rst): "max" is no limit."""
    (tmp_path / "own").write_text("1:cpu:/x\n0::/job/step\n")
    for folder, limit in (("job/step", "max"), ("job", "1048576"), ("", "4194304")):
        (tmp_path / "root" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / folder / "memory.max").write_text(f"{limit}\n")
    assert memory._cgroup_limits(tmp_path / "root", tmp_path / "own") == [2**20, 2**22]
    assert memory._cgroup_limits(tmp_path / "root", tmp_path / "absent") == []
    assert 0 < memory._host_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_cost_is_told_in_a_line():
    told = str(StepCost(3 * GIB, 80 * GIB, 5e9, 2.0))
    assert (
        told == "compiled in 2.0 s; a step takes 3.00 GiB of 80.00 GiB of memory, 5 GFLOPs a device"
    )
