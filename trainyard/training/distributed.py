"""Several processes that train together, as `accelerate launch` starts them.

GPUs go through a configuration of accelerate's own form, `accelerate.yaml` in the job's folder;
processes on a CPU, which accelerate starts by MPI only, through torch's launcher.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

from trainyard.files import write_text
from trainyard.training.job import JobFile

CONFIG = "accelerate.yaml"


def command_of(file: JobFile, folder: Path, program: list[str]) -> list[str]:
    """Return the command that runs `program` (the arguments of python) in all its processes."""
    if not file.job.gpus:
        workers = ["--standalone", "--nproc-per-node", str(file.job.world_size)]
        return [sys.executable, "-m", "torch.distributed.run", *workers, *program]
    write_text(folder / CONFIG, yaml.safe_dump(accelerate_config(file), sort_keys=True))
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(folder / CONFIG)]
    return [sys.executable, *launch, *program]


def accelerate_config(file: JobFile) -> dict[str, Any]:
    spec = file.job.spec
    common = {
        "compute_environment": "LOCAL_MACHINE",
        "num_machines": 1,
        "machine_rank": 0,
        "num_processes": file.job.world_size,
        "main_process_port": 0,  # any that is free
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
        "zero3_init_flag": False,
        "zero3_save_16bit_model": False,
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
        "gradient_accumulation_steps": file.grad_accum_steps,
        "gradient_clipping": file.job.spec.max_grad_norm,
    }
