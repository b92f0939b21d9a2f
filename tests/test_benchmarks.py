"""What the benchmarks compute from their numbers; their pages are up to date."""

import importlib
from pathlib import Path

import pytest

from deepjax import command_line
from deepjax.errors import InputError

FOLDER = Path(__file__).parents[1] / "experiments" / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """A script of the folder, whose neighbours it imports by their names."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.mark.parametrize("name", ["performance", "scale"])
def test_the_page_is_current(script, name):
    module = script(name)
    page = module.RESULTS / f"{name}.md"
    assert page.read_text() == module.render(module.RESULTS), (
        f"run: python experiments/benchmarks/{name}.py --render-only"
    )


def test_every_part_of_the_page_takes_its_command_line(script):
    performance = script("performance")
    for name, part in performance.PARTS.items():
        given = command_line.parse(
            part.module.Options, performance.arguments(name, Path("results"))
        )
        assert given.out == Path("results", "performance", f"{name}.json")


@pytest.mark.system
def test_the_loop_is_timed_on_random_images(script):
    """Forty steps of the smallest network: the numbers mean nothing, but each row is there."""
    loop = script("loop")
    small = ["--model", "cifar_plain20", "--width", "2", "--dataset", "digits"]
    options = command_line.parse(loop.Options, [*small, "--batch-size", "16", "--steps", "20"])
    config = loop.config_of(options)
    for programs in loop.compiled(config).values():
        assert loop.looped(programs, options) > 0


def test_the_median_ratio_and_the_order_statistics_around_it(script):
    mine, others = [2.0, 6.0, 4.0], [2.0, 2.0, 2.0]
    assert script("harness").ratio_interval(mine, others) == (1.0, 2.0, 3.0)
    # Twelve rounds: the third lowest and third highest contain the median with 96 %.
    assert script("harness").ratio_interval([float(i) for i in range(12)], [1.0] * 12) == (
        2.0,
        5.5,
        9.0,
    )


def test_a_contender_that_computes_something_else_is_not_timed(script):
    throughput = script("throughput")
    throughput.check({"deepjax": [2.0, 1.0], "flax": [2.0, 1.0005]}, throughput.Options())
    with pytest.raises(
        InputError, match=r"flax computes something else: after 1 steps 1\.01, deepjax 1"
    ):
        throughput.check({"deepjax": [2.0, 1.0], "flax": [2.0, 1.01]}, throughput.Options())


def test_a_command_is_shown_with_what_was_not_the_default(script):
    throughput, harness = script("throughput"), script("harness")
    given = {
        "models": ["resnet50"],
        "steps": 1,
        "levers": True,
        "compiled": False,
        "rounds": 9,
        "torch": "PYTHON",
        "out": None,
    }
    assert harness.format_command("throughput.py", given, throughput.Options()) == (
        "`python experiments/benchmarks/throughput.py --models resnet50 --steps 1 --levers "
        "--no-compiled --torch PYTHON`"
    )


def test_collectives_of_a_compiled_program_are_counted_with_their_bytes(script):
    program = """
      %all-reduce.1 = f32[16]{0} all-reduce(%a), channel_id=1
      %all-reduce-start = (f32[3,4]{1,0}, f32[8]{0}) all-reduce-start(%b, %c)
      ROOT %gathered = f32[10]{0} all-gather(%d)
      %add = f32[100]{0} add(%all-reduce.1, %e)
    """
    assert script("scaling").collectives(program) == (
        {"all-reduce": 2, "all-gather": 1},
        4 * (16 + 12 + 8 + 10) / 1e6,
    )


def test_what_the_kernels_of_a_program_move(script):
    """Arguments are read, results written; parts of tuples and shared memory move nothing."""
    program = """HloModule jit_step
    %fused (p: bf16[4]) -> bf16[4] {
      %p = bf16[4]{0} parameter(0)
      ROOT %twice = bf16[4]{0} add(%p, %p)
    }

    ENTRY %main (x: bf16[256,16,16,8], w: f32[8]) -> f32[8] {
      %x = bf16[256,16,16,8]{3,2,1,0} parameter(0)
      %w = f32[8]{0} parameter(1)
      %conv = (bf16[256,16,16,8]{3,2,1,0}, u8[0]{0}) \
custom-call(%x, %x), custom_call_target="__cudnn$convForward"
      %y = bf16[256,16,16,8]{3,2,1,0} get-tuple-element(%conv), index=0
      %wide = f32[256,16,16,8]{3,2,1,0} fusion(%y, %w), \
kind=kLoop, calls=%fused, metadata={op_name="jit(step)/norm"}
      ROOT %sum = f32[8]{0} fusion(%wide), kind=kInput, calls=%fused
    }
"""
    gpu_program = script("gpu_program")
    found = gpu_program.kernels(program)
    half, whole = 2 * 256 * 16 * 16 * 8, 4 * 256 * 16 * 16 * 8
    assert [(each.kind, each.moved, each.of) for each in found] == [
        ("__cudnn$convForward", 3 * half, ""),
        ("kLoop", half + 32 + whole, "jit(step)/norm"),
        ("kInput", whole + 32, ""),
    ]
    assert gpu_program.summary("x", found, gpu_program.Options())["float32_maps"] == 1


def test_compile_times_are_compared_within_a_round(script):
    found = script("depth").of_rounds(
        [(1.0, 2.0), (2.0, 4.0), (1.0, 3.0)], [(1.0, 1.0), (2.0, 2.0), (1.0, 1.0)]
    )
    assert found == {"trace_s": 1.0, "compile_s": 3.0, "ratio": 1.5}
