"""Preference objectives really train here, by TRL on the CPU; each start takes ten seconds."""

import json
import math
import os
import signal

import pytest
import torch

from trainyard.files import read_json
from trainyard.training.journal import read_metrics
from trainyard.training.launcher import launch
from trainyard.training.objectives import LogProbs, log_odds

torch.set_num_threads(1)


def preference(i):
    return {
        "id": f"pair{i}",
        "kind": "preference",
        "prompt": [{"role": "user", "content": f"Order {i} of {i * 7 % 11} lamps. Which order?"}],
        "chosen": [{"role": "assistant", "content": f'{{"order": {i}}}'}],
        "rejected": [{"role": "assistant", "content": f"It is order {i}, I think."}],
    }


def marked(i):
    row = preference(i // 2)
    good = i % 2 == 0
    answer = row["chosen" if good else "rejected"]
    return {
        "id": f"mark{i}",
        "kind": "kto",
        "prompt": row["prompt"],
        "completion": answer,
        "label": good,
    }


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preferences")
    made = {}
    for kind, row in (("preference", preference), ("kto", marked)):
        made[kind] = folder / f"{kind}.jsonl"
        made[kind].write_text("".join(json.dumps(row(i)) + "\n" for i in range(36)))
    return made


@pytest.fixture(scope="module")
def job_of(make_job, preferences):
    def of(objective, **settings):
        job = make_job(backend="auto", objective=objective, method="lora", **settings)
        kind = "kto" if objective == "kto" else "preference"
        return job.model_copy(update={"train": preferences[kind]})

    return of


@pytest.fixture(scope="module")
def trained_by_dpo(job_of, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dpo")
    return folder, launch(job_of("dpo"), folder)


def margins(folder):
    return [line["reward_margin"] for line in read_metrics(folder / "metrics.jsonl")]


def test_dpo_moves_away_from_the_rejected_answers(trained_by_dpo):
    folder, result = trained_by_dpo
    assert result.backend == "trl"
    assert result.details["self_checks"]["start_loss"] == pytest.approx(math.log(2), rel=1e-3)
    assert margins(folder)[0] == pytest.approx(0, abs=1e-3)
    assert margins(folder)[-1] > 0.05
    assert sorted(p.name for p in result.adapter.iterdir())[:2] == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize("objective", ["orpo", "kto"])
def test_orpo_and_kto_learn(objective, job_of, tmp_path):
    launch(job_of(objective), tmp_path)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert lines[-1]["loss"] < lines[0]["loss"]
    if objective == "orpo":
        assert lines[-1]["reward_margin"] > lines[0]["reward_margin"]


def test_an_interrupted_dpo_ends_with_the_same_bytes(trained_by_dpo, job_of, tmp_path):
    _, whole = trained_by_dpo

    def kill(line):
        if line["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(job_of("dpo"), tmp_path, progress=kill)
    resumed = launch(job_of("dpo"), tmp_path)
    assert resumed.attempts[-1]["from_step"] >= 3
    assert resumed.digest == whole.digest


def test_dpo_after_another_training_is_held_to_its_result(trained_by_dpo, job_of, tmp_path):
    _, before = trained_by_dpo
    job = job_of("dpo", continue_from=str(before.adapter), max_steps=2)
    result = launch(job, tmp_path)
    # held to the bare base instead, the loss would start below log 2
    assert result.details["self_checks"]["start_loss"] == pytest.approx(math.log(2), rel=1e-3)
    assert margins(tmp_path)[0] == pytest.approx(0, abs=1e-3)


def test_the_odds_ratio_is_that_of_trl(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.orpo import ORPOTrainer

    chosen, rejected = torch.tensor([-0.3, -1.2, -0.01]), torch.tensor([-0.9, -1.1, -2.0])
    trl = ORPOTrainer.__new__(ORPOTrainer)
    trl.beta = 0.1
    trl.accelerator = type("A", (), {"device": torch.device("cpu")})
    losses, *_ = ORPOTrainer.odds_ratio_loss(trl, chosen, rejected)
    ours = 0.1 * torch.nn.functional.logsigmoid(log_odds(chosen) - log_odds(rejected))
    assert torch.allclose(losses, ours, atol=1e-6)


def test_log_probabilities_without_triton():
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8)
    targets = torch.tensor([0, 3, 10, 7, 2])
    outputs = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    found, entropy, squares, mean, top = LogProbs.apply(
        hidden, weight, None, targets, 2.0, 4, None, 3.0, outputs
    )
    logits = hidden @ weight.T * 3.0 / 2.0
    wanted = torch.distributions.Categorical(logits=logits)
    assert torch.allclose(found, wanted.log_prob(targets), atol=1e-5)
    assert torch.allclose(entropy, wanted.entropy(), atol=1e-5)
    assert torch.allclose(squares.exp(), wanted.probs.pow(2).sum(-1), atol=1e-5)
    assert torch.allclose(mean, logits.mean(-1), atol=1e-5)
    assert torch.equal(top, logits.argmax(-1) == targets)
    found.sum().backward()
    assert hidden.grad.abs().sum() > 0


def test_grpo_trains_on_rewards_and_goes_on_after_a_kill(make_job, rows, tmp_path):
    rewarded = tmp_path / "rewards.py"
    rewarded.write_text("def short(answer, reference, sample):\n    return 1 / (1 + len(answer))\n")
    job = make_job(
        backend="auto",
        objective="grpo",
        method="lora",
        device_batch_size=8,
        max_steps=6,
        learning_rate=1e-2,
        warmup_steps=0,
        grpo={
            "rewards": ["exact_match", r"regex:^\{", f"python:{rewarded}:short"],
            "answers": 4,
            "max_tokens": 8,
        },
    )
    sent = []

    def interrupt(line):
        if line["step"] >= 4 and not sent:
            sent.append(line["step"])
            os.kill(read_json(tmp_path / "job" / "process.json")["pid"], signal.SIGKILL)

    result = launch(job, tmp_path / "job", progress=interrupt)
    lines = read_metrics(tmp_path / "job" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert result.attempts[-1]["from_step"] == 3
    assert all(0 <= line["reward"] <= 3 for line in lines)
    assert max(line["grad_norm"] for line in lines) > 0
    assert result.tokens > 6 * 8
    found = result.details["self_checks"]["rewards"]
    assert found["exact_match"] == found[r"regex:^\{"] == 1
