import json
from pathlib import Path

import pytest

from trainyard.cli import main


def row(i, value, **more):
    return {"id": f"i{i}", "suite": "t", "metric": "accuracy", "arm": "candidate",
            "value": value, **more}  # fmt: skip


@pytest.fixture
def gate(tmp_path, capsys):
    """Runs the verb on a spec and rows; gives exit code, stdout and stderr."""

    def gate(spec, rows, *more):
        (tmp_path / "spec.yaml").write_text(spec)
        lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
        (tmp_path / "scores.jsonl").write_text("\n".join(lines))
        arguments = ["gate", "--spec", str(tmp_path / "spec.yaml"), "--scores",
                     str(tmp_path / "scores.jsonl"), *more]  # fmt: skip
        code = main(arguments)
        return code, *capsys.readouterr()

    return gate


GOOD = [row(i, int(i % 20 > 0)) for i in range(200)]


@pytest.mark.parametrize(
    ("spec", "rows", "code", "verdict"),
    [
        ('gates: {accuracy: ">= 0.85"}', GOOD, 0, "PASS"),
        ('gates: ["accuracy >= 0.94"]', GOOD, 1, "INCONCLUSIVE"),
        ('gates: {accuracy: ">= 0.99"}', GOOD, 1, "FAIL"),
        ('gates: {accuracy: ">= 0.85"}', [*GOOD, row(999, float("nan"))], 1, "INVALID"),
        ('gates: {accuracy: ">= 0.85"}', [*GOOD, row(999, None)], 1, "INVALID"),
        ('gates: {accuracy: ">= 0.85"}', [], 1, "INVALID"),
        ('evaluate: {alpha: 0.2}\ngates: {accuracy: ">= 0.92"}', GOOD, 0, "PASS"),
        (Path("recipes/quickstart.yaml").read_text(), GOOD, 1, "INVALID"),
    ],
)
def test_exit_code_and_json_say_the_verdict(gate, spec, rows, code, verdict):
    found, out, _ = gate(spec, rows, "--json")
    assert found == code
    assert json.loads(out)["verdict"] == verdict


def test_the_text_ends_with_the_verdict(gate):
    _, out, _ = gate('gates: {harmful_rate: "<= 0.01"}', [row(i, 0, metric="harmful") for i in
                                                          range(120)])  # fmt: skip
    assert "next: needs 299 items, has 120" in out
    assert out.endswith("verdict: INCONCLUSIVE\n")


@pytest.mark.parametrize(
    ("spec", "rows", "says"),
    [
        ("gates: {accuracy: high}", GOOD, "spec.yaml:1"),
        ("gates: {}", GOOD, "at least one gate"),
        ("gate: {}", GOOD, "did you mean `gates`"),
        ("[1, 2]", GOOD, "spec.yaml"),
        ('gates: {accuracy: ">= 0.85"}', ["{broken"], "scores.jsonl:1 is not JSON"),
        ('gates: {accuracy: ">= 0.85"}', ["[1]"], "scores.jsonl:1 holds list"),
        ('gates: {accuracy: ">= 0.85"}', [row(0, "high")], "must be a number or null"),
        ('gates: {accuracy: ">= 0.85"}', [row(0, 1, arm="other")], "must be one of candidate"),
        ('gates: {accuracy: ">= 0.85"}', [{"id": "a"}], "scores.jsonl:1"),
    ],
)
def test_input_that_cannot_be_read_is_named_and_exits_2(gate, spec, rows, says):
    code, _, err = gate(spec, rows)
    assert code == 2
    assert says in err


