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
