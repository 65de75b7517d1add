"""How the model is trained."""

import math
import re
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from trainyard.recipe.base import Frozen
from trainyard.recipe.evaluate import METRICS, PYTHON_METRIC

Dropout = Annotated[float, Field(ge=0, lt=1)]


PATTERN = "regex:"
"""Begins a reward that is a regular expression."""
NO_REWARDS = frozenset(
    ("regex", "constraints", "bleu", "chrf", "latency_ms", "completion_tokens", "stopped_by_eos")
)
"""Metrics of the evaluation that say nothing about one answer beside its reference, in [0, 1]."""


def _known_reward(name: str) -> str:
    if name.startswith(PATTERN):
        try:
            re.compile(name.removeprefix(PATTERN))
        except re.error as error:
            raise ValueError(f"reward {name}: {error}") from None
        return name
    known = [metric for metric in METRICS if metric not in NO_REWARDS]
    if name not in known and not PYTHON_METRIC.fullmatch(name):
        raise ValueError(
            f"reward {name!r} is not known; use one of {', '.join(known)}, {PATTERN}PATTERN or "
            "python:FILE.py:FUNCTION"
        )
    return name


Reward = Annotated[str, AfterValidator(_known_reward)]


class GrpoSpec(Frozen):
    """`objective: grpo`: answers are sampled, and what they are worth is computed."""

    rewards: Annotated[tuple[Reward, ...], Field(min_length=1)]
    """What an answer is worth, summed: metrics of the evaluation (`exact_match`, `json_fields`,
    ...) against the row's own answer, `regex:PATTERN` (1 where it is found), or
    `python:FILE.py:FUNCTION`, a function `(answer, reference, sample) -> float in [0, 1]`."""

    answers: Annotated[int, Field(ge=2)] = 8
    """Answers sampled per prompt; each is compared with the mean of these (Shao et al. 2024,
    arXiv:2402.03300). `batch_size` counts answers, so a step has batch_size / answers prompts."""

    max_tokens: PositiveInt = 256
    """Longest sampled answer, in tokens."""

    temperature: PositiveFloat = 1.0
    """Of sampling; below 1 the answers of a group differ less, and so teach less."""


