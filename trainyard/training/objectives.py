"""TRL's trainers, one per objective, fed with the tokens that the data check has proved.

TRL would render and cut the rows again in its own way; here its preparation is left out.
"""

import math
from typing import Any

import torch
import trl.trainer.utils
from datasets import Dataset
from torch.nn import functional as F
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from trainyard.recipe.train import TrainSpec
from trainyard.training.rows import IGNORED
from trainyard.training.trainer import JobTrainer

COLUMNS = {
    "sft": ("input_ids", "labels"),
    "dpo": ("prompt_ids", "chosen_ids", "rejected_ids"),
    "orpo": ("prompt_ids", "chosen_ids", "rejected_ids"),
    "kto": ("prompt_ids", "completion_ids", "label"),
}
"""What each objective's collator reads of a row."""


class Pad:
    """Collate rows to the longest of them; padding is told apart by position, never by token."""

    def __init__(self, pad_token_id: int, multiple: int) -> None:
        self.pad_token_id = pad_token_id
        self.multiple = multiple

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        width = math.ceil(longest / self.multiple) * self.multiple
        ids = torch.full((len(rows), width), self.pad_token_id)
        labels = torch.full((len(rows), width), IGNORED)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            n = len(row["input_ids"])
            ids[i, :n] = torch.tensor(row["input_ids"])
            labels[i, :n] = torch.tensor(row["labels"])
            mask[i, :n] = 1
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}


class Pack(Pad):
    """Collate rows into one, end to end; positions that begin again keep them apart.

    Attention tells rows by positions only where no mask is given. A row's first token has no label:
    what stands before it is another row.
    """

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [token for row in rows for token in row["input_ids"]]
        labels = [label for row in rows for label in (IGNORED, *row["labels"][1:])]
        positions = [at for row in rows for at in range(len(row["input_ids"]))]
        packed = {"input_ids": ids, "labels": labels, "position_ids": positions}
        return {key: torch.tensor([values]) for key, values in packed.items()}


class PadWithOthers(DataCollatorForUnpairedPreference):
    """KTO's batch, with the answer of the row before as each prompt's mismatched answer.

    Eq. 7 of Ethayarajh et al. 2024 (arXiv:2402.01306) takes them from the same batch; TRL pairs
    them in the order of the file, which is not the order of training here.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        others = [examples[-1], *examples[:-1]]
        return super().torch_call(
            [
                row | {"KL_completion_ids": other["completion_ids"]}
                for row, other in zip(examples, others, strict=True)
            ]
        )


class Sft(JobTrainer, SFTTrainer):
    def units(self, batch: dict[str, Any]) -> int:
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def loss_of(self, batch: dict[str, Any], units: int) -> torch.Tensor:
        inputs = {key: value.to(self.args.device) for key, value in batch.items()}
        count = torch.tensor(units, device=self.args.device)
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            loss: torch.Tensor = self.compute_loss(self.model, inputs, num_items_in_batch=count)
        return loss / self.accelerator.num_processes


class Prepared(JobTrainer):
    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


class Dpo(Prepared, DPOTrainer):
    """Rafailov et al. 2023, arXiv:2305.18290. The reference is what training starts from."""

    answers = 2
    start_loss: float | None = math.log(2)


class Orpo(Dpo):
    """Hong, Lee and Thorne 2024, arXiv:2403.07691: no reference, eq. 6 with eq. 7 as penalty."""

    start_loss = None

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        mask = inputs["completion_mask"]
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=inputs["input_ids"].masked_fill(mask == 0, IGNORED),
            use_cache=False,
            fused_lm_head=True,
        )
        means = outputs.log_probs.sum(1) / mask[:, 1:].sum(1)
        chosen, rejected = means.chunk(2)
        ratio = log_odds(chosen) - log_odds(rejected)
        record = self._metrics["train" if self.model.training else "eval"]
        record["rewards/margins"].append(float((self.beta * (chosen - rejected)).mean()))
        record["rewards/accuracies"].append(float((chosen > rejected).float().mean()))
        loss = (-chosen - self.beta * F.logsigmoid(ratio)).mean()
        return (loss, outputs) if return_outputs else loss


class Kto(Prepared, KTOTrainer):
    """Ethayarajh et al. 2024, arXiv:2402.01306. The reference is what training starts from."""

    start_loss = 0.5


def log_odds(mean_log_prob: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of p, the geometric mean of an answer's token probabilities."""
    return mean_log_prob - torch.log1p(-torch.exp(mean_log_prob))


TRAINERS: dict[str, type[JobTrainer]] = {"sft": Sft, "dpo": Dpo, "orpo": Orpo, "kto": Kto}


def config_of(spec: TrainSpec, common: dict[str, Any]) -> Any:
    """TRL's configuration of the objective, of the `common` arguments of every trainer."""
    if spec.objective == "sft":
        return SFTConfig(
            loss_type="nll",
            packing=False,
            padding_free=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            **common,
        )
    if spec.objective == "kto":
        return KTOConfig(beta=spec.beta, disable_dropout=False, **common)
    return DPOConfig(beta=spec.beta, disable_dropout=False, **common)


def collator_of(spec: TrainSpec, pad_token_id: int, multiple: int) -> Any:
    if spec.objective == "sft":
        return (Pack if spec.packing else Pad)(pad_token_id, multiple)
    kind = PadWithOthers if spec.objective == "kto" else DataCollatorForPreference
    return kind(pad_token_id=pad_token_id, pad_to_multiple_of=multiple)


class LogProbs:
    """What TRL's Triton kernel computes, by torch's own functions, for devices without Triton."""

    @staticmethod
    def apply(
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        _chunk_size: int,
        softcap: float | None,
        logit_scale: float,
        _outputs: tuple[str, ...],
    ) -> tuple[torch.Tensor, ...]:
        """Log-probability, entropy, log of summed squared probabilities, mean logit, is top 1."""
        logits = F.linear(hidden.to(weight.dtype), weight, bias).float() * logit_scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits / temperature
        logs = logits.log_softmax(-1)
        seen = logs.detach()
        return (
            logs.gather(-1, targets[:, None])[:, 0],
            -(seen.exp() * seen).sum(-1),
            (2 * seen).logsumexp(-1),
            logits.detach().mean(-1),
            seen.argmax(-1) == targets,
        )


def compute_without_triton() -> None:
    trl.trainer.utils._ChunkedLogProbFunction = LogProbs
