import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainyard.errors import InputError, Unavailable
from trainyard.evaluation.run import Arm, evaluate
from trainyard.evaluation.scores import read_scores
from trainyard.gate import Verdict, decide
from trainyard.recipe.evaluate import EvaluateSpec
from trainyard.recipe.gates import GateSpec

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"say {i}"},
            {"role": "assistant", "content": json.dumps({"n": i, "kind": "number"})},
        ],
        "topic": "even" if i % 2 == 0 else "odd",
    }
    for i in range(60)
]


@pytest.fixture
def spec(tmp_path: Path) -> EvaluateSpec:
    rows = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "eval.jsonl").write_text(rows)
    documents = "".join(json.dumps({"text": f"document number {i}"}) + "\n" for i in range(60))
    (tmp_path / "corpus.jsonl").write_text(documents)
    return EvaluateSpec.model_validate(
        {
            "concurrency": 4,
            "timeout_s": 60,
            "suites": [
                {
                    "name": "numbers",
                    "kind": "task",
                    "data": str(tmp_path / "eval.jsonl"),
                    "metrics": ["exact_match", "json_fields", "latency_ms", "stopped_by_eos"],
                    "slices": ["topic"],
                },
                {"name": "corpus", "kind": "perplexity", "data": str(tmp_path / "corpus.jsonl")},
            ],
        }
    )


def good(chat):
    """A server that knows every answer as `tuned`, none as `base`, and likes documents less as
    `tuned`."""

    def reply(path, body):
        if path == "/v1/completions":
            logprob = -1.0 if body["model"] == "base" else -1.01
            tokens = body["prompt"].split()
            logprobs = {"tokens": tokens, "token_logprobs": [None] + [logprob] * len(tokens)}
            choice = {"text": body["prompt"], "logprobs": logprobs, "finish_reason": "length"}
            return 200, {"model": body["model"], "choices": [choice]}, {}
        number = int(body["messages"][-1]["content"].split()[1])
        text = json.dumps({"n": number, "kind": "number"}) if body["model"] == "tuned" else "?"
        return 200, chat(text, model=body["model"]), {}

    return reply


def arms(url):
    return {"candidate": Arm(url, "tuned", "d" * 64), "base": Arm(url, "base", "b" * 64)}


def gates(*claims):
    return [GateSpec.model_validate(claim) for claim in claims]


CLAIMS = (
    {"id": "em", "metric": "exact_match", "op": ">=", "value": 0.9},
    {"id": "ppl", "metric": "perplexity_ratio", "op": "<=", "value": 1.05},
)


def test_a_served_model_is_scored_and_decided_on(spec, tmp_path, openai_server, chat):
    server = openai_server(good(chat), ["tuned", "base"])
    steps = []
    evaluate(spec, arms(server.url), tmp_path / "out", progress=lambda *a: steps.append(a))
    scores = read_scores(tmp_path / "out" / "scores.jsonl")
    decision = decide(gates(*CLAIMS), scores)
    assert [(one.id, one.verdict) for one in decision.gates] == [("em", "PASS"), ("ppl", "PASS")]
    assert decision.gates[1].estimate == pytest.approx(2.718281828**0.01, rel=1e-6)
    assert {score.slice for score in scores if score.suite == "numbers"} == {
        ("topic=even",),
        ("topic=odd",),
    }
    assert steps[-1][1:] == (240, 240)
    assert server.most_at_once <= 4


def test_every_sampling_parameter_is_sent(spec, tmp_path, openai_server, chat):
    server = openai_server(good(chat), ["tuned", "base"])
    evaluate(spec, arms(server.url), tmp_path / "out")
    asked = next(one for one in server.seen if one["path"] == "/v1/chat/completions")
    assert (asked["temperature"], asked["top_p"], asked["max_tokens"]) == (0, 1, 256)
    assert asked["seed"] == spec.seed


def test_a_second_run_asks_nothing_again_and_writes_the_same(spec, tmp_path, openai_server, chat):
    server = openai_server(good(chat), ["tuned", "base"])
    evaluate(spec, arms(server.url), tmp_path / "out")
    first = (tmp_path / "out" / "scores.jsonl").read_bytes()
    asked = len(server.seen)
    evaluate(spec, arms(server.url), tmp_path / "out")
    assert len(server.seen) == asked
    assert (tmp_path / "out" / "scores.jsonl").read_bytes() == first


def test_other_weights_under_the_same_name_are_asked_again(spec, tmp_path, openai_server, chat):
    server = openai_server(good(chat), ["tuned", "base"])
    evaluate(spec, arms(server.url), tmp_path / "out")
    asked = len(server.seen)
    retrained = {**arms(server.url), "candidate": Arm(server.url, "tuned", "e" * 64)}
    evaluate(spec, retrained, tmp_path / "out")
    assert len(server.seen) == asked + 120


