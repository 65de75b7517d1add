"""Rendered configurations, read by accelerate's own parser. Nothing of this runs on GPUs here."""

from pathlib import Path

import pytest
import yaml

from trainyard.recipe.train import TrainSpec
from trainyard.training.distributed import CONFIG, accelerate_config, command_of
from trainyard.training.job import JobFile, TrainJob
from trainyard.training.memory import estimate

SETTINGS = {
    "method": "lora",
    "backend": "trl",
    "batch_size": 32,
    "activation_checkpointing": "block",
}
LLAMA_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def job_file(sharding: str, gpus: int = 4) -> JobFile:
    spec = TrainSpec.model_validate(SETTINGS | {"sharding": sharding})
    job = TrainJob(
        name="x", base_model=Path("base"), base_ref="base", base_digest="d", train=Path("train"),
        data_digest="d", spec=spec, gpus=gpus, processes=None if gpus else 2,
    )  # fmt: skip
    return JobFile(job=job, backend="trl", device_batch_size=4, attempt=1, identity={})


@pytest.mark.parametrize(
    ("sharding", "kind"), [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP"), ("zero3", "DEEPSPEED")]
)
def test_accelerate_reads_the_configuration_as_it_is_meant(sharding, kind, tmp_path):
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    program = ["-m", "trainyard.training.trl", str(tmp_path)]
    command = command_of(job_file(sharding), tmp_path, program)
    asked = launch_command_parser().parse_args(command[3:])
    assert (asked.module, asked.training_script) == (True, "trainyard.training.trl")
    assert asked.training_script_args == [str(tmp_path)]
    found = load_config_from_file(asked.config_file)
    assert isinstance(found, ClusterConfig)
    assert (found.distributed_type, found.num_processes) == (kind, 4)
    assert (found.mixed_precision, found.use_cpu) == ("bf16", False)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp2", "zero3"])
def test_accelerate_hands_torch_the_rendezvous_of_several_nodes(sharding, tmp_path, monkeypatch):
    from accelerate.commands import launch
    from accelerate.utils.launch import _filter_args, prepare_multi_gpu_env
    from torch.distributed.run import get_args_parser

    for name, value in {
        "TRAINYARD_NODES": "2", "JOB_COMPLETION_INDEX": "1", "MASTER_ADDR": "train-x-0.nodes",
        "MASTER_PORT": "29500",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    file = job_file(sharding)
    file = file.model_copy(
        update={
            "job": file.job.model_copy(update={"nodes": 2}), "attempt": 3, "device_batch_size": 2
        }
    )  # fmt: skip
    command = command_of(file, tmp_path, ["-m", "trainyard.training.trl", str(tmp_path)])
    asked = launch.launch_command_parser().parse_args(command[3:])
    asked, *_ = launch._validate_launch_command(asked)
    prepare_multi_gpu_env(asked)
    given = _filter_args(
        asked, get_args_parser(), ["--training_script", "x", "--training_script_args", "y"]
    )
    assert (given.nnodes, given.nproc_per_node, given.node_rank) == ("2", "4", 1)
    assert (given.master_addr, given.master_port) == ("train-x-0.nodes", "29502")
    assert (given.rdzv_backend, asked.num_processes) == ("static", 8)
    assert asked.deepspeed_multinode_launcher in (None, "standard")
    assert file.grad_accum_steps == 32 // (2 * 8)


def test_every_key_for_fsdp_and_deepspeed_is_one_that_accelerate_knows():
    from accelerate.commands.launch import launch_command_parser

    known = {action.dest for action in launch_command_parser()._actions}
    fsdp = accelerate_config(job_file("fsdp2"))["fsdp_config"]
    zero = accelerate_config(job_file("zero3"))["deepspeed_config"]
    assert set(fsdp) | set(zero) <= known
    assert (zero["gradient_accumulation_steps"], zero["gradient_clipping"]) == (2, 1.0)
    assert fsdp["fsdp_activation_checkpointing"] is True


def test_processes_on_a_cpu_need_no_configuration(tmp_path):
    command = command_of(job_file("ddp", gpus=0), tmp_path, ["-m", "x"])
    assert command[1:3] == ["-m", "torch.distributed.run"]
    assert not (tmp_path / CONFIG).exists()


def test_the_file_is_plain_yaml(tmp_path):
    command_of(job_file("fsdp2"), tmp_path, ["-m", "x"])
    assert yaml.safe_load((tmp_path / CONFIG).read_text()) == accelerate_config(job_file("fsdp2"))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_sharded_weights_are_planned_as_a_part_of_them(method):
    def planned(sharding: str) -> float:
        spec = TrainSpec.model_validate(SETTINGS | {"method": method, "sharding": sharding})
        return estimate(LLAMA_8B, spec, processes=4).total

    assert planned("fsdp2") == planned("zero3") < planned("ddp")
