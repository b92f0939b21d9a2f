"""The collectives of one compiled train step, of one process with devices or one of several.

python experiments/benchmarks/scale_collectives.py --devices 4
"""

import dataclasses
import json
from typing import Any

from scaling import collectives

from deepjax import command_line
from deepjax.training.distributed.cluster import Hosts


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compiled."""

    model: str = "cifar_resnet20"
    """The network, on the digits."""
    width: int = 16
    """Its width."""
    devices: int = 1
    """Simulated devices of this process."""
    batch_size: int = 96
    """Images of a step, over all devices."""
    fsdp: bool = False
    """Parameters sharded over the devices."""
    hosts: Hosts = Hosts()  # frozen


def main() -> None:
    """Print, as JSON, the collectives of the step and the bytes of their results, per device."""
    options = command_line.parse(Options)
    print(json.dumps(of_step(options)))


def of_step(options: Options) -> dict[str, Any]:
    """Compile the step over all devices of all processes, and read its program."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", options.devices)
    jax.config.update("jax_enable_compilation_cache", False)
    from deepjax.training import RunOptions, compile_training, train_config
    from deepjax.training.distributed.cluster import initialize_distributed

    initialize_distributed(options.hosts)
    config = train_config(
        model=options.model,
        width=options.width,
        dataset="digits",
        batch_size=options.batch_size,
        steps=1,
    )
    programs = compile_training(config, RunOptions(fsdp=options.fsdp))
    counts, megabytes = collectives(programs.train_step.as_text())
    leaves = jax.tree.leaves(programs.fresh_state(config).params)
    return {
        "processes": jax.process_count(),
        "devices": jax.device_count(),
        "collectives": counts,
        "megabytes": megabytes,
        "parameters": sum(leaf.size for leaf in leaves),
        "compile_s": programs.cost.compile_seconds,
    }


if __name__ == "__main__":
    command_line.run_command(main)
