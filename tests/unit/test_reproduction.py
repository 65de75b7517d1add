from pathlib import Path

import pytest

from trainyard import lineage, reproduction


@pytest.fixture
def facts() -> lineage.Lineage:
    return lineage.Lineage(
        name="support",
        digest="a" * 64,
        created="2026-11-20T10:00:00+00:00",
        run_id="support-1",
        git=None,
        recipe=lineage.recipe_facts("recipes/support.yaml", "name: support\n", {"name": "support"}),
        base_model=lineage.BaseModelFacts(ref="base", revision="r1", digest="b" * 64),
        data=lineage.DataFacts(digest="d" * 64),
        training={},
        environment=lineage.environment(),
        verdict="PASS",
        gates=(
            {"suite": "tickets", "metric": "exact_match", "low": 0.9, "high": None},
            {"suite": "corpus", "metric": "perplexity", "low": 1.0, "high": 2.0, "against": "base"},
        ),
    )


def test_a_score_outside_its_recorded_interval_is_named(facts: lineage.Lineage) -> None:
    assert list(reproduction.outside(facts, {"tickets/exact_match": 0.95})) == []
    (said,) = reproduction.outside(facts, {"tickets/exact_match": 0.85})
    assert said == "tickets/exact_match is 0.85, recorded [0.9, None]"


def test_an_interval_of_a_difference_does_not_bound_a_score(facts: lineage.Lineage) -> None:
    assert list(reproduction.outside(facts, {"corpus/perplexity": 30.0})) == []


def test_what_differs_is_said_before_it_starts(facts: lineage.Lineage, tmp_path: Path) -> None:
    here = facts.environment
    then = here.model_copy(update={"packages": here.packages | {"torch": "1.0"}})
    git = lineage.Git(commit="c" * 40, branch="main", remote=None, dirty=False)
    old = facts.model_copy(update={"environment": then, "git": git})
    said = reproduction.foresee(old, tmp_path)
    assert any(line.startswith("torch: 1.0 then") for line in said)
    assert any("cccccccccccc is not in this repository" in line for line in said)


def test_the_same_adapter_is_a_reproduction_whatever_else(facts: lineage.Lineage) -> None:
    made = reproduction.Made(data_digest="d" * 64, digest=facts.digest, scores={})
    found = reproduction.Reproduction(
        name="support", digest=facts.digest, made=made, differences=("cpus: 8 then",), outside=()
    )
    assert found.identical
    assert found.as_text() == "support@aaaaaaaaaaaa was made again, byte by byte"