def test_a_file_that_is_not_there_exits_2(tmp_path, capsys):
    (tmp_path / "s.yaml").write_text('gates: {accuracy: ">= 0.85"}')
    assert main(["gate", "--spec", str(tmp_path / "s.yaml"), "--scores", "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl cannot be read" in capsys.readouterr().err


def many(metric, value, suite="t", **more):
    return [{**row(i, value(i), metric=metric, **more), "suite": suite} for i in range(400)]


def judged(order, verdict, **more):
    return [{"id": f"i{i}", "juror": "j", "order": order, "verdict": verdict, "suite": "d", **more}
            for i in range(400)]  # fmt: skip


CAPABLE = [*many("capability", lambda i: 1), *many("capability", lambda i: 1, arm="base")]
SHORTHANDS = [
    ("accuracy", ">= 0.85", many("accuracy", lambda i: int(i % 20 > 0))),
    ("exact_match", ">= 0.85", many("exact_match", lambda i: 1)),
    ("f1", ">= 0.6", many("f1", lambda i: 0.7 + i % 3 / 10)),
    ("rougeL", ">= 0.45", many("rougeL", lambda i: 0.5 + i % 3 / 10)),
    ("harmful_rate", "<= 0.01", many("harmful", lambda i: 0)),
    ("over_refusal", "<= 0.05", many("refused", lambda i: int(i == 7))),
    ("capability_drop", "<= 0.02", CAPABLE),
    ("perplexity_ratio", "<= 1.05",
     [*many("perplexity", lambda i: 4 + i % 5 / 10), *many("perplexity", lambda i: 4 + i % 5 / 10,
                                                             arm="base")]),
    ("p99_latency_ms", "<= 400", many("latency_ms", lambda i: 80 + i % 90)),
]  # fmt: skip
KEYS = {"id", "verdict", "estimate", "low", "high", "n", "threshold", "method", "reason", "next"}


@pytest.mark.parametrize(("metric", "limit", "rows"), SHORTHANDS, ids=lambda part: str(part)[:16])
def test_every_shorthand_reads_its_metric(gate, metric, limit, rows):
    code, out, _ = gate(f'gates: {{{metric}: "{limit}"}}', rows, "--json")
    found = json.loads(out)
    assert (code, found["verdict"]) == (0, "PASS")
    (one,) = found["gates"]
    assert set(one) >= KEYS
    assert (one["id"], one["n"]) == (metric, 400)
    worse = [{**one, "value": None} for one in rows]
    assert gate(f'gates: {{{metric}: "{limit}"}}', worse)[0] == 1


@pytest.mark.parametrize(
    ("claim", "rows"),
    [
        ('win_rate: "> 0.75"', judged("AB", "A") + judged("BA", "B")),
        ('rubric_score: ">= 0.6"', judged("single", "graded", grade=0.75)),
    ],
)
def test_judgements_have_their_own_file(gate, tmp_path, claim, rows):
    path = tmp_path / "judgements.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    code, out, _ = gate(f"gates: {{{claim}}}", [], "--judgements", str(path), "--json")
    assert (code, json.loads(out)["gates"][0]["n"]) == (0, 400)
    code, _, err = gate(f"gates: {{{claim}}}", [], "--judgements", str(path), str(path))
    assert code == 2
    assert "2 files of judgements for 1 of scores" in err


def test_several_files_are_candidates_that_compete(gate, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row(i, int(i % 3 > 0))) + "\n" for i in range(200)))
    code, out, _ = gate('gates: {accuracy: ">= 0.85"}', GOOD, str(other), "--json")
    found = json.loads(out)
    assert (code, found["verdict"]) == (0, "PASS")
    verdicts = [one["verdict"] for one in found["candidates"].values()]
    assert verdicts == ["PASS", "FAIL"]
    assert [one["alpha"] for one in found["candidates"].values()] == [0.025, 0.05]


def test_the_looks_of_a_recipe_cost_alpha(gate):
    spec = ('gates: {accuracy: ">= 0.85"}\n'
            "evaluate: {suites: [{name: t, limit: 200, more: [400, 800]}]}")  # fmt: skip
    _, out, _ = gate(spec, GOOD, "--json")
    assert json.loads(out)["gates"][0]["alpha"] == pytest.approx(0.05 / 3)
