"""Several processes that train together, as `accelerate launch` starts them.

GPUs go through a configuration of accelerate's own form, `accelerate.yaml` in the job's folder;
processes on a CPU, which accelerate starts by MPI only, through torch's launcher. Several nodes
meet at the address of the first.
"""

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from trainyard.errors import InputError
from trainyard.files import write_text
from trainyard.training.job import JobFile

CONFIG = "accelerate.yaml"
NODES = "TRAINYARD_NODES"
"""Environment: how many machines train together; `trainyard.training.nodes` sets it."""


class Node(NamedTuple):
    """This machine among those that train together."""

    rank: int
    main: str
    """Host name of rank 0."""
    port: int


def here(nodes: int) -> Node:
    """Return which of `nodes` machines this is. Raises InputError where it is none of so many."""
    there = os.environ.get(NODES, "1")
    if there != str(nodes):
        raise InputError(
            f"resources.nodes is {nodes} and this is a job of {there}: several machines are pods "
            "of one Job, as deployments/work_pools/gpu-kubernetes.yaml makes it"
        )
    try:
        rank, port = int(os.environ["JOB_COMPLETION_INDEX"]), int(os.environ["MASTER_PORT"])
        return Node(rank, os.environ["MASTER_ADDR"], port)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{nodes} nodes need JOB_COMPLETION_INDEX, MASTER_ADDR and MASTER_PORT ({error}): "
            "is completionMode of the Job Indexed?"
        ) from None


def command_of(file: JobFile, folder: Path, program: list[str]) -> list[str]:
    """Return the command that runs `program` (the arguments of python) in all its processes."""
    job = file.job
    node = here(job.nodes) if job.nodes > 1 else None
    if not job.gpus:
        workers = ["--nproc-per-node", str(job.world_size // job.nodes), *_torch_meets(file, node)]
        return [sys.executable, "-m", "torch.distributed.run", *workers, *program]
    write_text(folder / CONFIG, yaml.safe_dump(accelerate_config(file), sort_keys=True))
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(folder / CONFIG)]
    return [sys.executable, *launch, *_accelerate_meets(file, node), *program]


def _torch_meets(file: JobFile, node: Node | None) -> list[str]:
    if node is None:
        return ["--standalone"]
    where = ["--master-addr", node.main, "--master-port", str(_port(file, node))]
    return ["--nnodes", str(file.job.nodes), "--node-rank", str(node.rank), *where]


def _accelerate_meets(file: JobFile, node: Node | None) -> list[str]:
    """What differs between nodes, or attempts; the configuration is one for all."""
    if node is None:
        return []
    where = ["--main_process_ip", node.main, "--main_process_port", str(_port(file, node))]
    # without same_network accelerate leaves the address to a rendezvous that `static` has not
    return ["--machine_rank", str(node.rank), *where, "--same_network", "--rdzv_backend", "static"]


def _port(file: JobFile, node: Node) -> int:
    """One for each attempt: nobody meets what is left of an earlier one."""
    return node.port + file.attempt - 1


def accelerate_config(file: JobFile) -> dict[str, Any]:
    spec = file.job.spec
    common = {
        "compute_environment": "LOCAL_MACHINE",
        "num_machines": file.job.nodes,
        "machine_rank": 0,
        "num_processes": file.job.world_size,
        "main_process_port": 0,  # any that is free; of several nodes, see above
        "main_training_function": "main",
        "mixed_precision": "bf16" if spec.precision == "bf16" else "no",
        "use_cpu": False,
    }
    match spec.sharding:
        case "ddp":
            return common | {"distributed_type": "MULTI_GPU"}
        case "fsdp2":
            return common | {"distributed_type": "FSDP", "fsdp_config": _fsdp2(file)}
        case "zero3":
            return common | {"distributed_type": "DEEPSPEED", "deepspeed_config": _zero3(file)}


def _fsdp2(file: JobFile) -> dict[str, Any]:
    return {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": True,
        "fsdp_cpu_ram_efficient_loading": False,
        "fsdp_offload_params": False,
        "fsdp_state_dict_type": "FULL_STATE_DICT",
        "fsdp_activation_checkpointing": file.job.spec.activation_checkpointing == "block",
    }


def _zero3(file: JobFile) -> dict[str, Any]:
    return {
        "zero_stage": 3,
        "deepspeed_multinode_launcher": "standard",  # torch's: the other kinds go by ssh
        "zero3_init_flag": False,
        "zero3_save_16bit_model": False,
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
        "gradient_accumulation_steps": file.grad_accum_steps,
        "gradient_clipping": file.job.spec.max_grad_norm,
    }
