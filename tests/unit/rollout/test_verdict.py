import math
import random
from collections.abc import Iterator

import pytest

from trainyard.rollout.verdict import (
    Bet,
    Evidence,
    Outcome,
    Rules,
    Stratum,
    freeze,
    hypergeometric,
    judge,
    learn,
    take,
)

RULES = Rules(min_requests=30, requests=300, margin=0.02, alpha=0.01, latency_tolerance=1.15)


def answers(
    rng: random.Random,
    n: int,
    *,
    canary: bool,
    errors: float = 0.005,
    factor: float = 1.0,
    flags: tuple[str, ...] = (),
    flagged: float = 0.0,
    source: str = "live",
) -> Iterator[Outcome]:
    for i in range(n):
        yield Outcome(
            canary=canary,
            failed=rng.random() < errors,
            seconds=rng.lognormvariate(math.log(0.3), 0.5) * factor,
            flags=flags if rng.random() < flagged else (),
            source=source,  # type: ignore[arg-type]
            request_id=f"r{i}",
        )


def looks(seed: int, count: int, **canary: float) -> tuple[str, int, Evidence]:
    """Decision, looks until it, and the evidence: 285 champion and 15 canary answers a look."""
    rng, evidence = random.Random(seed), Evidence()
    for _ in range(4):
        evidence = learn(evidence, list(answers(rng, 285, canary=False)), RULES)
    rules = RULES._replace(requests=10**9, margin=0.02)
    for look in range(count):
        block = [*answers(rng, 285, canary=False), *answers(rng, 15, canary=True, **canary)]  # type: ignore[arg-type]
        evidence = take(evidence, block, rules)
        found = judge(evidence, rules, (look + 1) * 15)
        if found.decision == "abort":
            return "abort", look + 1, evidence
    return "end", count, evidence


@pytest.mark.parametrize(
    ("canary", "at_most"),
    [
        ({"errors": 1.0}, 1),  # one look: 15 failures in a row
        ({"errors": 0.2}, 6),
        ({"errors": 0.05}, 30),
        ({"factor": 1.3}, 12),
        ({"factor": 2.0}, 4),
    ],
)
def test_a_sick_canary_is_found(canary: dict[str, float], at_most: int) -> None:
    decision, used, _ = looks(1, 40, **canary)
    assert (decision, used <= at_most) == ("abort", True)


def test_healthy_canaries_are_aborted_no_more_often_than_alpha() -> None:
    aborted = sum(looks(seed, 10)[0] == "abort" for seed in range(60))
    assert aborted <= 2  # alpha 0.01 of 60 runs; P(more than 2) < 3 %


def test_a_faster_canary_goes_on() -> None:
    assert looks(3, 10, factor=0.6)[0] == "end"


def test_errors_that_both_share_are_no_reason() -> None:
    rng, evidence = random.Random(5), Evidence()
    for look in range(20):
        block = [
            *answers(rng, 100, canary=False, errors=0.05),
            *answers(rng, 20, canary=True, errors=0.05),
        ]
        evidence = take(evidence, block, RULES)
        assert judge(evidence, RULES, look).decision == "wait"


# P(k of 4 hits are among 5 of 10 answers): C(5,k) C(5,4-k) / C(10,4), by hand 5 50 100 50 5 of 210
def test_without_a_difference_hits_fall_by_the_hypergeometric_law() -> None:
    found = [math.exp(hypergeometric(k, 4, 5, 5, (1.0,))[0]) * 210 for k in range(5)]
    assert found == pytest.approx([5, 50, 100, 50, 5])


def test_with_a_difference_hits_fall_by_fishers_law() -> None:
    """The same ways, weighed by odds ** k: 5 100 400 400 80 of 985 at odds 2."""
    found = [math.exp(hypergeometric(k, 4, 5, 5, (2.0,))[0]) * 985 for k in range(5)]
    assert found == pytest.approx([5, 100, 400, 400, 80])


@pytest.mark.parametrize("odds", [1.0, 1.2])
def test_the_bet_is_fair_at_the_null_whatever_the_block_has_in_common(odds: float) -> None:
    """Mean capital is 1 for every number of hits: Ville's inequality rests on it."""
    for hits in range(1, 30):
        capital = 0.0
        for k in range(max(0, hits - 20), min(10, hits) + 1):
            chance = math.exp(hypergeometric(k, hits, 10, 20, (odds,))[0])
            logs = Bet().take(k, 10, hits - k, 20, odds=odds).logs
            capital += chance * sum(map(math.exp, logs)) / len(logs)
        assert capital == pytest.approx(1)


def test_waves_that_both_share_are_no_reason() -> None:
    rng, evidence = random.Random(5), Evidence()
    for look in range(40):
        wave = 2.0 if look % 8 < 4 else 0.5
        block = [
            *answers(rng, 100, canary=False, factor=wave),
            *answers(rng, 20, canary=True, factor=wave),
        ]
        evidence = take(evidence, block, RULES)
        assert judge(evidence, RULES, 0).e_value < 10