class TrainSpec(Frozen):
    backend: Literal["auto", "unsloth", "trl", "command"] = "auto"
    """Program that trains: `auto` is `unsloth` where it is installed, otherwise `trl`."""

    command: tuple[str, ...] = ()
    """For `backend: command`: a program that honours the job contract; the job's folder is its last
    argument."""

    method: Literal["lora", "qlora", "full"] = "qlora"
    """`qlora` keeps the frozen base in 4-bit NF4 with double quantisation (Dettmers et al. 2023,
    arXiv:2305.14314); `lora` keeps it in 16 bits (Hu et al. 2021, arXiv:2106.09685). `full` trains
    every weight, in 32 bits (18 bytes each with AdamW), for `objective: sft`: the version is a
    whole model, which only `deploy.engine: cpu` on the local target serves; its learning rate is
    about a tenth of LoRA's."""

    objective: Literal["sft", "dpo", "orpo", "kto", "grpo"] = "sft"
    """`sft` imitates answers. `dpo` (Rafailov et al. 2023, arXiv:2305.18290) and `orpo` (Hong et
    al. 2024, arXiv:2403.07691) learn from pairs of a chosen and a rejected answer, `kto`
    (Ethayarajh et al. 2024, arXiv:2402.01306) from answers marked good or bad; `grpo` from
    rewards of answers that it samples (Shao et al. 2024, arXiv:2402.03300). All but `sft` are
    trained by `backend: trl`."""

    grpo: GrpoSpec | None = None
    """Rewards and sampling of `objective: grpo`; the rows' own answers are references only."""

    beta: PositiveFloat = 0.1
    """`dpo`, `kto`, `grpo`: how strongly the model is held to the one it starts from; `orpo`:
    weight of the odds ratio (lambda in the paper). 0.1 as in the first three papers."""

    rank: PositiveInt = 16
    """Rank of the low-rank update (Hu et al. 2021); 16 is the default of Unsloth's guides."""

    alpha: PositiveInt = 32
    """Scale of the update: the factor is alpha / rank, or alpha / sqrt(rank) with `rslora`. 32 as
    in "LoRA Without Regret" (Thinking Machines, 2025)."""

    dropout: Dropout = 0.0
    """Dropout on the adapter's input; Unsloth's fast path needs 0."""

    rslora: bool = False
    """Scale by alpha / sqrt(rank), which keeps high ranks learning (Kalajdzievski 2023,
    arXiv:2312.03732)."""

    dora: bool = False
    """Train magnitude and direction of the weights apart (Liu et al. 2024, arXiv:2402.09353): a
    little better at low rank, and slower. `backend: trl` only."""

    continue_from: str | None = None
    """Adapter whose weights the new one starts from: its folder, or a registered version of the
    same base as NAME@ALIAS or NAME@DIGEST. Rank and layers must be the same. Absent starts at
    zero."""

    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Layers that get an adapter, by the last part of their name. Attention alone is clearly worse
    ("LoRA Without Regret", 2025)."""

    learning_rate: PositiveFloat = 2e-4
    """Peak rate; LoRA wants about ten times that of full fine-tuning ("LoRA Without Regret")."""

    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the rate after warm-up, down to 0 at the last step except for `constant`."""

    warmup_steps: NonNegativeInt = 10
    """Optimiser steps over which the rate rises from 0."""

    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """The 8-bit ones (bitsandbytes) hold the moments in 2 instead of 8 bytes per trained parameter
    and need a GPU."""

    weight_decay: NonNegativeFloat = 0.0
    """Decoupled decay of AdamW, on the adapter's weights."""

    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""

    epochs: PositiveFloat = 1.0
    """Passes over the training rows."""

    max_steps: PositiveInt | None = None
    """Most optimiser steps, even if the passes are not complete; the schedule ends with them."""

    batch_size: PositiveInt = 16
    """Rows per optimiser step, over all devices. LoRA tolerates large batches less than full
    fine-tuning ("LoRA Without Regret")."""

    device_batch_size: PositiveInt = 4
    """Rows per forward pass on one device; halved when memory ends, with twice the accumulation."""

    max_seq_len: PositiveInt = 2048
    """Longest training row, in tokens; longer rows are an error, never cut."""

    sharding: Literal["ddp", "fsdp2", "zero3"] = "ddp"
    """How `resources.gpus` above 1 share the work. `ddp`: each has the whole model. `fsdp2` (torch)
    and `zero3` (DeepSpeed, to be installed) divide its 32-bit weights, gradients and moments among
    them, for `method: lora` or `full` by `backend: trl`; those two have only been rendered and
    parsed, never run: no machine with two GPUs was at hand."""

    packing: bool = False
    """Lay the rows of a forward pass end to end instead of padding them to the longest. Each row
    sees only itself: before the first step, the loss of packed rows must be the sum of their own,
    and a change in one row must leave the others' alone, or the training stops with 88. Saves work
    where attention skips other rows; `sft` only."""

    activation_checkpointing: Literal["none", "block", "offload"] = "none"
    """`block` keeps one activation per layer and computes the rest again (about a third more
    compute); `offload` keeps those in host memory (Unsloth only). Neither helps on a CPU."""

    precision: Literal["bf16", "fp32"] = "bf16"
    """Arithmetic of the forward pass; the adapter itself is always 32-bit."""

    seed: NonNegativeInt = 0
    """Of the adapter's start, the order of rows and dropout."""

    threads: PositiveInt = 2
    """CPU threads of the training process. On a CPU they are part of what makes two runs equal byte
    for byte."""

    save_every: PositiveInt = 50
    """Optimiser steps between checkpoints; what a crash can cost."""

    mirror_checkpoints: bool = False
    """Copy each checkpoint to `register.archive` while training goes on, and start from the newest
    copy on a machine that has none. A finished training deletes its copies."""

    eval_every: NonNegativeInt = 0
    """Optimiser steps between losses over the validation rows; the adapter with the lowest is kept.
    0 keeps the last adapter and leaves those rows alone."""

    patience: PositiveInt | None = None
    """Stop after this many such losses without a new lowest; absent trains to the end."""

    @property
    def grad_accum_steps(self) -> int:
        """Forward passes per optimiser step on one device."""
        return self.batch_size // self.device_batch_size

    def why_uneven(self, processes: int) -> str | None:
        """Say why so many processes cannot share a batch, or None when they can."""
        if self.batch_size % (self.device_batch_size * processes):
            return (
                f"batch_size ({self.batch_size}) must be a multiple of device_batch_size "
                f"({self.device_batch_size}) times {processes} processes"
            )
        return None

    @property
    def rows_per_step(self) -> int:
        return self.batch_size // (self.grpo.answers if self.grpo else 1)

    def total_steps(self, rows: int) -> int:
        """Optimiser steps for `rows` training rows; the last batch of a pass may be smaller.

        `grpo` leaves that batch out.
        """
        batches = max(1, rows // self.rows_per_step) if self.grpo else -(-rows // self.batch_size)
        steps = math.ceil(self.epochs * batches)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @model_validator(mode="after")
    def _batch_divides(self) -> "TrainSpec":
        if self.batch_size % self.device_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of "
                f"device_batch_size ({self.device_batch_size})"
            )
        return self

    @model_validator(mode="after")
    def _command_and_backend_agree(self) -> "TrainSpec":
        if (self.backend == "command") != bool(self.command):
            raise ValueError("command is the program of `backend: command`: give both or neither")
        return self

    @model_validator(mode="after")
    def _patience_needs_losses(self) -> "TrainSpec":
        if self.patience is not None and not self.eval_every:
            raise ValueError(f"patience ({self.patience}) counts losses that eval_every measures")
        return self

    @model_validator(mode="after")
    def _dora_is_trls(self) -> "TrainSpec":
        if self.dora and self.backend != "trl":
            raise ValueError(f"dora needs backend: trl, not {self.backend}")
        return self

    @model_validator(mode="after")
    def _full_has_no_adapter(self) -> "TrainSpec":
        if self.method != "full":
            return self
        if self.backend == "unsloth" or self.objective != "sft":
            raise ValueError(
                f"method full is trained by backend: trl with objective: sft, not by "
                f"{self.backend} with {self.objective}"
            )
        if self.dora or self.continue_from:
            key = "dora" if self.dora else "continue_from"
            raise ValueError(f"{key} is about an adapter, and method full trains none")
        return self

    @model_validator(mode="after")
    def _preferences_are_trls(self) -> "TrainSpec":
        if self.objective != "sft" and self.backend == "unsloth":
            raise ValueError(f"objective {self.objective} needs backend: trl, not unsloth")
        if self.objective == "kto" and self.device_batch_size < 2:
            raise ValueError(
                "objective kto compares rows within device_batch_size: set it to 2 or more"
            )
        return self

    @model_validator(mode="after")
    def _sharding_is_of_whole_weights(self) -> "TrainSpec":
        if self.sharding == "ddp":
            return self
        if self.method == "qlora" or self.backend != "trl" or self.objective != "sft":
            raise ValueError(
                f"sharding {self.sharding} divides 32-bit weights in sft by backend: trl: set "
                "method: lora or full and backend: trl, or sharding: ddp"
            )
        if self.eval_every:
            raise ValueError(
                f"eval_every keeps the best weights, which sharding {self.sharding} has in pieces: "
                "leave it 0, or set sharding: ddp"
            )
        return self

    @model_validator(mode="after")
    def _grpo_has_rewards(self) -> "TrainSpec":
        if (self.objective == "grpo") != (self.grpo is not None):
            raise ValueError("grpo names the rewards of `objective: grpo`: give both or neither")
        if self.grpo and self.batch_size % self.grpo.answers:
            raise ValueError(
                f"batch_size ({self.batch_size}) counts answers: it must be a multiple of "
                f"grpo.answers ({self.grpo.answers})"
            )
        if self.grpo and self.eval_every:
            raise ValueError(
                "eval_every measures losses, and those of grpo compare nothing: leave it 0"
            )
        return self

    @model_validator(mode="after")
    def _packing_is_for_sft(self) -> "TrainSpec":
        if self.packing and self.objective != "sft":
            raise ValueError(f"packing is proved equal for objective sft, not for {self.objective}")
        return self

    @model_validator(mode="after")
    def _offload_is_unsloths(self) -> "TrainSpec":
        if self.activation_checkpointing == "offload" and self.backend == "trl":
            raise ValueError("activation_checkpointing: offload needs backend: unsloth, not trl")
        return self
