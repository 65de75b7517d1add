"""Whatever stands in the scores, a gate gives a named verdict: never a pass, never a crash."""

import json
import warnings

import pytest

from trainyard.cli import main

GATES = {
    "accuracy": ("accuracy", ">= 0.5", 1.0),
    "harmful_rate": ("harmful", "<= 0.5", 0.0),
    "over_refusal": ("refused", "<= 0.5", 0.0),
    "bias_rate": ("biased", "<= 0.5", 0.0),
    "capability_drop": ("capability", "<= 0.5", 1.0),
    "rougeL": ("rougeL", ">= 0.1", 0.9),
    "bleu": ("bleu", ">= 0.1", 50.0),
    "macro_f1": ("macro_f1", ">= 0.1", 1.0),
    "perplexity_ratio": ("perplexity", "<= 5", 2.0),
    "perplexity": ("perplexity", "<= 5", 2.0),
    "bits_per_byte": ("bits_per_byte", "<= 5", 2.0),
    "p99_latency_ms": ("latency_ms", "<= 50", 5.0),
}


def rows(metric, value, arm, n=400, **more):
    return [{"id": f"i{i}", "suite": "t", "metric": metric, "arm": arm, "value": value, **more}
            for i in range(n)]  # fmt: skip


def both(change):
    """The candidate's rows after `change`, and the base's as they should be."""
    return lambda metric, value: [
        *change(rows(metric, value, "candidate")), *rows(metric, value, "base")
    ]  # fmt: skip


def every(**fields):
    return both(lambda given: [{**row, **fields} for row in given])


def first(**fields):
    return both(lambda given: [{**given[0], **fields}, *given[1:]])


BAD = {
    "empty": lambda *_: [],
    "another metric": lambda _, value: rows("other", value, "candidate"),
    "no candidate": lambda metric, value: rows(metric, value, "base"),
    "one item": lambda metric, value: [
        *rows(metric, value, "candidate", 1), *rows(metric, value, "base", 1)],
    "NaN": first(value=float("nan")),
    "infinite": first(value=float("inf")),
    "null": first(value=None),
    "all null": every(value=None),
    "twice": both(lambda given: [*given, given[0]]),
    "a failed control": every(value=None, error="control failed"),
    "huge": every(value=1e308),
    "huge integer": every(value=10**400),
    "both signs": both(lambda given: [
        {**row, "value": (-1) ** i * 1e300} for i, row in enumerate(given)]),
    "negative": every(value=-1.0),
    "text": first(value="1"),
    "no value": both(lambda given: [{k: v for k, v in row.items() if k != "value"}
                                    for row in given]),
    "cut": every(truncated=True),
    "no weight": every(weight=0),
    "one cluster": lambda metric, value: [
        *rows(metric, value, "candidate", cluster="c"), *rows(metric, value, "base", cluster="c")],
    "id is a list": first(id=["x"]),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("gate", GATES)
def test_no_bad_scores_pass_or_crash(tmp_path, capsys, gate, bad):
    metric, claim, value = GATES[gate]
    (tmp_path / "spec.yaml").write_text(f'gates: {{{gate}: "{claim}"}}')
    lines = [json.dumps(row) for row in BAD[bad](metric, value)]
    (tmp_path / "scores.jsonl").write_text("\n".join(lines))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code = main(["gate", "--spec", str(tmp_path / "spec.yaml"), "--scores",
                     str(tmp_path / "scores.jsonl"), "--json"])  # fmt: skip
    out, err = capsys.readouterr()
    if code == 2:
        assert len(err.splitlines()) == 1
        return
    assert code == 1
    found = json.loads(out, parse_constant=pytest.fail)["gates"][0]
    assert found["verdict"] in ("FAIL", "INCONCLUSIVE", "INVALID")
    assert found["reason"]
    assert found["next"] or found["verdict"] == "FAIL"


@pytest.mark.parametrize(
    ("spec", "code", "says"),
    [
        ('{zzz: ">= 0.5"}', 1, "no scores of metric 'zzz'; there are scores of accuracy"),
        ('{accuracy: {limit: ">= 0.5", suite: gone}}', 1, "suite 'gone' has no scores"),
        ('{accuracy: {limit: ">= 0.5", slice: a=b}}', 1, "slice a=b has no accuracy scores"),
        ("{accuracy: {compare: champion, max_drop: 0.1}}", 1, "no accuracy scores of the champion"),
        ('{win_rate: "> 0.5"}', 1, "there are no judgements"),
        ("{parity: block}", 1, "was not measured"),
        ('{parity: ">= 1"}', 2, "takes `block` or `warn`"),
        ("{accuracy: .nan}", 2, "has the limit nan"),
        ("{accuracy: null}", 2, "has the limit None"),
        ("null", 2, "gates"),
    ],
)
def test_gates_that_cannot_be_decided_say_why(tmp_path, capsys, spec, code, says):
    (tmp_path / "spec.yaml").write_text(f"gates: {spec}")
    given = rows("accuracy", 1.0, "candidate")
    (tmp_path / "scores.jsonl").write_text("\n".join(json.dumps(row) for row in given))
    found = main(["gate", "--spec", str(tmp_path / "spec.yaml"), "--scores",
                  str(tmp_path / "scores.jsonl")])  # fmt: skip
    assert found == code
    assert says in "".join(capsys.readouterr())