def test_five_failures_in_a_row_end_it_in_one_look() -> None:
    fine = [Outcome(canary=False, failed=False, seconds=0.1)] * 5
    failed = [Outcome(canary=True, failed=True, request_id=f"r{i}") for i in range(5)]
    found = judge(take(Evidence(), fine + failed, RULES), RULES, 5)
    assert found.decision == "abort"
    assert found.reason == "5 failed or empty answers of the canary in a row"
    assert found.samples == ("r0", "r1", "r2", "r3", "r4")


def test_a_row_goes_on_over_two_looks_and_one_good_answer_ends_it() -> None:
    failed = [Outcome(canary=True, failed=True)] * 3
    evidence = take(Evidence(), failed, RULES)
    good = take(evidence, [Outcome(canary=True, failed=False, seconds=0.1), *failed], RULES)
    assert good.failures_in_a_row == 3
    assert take(evidence, failed, RULES).failures_in_a_row == 6


@pytest.mark.parametrize("flag", ["empty", "format", "refusal", "length", "repetition"])
def test_bad_output_is_found_though_every_request_succeeds(flag: str) -> None:
    rng, evidence = random.Random(2), Evidence()
    for look in range(12):
        block = [
            *answers(rng, 60, canary=False, errors=0),
            *answers(rng, 20, canary=True, errors=0, flags=(flag,), flagged=0.4),
        ]
        rng.shuffle(block)
        evidence = take(evidence, block, RULES)
        found = judge(evidence, RULES, look)
        if found.decision == "abort":
            break
    assert found.decision == "abort"
    assert found.metric in (flag, "failed")


def test_the_reason_carries_metric_both_rates_n_e_value_and_samples() -> None:
    _, _, evidence = looks(1, 40, errors=0.2)
    found = judge(evidence, RULES, 60)
    assert found.metric == "failed"
    for part in ("failed: canary ", "% of ", "champion ", "live requests", "e-value", "past 100"):
        assert part in found.reason
    assert found.samples


def test_live_and_replayed_prompts_are_never_compared_with_each_other() -> None:
    """Replayed prompts are slower for both variants: mixed, the canary would look slow."""
    rng, evidence = random.Random(4), Evidence()
    for look in range(20):
        block = [
            *answers(rng, 100, canary=False, errors=0),
            *answers(rng, 10, canary=False, errors=0, factor=5, source="replay"),
            *answers(rng, 10, canary=True, errors=0, factor=5, source="replay"),
        ]
        evidence = take(evidence, block, RULES)
        assert judge(evidence, RULES, look).decision == "wait"


def test_few_answers_wait_and_a_planned_sample_goes_on() -> None:
    rng = random.Random(6)
    block = [*answers(rng, 40, canary=False, errors=0), *answers(rng, 20, canary=True, errors=0)]
    evidence = take(Evidence(), block, RULES)
    assert judge(evidence, RULES, 20).decision == "wait"
    assert "20 canary answers of at least 30" in judge(evidence, RULES, 20).reason
    assert judge(evidence, RULES, 300).decision == "go_on"


def test_a_step_goes_on_early_when_a_rise_by_the_margin_is_excluded() -> None:
    rules = RULES._replace(margin=0.1, min_requests=10, requests=1000)
    rng, evidence = random.Random(8), Evidence()
    for look in range(20):
        block = [
            *answers(rng, 10, canary=False, errors=0),
            *answers(rng, 10, canary=True, errors=0),
        ]
        evidence = take(evidence, block, rules)
        found = judge(evidence, rules, 10 * (look + 1))
        if found.decision == "go_on":
            break
    assert found.decision == "go_on"
    assert "exclude 10% more failures" in found.reason
    assert 3 <= look <= 8


def test_answers_of_one_variant_alone_wait_for_the_other() -> None:
    canary = [Outcome(canary=True, failed=True)] * 2
    evidence = take(Evidence(), canary, RULES)
    assert evidence.live.pending == tuple(canary)
    after = take(evidence, [Outcome(canary=False, failed=False, seconds=0.1)], RULES)
    assert after.live.pending == ()
    assert after.live.bets["failed"].canary_hits == 2


def test_evidence_survives_its_way_through_json() -> None:
    _, _, evidence = looks(9, 3)
    assert Evidence.model_validate_json(evidence.model_dump_json()) == evidence


def test_cut_points_are_the_champions_quantiles() -> None:
    assert freeze([float(i) for i in range(100)]) == (50.0, 75.0, 90.0, 99.0)


def test_cut_points_never_move_once_frozen() -> None:
    rng = random.Random(1)
    before = learn(Evidence(), list(answers(rng, 60, canary=False)), RULES)
    after = learn(before, list(answers(rng, 60, canary=False, factor=9)), RULES)
    assert before.live.cuts is not None
    assert after.live.cuts == before.live.cuts


def test_no_evidence_is_no_verdict() -> None:
    assert judge(Evidence(), RULES, 0).decision == "wait"
    assert take(Evidence(), [], RULES).live == Stratum()
