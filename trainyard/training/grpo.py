"""GRPO by TRL, on prompts and in an order that are ours.

Shao et al. 2024, arXiv:2402.03300: several answers to one prompt are sampled, and each is moved by
how far its reward lies above the group's mean.
"""

from collections.abc import Callable, Iterator
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from trainyard.errors import InputError
from trainyard.recipe.train import GrpoSpec, TrainSpec
from trainyard.training import rewards, selfcheck
from trainyard.training.order import order_of_epoch
from trainyard.training.trainer import JobTrainer, Order


class Groups(Order):
    """The prompts of a step, each as often as it is answered; the step again for each pass.

    TRL takes a whole step's answers from one batch, and one of its parts at each pass.
    """

    def __init__(self, rows: int, seed: int, spec: TrainSpec, passes: int) -> None:
        super().__init__(rows, seed)
        self.prompts = spec.rows_per_step
        self.answers = spec.batch_size // self.prompts
        self.passes = passes

    def step(self, step: int) -> list[int]:
        """Rows of an optimiser step, counted from 0; what a pass over the rows leaves is left."""
        epoch, at = divmod(step, self.rows // self.prompts)
        found = order_of_epoch(self.rows, self.seed, epoch)[at * self.prompts :][: self.prompts]
        return [row for row in found for _ in range(self.answers)]

    def __iter__(self) -> Iterator[int]:
        steps = self.rows // self.prompts
        for step in range(self.epoch * steps, (self.epoch + 1) * steps):
            for _ in range(self.passes):
                yield from self.step(step)

    def __len__(self) -> int:
        return self.rows // self.prompts * self.prompts * self.answers * self.passes


class Grpo(JobTrainer, GRPOTrainer):
    groups: Groups

    def _get_train_sampler(self, dataset: Any = None) -> Groups:  # noqa: ARG002  (TRL's signature)
        return self.groups

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.rows[int(row)]["prompt_ids"] for row in prompts], None, {}

    def tokens_in(self, inputs: Any) -> int:  # noqa: ARG002  (known once answers are there)
        return 0

    def training_step(self, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
        before = self.state.num_input_tokens_seen
        loss = super().training_step(model, inputs, *more, **named)
        self.tokens += int(self.state.num_input_tokens_seen - before)
        return loss

    def _prove_order(self, inputs: Any) -> None:
        step, first = self.state.global_step, self.args.process_index * len(inputs)
        given = [int(one["prompt"]) for one in inputs]
        if given != self.groups.step(step)[first : first + len(given)]:
            raise selfcheck.Failed(
                f"data order: step {step + 1} was given the prompts of other rows: the run cannot "
                "be continued"
            )


def make(
    model: Any, spec: TrainSpec, tokenizer: Any, rows: list[dict[str, Any]], common: dict[str, Any]
) -> Grpo:
    """Raises InputError when the data have too few rows for one step."""
    assert spec.grpo is not None
    if len(rows) < spec.rows_per_step:
        raise InputError(
            f"a step of batch_size {spec.batch_size} takes {spec.rows_per_step} prompts, and the "
            f"data have {len(rows)} rows: lower batch_size, or raise grpo.answers"
        )
    for row in rows:
        row["reference"] = tokenizer.decode(row["answer_ids"], skip_special_tokens=True)
    trainer = Grpo(
        model=model,
        reward_funcs=[_scored(name, rows) for name in spec.grpo.rewards],
        args=config_of(spec, spec.grpo, common),
        train_dataset=Dataset.from_dict({"prompt": [str(row) for row in range(len(rows))]}),
        processing_class=tokenizer,
    )
    passes = int(common["gradient_accumulation_steps"])
    trainer.groups = Groups(len(rows), spec.seed, spec, passes)
    return trainer


def config_of(spec: TrainSpec, grpo: GrpoSpec, common: dict[str, Any]) -> GRPOConfig:
    common = {key: value for key, value in common.items() if key != "max_length"}
    return GRPOConfig(
        beta=spec.beta,
        num_generations=grpo.answers,
        max_completion_length=grpo.max_tokens,
        temperature=grpo.temperature,
        **common,
    )


def _scored(name: str, rows: list[dict[str, Any]]) -> Callable[..., list[float]]:
    reward = rewards.reward_of(name)

    def score(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        pairs = zip(prompts, completions, strict=True)
        return [reward(text, rows[int(row)]) for row, text in pairs]

    score.__name__ = name
    return score