def test_a_run_killed_in_the_middle_goes_on_where_it_stopped(spec, tmp_path, openai_server, chat):
    answer = good(chat)

    def slow(path, body):
        time.sleep(0.05)
        return answer(path, body)

    server = openai_server(slow, ["tuned", "base"])
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    program = (
        "import sys, pathlib\n"
        "from trainyard.evaluation.run import Arm, evaluate\n"
        "from trainyard.recipe.evaluate import EvaluateSpec\n"
        "spec = EvaluateSpec.model_validate_json(pathlib.Path(sys.argv[1]).read_text())\n"
        "arms = {'candidate': Arm(sys.argv[2], 'tuned', 'd' * 64)}\n"
        "evaluate(spec, arms, pathlib.Path(sys.argv[3]))\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", program, str(tmp_path / "spec.json"), server.url, str(out)]
    child = subprocess.Popen(command)
    while not (out / "answers.jsonl").exists() or (out / "answers.jsonl").stat().st_size < 2000:
        assert child.poll() is None
        time.sleep(0.02)
    child.kill()
    child.wait()
    with (out / "answers.jsonl").open("a") as file:
        file.write('{"key": "half a li')
    saved = (out / "answers.jsonl").read_text().count("\n")
    asked = len(server.seen)
    evaluate(spec, {"candidate": arms(server.url)["candidate"]}, out)
    assert 0 < saved < 120
    assert len(server.seen) - asked == 120 - saved
    assert all(score.value is not None for score in read_scores(out / "scores.jsonl"))


def test_a_request_that_fails_leaves_no_score_and_never_passes(spec, tmp_path, openai_server, chat):
    answer = good(chat)

    def reply(path, body):
        if path == "/v1/chat/completions" and body["messages"][-1]["content"] == "say 7":
            return 400, {"error": "too long"}, {}
        return answer(path, body)

    server = openai_server(reply, ["tuned", "base"])
    evaluate(spec, arms(server.url), tmp_path / "out")
    scores = read_scores(tmp_path / "out" / "scores.jsonl")
    decision = decide(gates(CLAIMS[0]), scores)
    assert decision.verdict is Verdict.INVALID
    assert "lacks 1 of 60" in decision.reason
    assert "HTTP 400" in decision.reason


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (503, {"error": "busy"}, {"retry-after": "0"}),
        (429, {"error": "slow down"}, {"retry-after": "0"}),
    ],
)
def test_a_busy_server_is_asked_again_when_it_says(
    spec, tmp_path, openai_server, chat, status, body, headers
):
    answer = good(chat)
    refused = set()

    def reply(path, asked):
        key = json.dumps(asked, sort_keys=True)
        if key not in refused:
            refused.add(key)
            return status, body, headers
        return answer(path, asked)

    server = openai_server(reply, ["tuned", "base"])
    evaluate(spec, arms(server.url), tmp_path / "out")
    assert all(s.value is not None for s in read_scores(tmp_path / "out" / "scores.jsonl"))


@pytest.mark.parametrize(
    "broken",
    [
        b"<html>Bad gateway</html>",
        {"model": "tuned", "choices": []},
        {"model": "tuned", "choices": [{"message": {"content": None}}]},
        {"model": "other", "choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]},
    ],
    ids=["html", "empty", "no text", "another model"],
)
def test_replies_that_are_no_answer_are_errors_by_name(spec, tmp_path, openai_server, chat, broken):
    answer = good(chat)

    def reply(path, body):
        if path == "/v1/chat/completions" and body["messages"][-1]["content"] == "say 7":
            return 200, broken, {}
        return answer(path, body)

    server = openai_server(reply, ["tuned", "base"])
    evaluate(spec, arms(server.url), tmp_path / "out")
    missing = [s for s in read_scores(tmp_path / "out" / "scores.jsonl") if s.value is None]
    assert missing
    assert all(score.error for score in missing)


def test_a_server_that_is_not_there_is_unavailable(spec, tmp_path, openai_server, chat):
    server = openai_server(good(chat), ["tuned"])
    url = server.url.rsplit(":", 1)[0] + ":9"
    with pytest.raises(Unavailable, match="did not answer"):
        evaluate(spec, {"candidate": Arm(url, "tuned", "d")}, tmp_path / "out")


def test_a_model_that_is_not_served_is_named(spec, tmp_path, openai_server, chat):
    server = openai_server(good(chat), ["tuned"])
    with pytest.raises(InputError, match="does not serve 'base'; it serves tuned"):
        evaluate(spec, arms(server.url), tmp_path / "out")


def test_a_metric_that_fails_its_controls_makes_the_gate_invalid(tmp_path, openai_server, chat):
    rows = [{"prompt": f"say {i}", "completion": "+" * (i + 1)} for i in range(60)]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = EvaluateSpec.model_validate(
        {"suites": [{"name": "s", "kind": "task", "data": str(tmp_path / "eval.jsonl"),
                     "metrics": ["token_f1"]}]}
    )  # fmt: skip
    server = openai_server(good(chat), ["tuned"])
    evaluate(spec, {"candidate": Arm(server.url, "tuned", "d")}, tmp_path / "out")
    claim = {"id": "f1", "metric": "token_f1", "op": ">=", "value": 0.1}
    decision = decide(gates(claim), read_scores(tmp_path / "out" / "scores.jsonl"))
    assert decision.verdict is Verdict.INVALID
    assert "control failed: token_f1 gives the reference itself 0" in decision.reason
