import json
import math
from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter

from trainyard.evaluation.scores import Judgement, Score
from trainyard.gate import Rules, Verdict, decide, decide_best_of
from trainyard.recipe.gates import GateSpecs

read = TypeAdapter(GateSpecs).validate_python


def scores(values, metric="accuracy", arm="candidate", suite="task", **more):
    return [
        Score(f"i{i}", suite, metric, arm, None if v is None else float(v), **more)
        for i, v in enumerate(values)
    ]


def ones(k, n):
    return [1] * k + [0] * (n - k)


def verdict(claims, rows, judged=(), rules=None):
    return decide(read(claims), rows, judged, rules).gates[0]


def judgements(items, *, verdicts=("A", "B"), juror="j", **more):
    """Wins in both orders unless told otherwise."""
    return [
        Judgement(f"i{i}", juror, order, answer, **more)
        for i in range(items)
        for order, answer in zip(("AB", "BA"), verdicts, strict=True)
    ]


@pytest.mark.parametrize(
    ("right", "n", "expected"),
    [
        (180, 200, "PASS"),
        (170, 200, "INCONCLUSIVE"),  # at the limit
        (175, 200, "INCONCLUSIVE"),  # above it by less than chance explains
        (150, 200, "FAIL"),
        (20, 20, "PASS"),
        (18, 18, "INCONCLUSIVE"),  # 0.85^18 = 0.054
    ],
)
def test_a_rate_passes_only_when_its_bound_is_past_the_limit(right, n, expected):
    assert verdict({"accuracy": ">= 0.85"}, scores(ones(right, n))).verdict == expected


@pytest.mark.parametrize(
    ("failures", "n", "expected", "needed"),
    [
        (0, 299, "PASS", None),
        (0, 298, "INCONCLUSIVE", 299),
        (0, 120, "INCONCLUSIVE", 299),
        (1, 472, "INCONCLUSIVE", 473),
        (1, 473, "PASS", None),
        (30, 300, "FAIL", None),
    ],
)
def test_one_percent_harm_is_proven_by_299_clean_prompts(failures, n, expected, needed):
    found = verdict({"harmful_rate": "<= 0.01"}, scores(ones(failures, n), "harmful"))
    assert (found.verdict, found.needed) == (expected, needed)
    assert found.method == "clopper_pearson"
    if needed:
        assert found.next == f"needs {needed} items, has {n}"


def pairs(both, wins, losses, neither, arm="base"):
    mine = [1] * both + [1] * wins + [0] * losses + [0] * neither
    theirs = [1] * both + [0] * wins + [1] * losses + [0] * neither
    return scores(mine, "capability") + scores(theirs, "capability", arm)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ((700, 10, 10, 280), "PASS"),
        ((60, 2, 2, 36), "INCONCLUSIVE"),
        ((700, 0, 100, 200), "FAIL"),
        ((100, 0, 0, 48), "INCONCLUSIVE"),  # no pair differs, and 0.98^148 = 0.0503
        ((100, 0, 0, 49), "PASS"),
    ],
)
def test_a_drop_is_excluded_pair_by_pair(cells, expected):
    assert verdict({"capability_drop": "<= 0.02"}, pairs(*cells)).verdict == expected


def test_a_drop_is_excluded_against_the_champion_too_where_there_is_one():
    rows = pairs(700, 10, 10, 280)
    champion = [replace(row, arm="champion", value=1.0) for row in rows if row.arm == "base"]
    found = verdict({"capability_drop": "<= 0.02"}, rows + champion)
    assert found.verdict is Verdict.FAIL
    assert [part.verdict for part in found.parts] == [Verdict.PASS, Verdict.FAIL]
    assert found.against == "champion"


def test_a_collapsed_task_does_not_hide_behind_the_average():
    rows = pairs(900, 20, 0, 80)
    other = pairs(850, 0, 80, 70)
    rows += [replace(row, suite="other") for row in other]
    loose = {"id": "cap", "metric": "capability", "compare": "base", "max_drop": 0.06}
    assert verdict([loose], rows).verdict is Verdict.PASS
    found = verdict([{**loose, "per_task_max_drop": 0.07}], rows)
    assert found.verdict is not Verdict.PASS
    assert "suite other" in found.reason


def test_a_ratio_of_perplexities_is_bounded_over_documents():
    rng = np.random.default_rng(1)
    tokens = rng.integers(10, 200, 100)
    base = np.exp(rng.normal(2, 0.3, 100))
    tuned = base * np.exp(rng.normal(0.02, 0.05, 100))

    def rows(arm, values):
        return [
            Score(f"d{i}", "corpus", "perplexity", arm, float(v), weight=float(w))
            for i, (v, w) in enumerate(zip(values, tokens, strict=True))
        ]

    both = rows("candidate", tuned) + rows("base", base)
    found = verdict({"perplexity_ratio": "<= 1.05"}, both)
    expected = math.exp(np.sum(tokens * np.log(tuned / base)) / tokens.sum())
    assert found.verdict is Verdict.PASS
    assert found.estimate == pytest.approx(expected)
    assert found.low < found.estimate < found.high <= 1.05
    assert verdict({"perplexity_ratio": "<= 1.01"}, both).verdict is not Verdict.PASS


def test_perplexities_of_different_tokenizers_are_not_compared():
    rows = scores([5.0] * 30, "perplexity", weight=10.0)
    rows += scores([5.0] * 30, "perplexity", "base", weight=11.0)
    found = verdict({"perplexity_ratio": "<= 1.05"}, rows)
    assert found.verdict is Verdict.INVALID
    assert "bits_per_byte" in found.next


def test_p99_needs_299_answers_below_the_limit():
    fast = scores(range(299), "latency_ms")
    assert verdict({"p99_latency_ms": "<= 400"}, fast).verdict is Verdict.PASS
    found = verdict({"p99_latency_ms": "<= 400"}, fast[:298])
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.high is None


def test_scores_in_clusters_count_less():
    values = [1] * 9 + [0]
    apart = scores(values * 40)
    together = [
        replace(row, cluster=f"c{i // 40}")
        for i, row in enumerate(scores([v for v in values for _ in range(40)]))
    ]
    assert verdict({"accuracy": ">= 0.85"}, apart).verdict is Verdict.PASS
    found = verdict({"accuracy": ">= 0.85"}, together)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert (found.clusters, found.method) == (10, "clustered_clopper_pearson")


def test_all_right_in_few_clusters_proves_as_little_as_the_clusters():
    rows = [replace(r, cluster=f"c{i // 100}") for i, r in enumerate(scores([0] * 1000, "harmful"))]
    assert verdict({"harmful_rate": "<= 0.01"}, rows).verdict is Verdict.INCONCLUSIVE


def test_one_slice_can_be_held_to_a_limit():
    rows = [replace(r, slice=("lang=de",)) for r in scores(ones(10, 100))]
    rows += [replace(r, id=f"x{r.id}", slice=("lang=en",)) for r in scores(ones(100, 100))]
    claim = {"id": "de", "metric": "accuracy", "op": ">=", "value": 0.8}
    assert verdict([{**claim, "slice": "lang=en"}], rows).verdict is Verdict.PASS
    assert verdict([{**claim, "slice": "lang=de"}], rows).verdict is Verdict.FAIL
    assert verdict([{**claim, "slice": "lang=fr"}], rows).verdict is Verdict.INVALID


GOOD = scores([1] * 400)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "no scores at all"),
        (scores([1] * 400, "rougeL"), "there are scores of rougeL"),
        (scores([1] * 400, arm="base"), "no accuracy scores of the candidate"),
        (GOOD[:1], "one item proves nothing"),
        ([*GOOD, replace(GOOD[0], value=0.0)], "more than once"),
        ([*GOOD[1:], replace(GOOD[0], value=math.nan)], "not finite"),
        ([*GOOD[1:], replace(GOOD[0], value=math.inf)], "not finite"),
        ([*GOOD[1:], replace(GOOD[0], value=None, error="HTTP 500")], "lacks 1 of 400"),
        ([replace(row, truncated=i < 30) for i, row in enumerate(GOOD)], "cut at max_tokens"),
    ],
    ids=["empty", "metric", "arm", "one", "twice", "nan", "inf", "null", "truncated"],
)
def test_scores_that_cannot_be_trusted_never_pass(rows, says):
    found = verdict({"accuracy": ">= 0.85"}, rows)
    assert found.verdict is Verdict.INVALID
    assert says in found.reason
    assert found.next


def test_a_missing_pair_is_never_dropped():
    rows = pairs(700, 10, 10, 280)
    found = verdict({"capability_drop": "<= 0.02"}, rows[1:])
    assert found.verdict is Verdict.INVALID
    assert "scored on one arm only" in found.reason


def test_missing_scores_count_as_the_worst_where_some_are_allowed():
    rows = [replace(row, value=None) if i < 4 else row for i, row in enumerate(GOOD)]
    found = verdict({"accuracy": ">= 0.85"}, rows, rules=Rules(max_invalid=0.02))
    assert found.verdict is Verdict.PASS
    assert (found.estimate, found.invalid) == (0.99, 4)
    harmful = scores([None] * 4 + [0] * 996, "harmful")
    found = verdict({"harmful_rate": "<= 0.001"}, harmful, rules=Rules(max_invalid=0.02))
    assert found.estimate == 0.004


@pytest.mark.parametrize(("metric", "value"), [("rougeL", 0.5), ("my_score", 7.0)])
def test_identical_scores_have_no_spread_to_trust(metric, value):
    found = verdict({metric: ">= 0.4"}, scores([value] * 15, metric))
    assert found.verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (judgements(200), "PASS"),
        (judgements(200, verdicts=("A", "A")), "FAIL"),  # whoever comes first wins: all ties
        (judgements(200, verdicts=("tie", "tie")), "FAIL"),
        (judgements(10), "INCONCLUSIVE"),
        (judgements(190) + judgements(200, verdicts=("invalid", "B"))[380:], "INCONCLUSIVE"),
        (judgements(200)[:-1], "INVALID"),
        (judgements(200) + judgements(1), "INVALID"),
        ([], "INVALID"),
    ],
    ids=["wins", "first", "ties", "few", "invalid", "missing order", "twice", "none"],
)
def test_a_win_rate_needs_both_orders_and_few_invalid_calls(rows, expected):
    assert verdict({"win_rate": "> 0.75"}, [], rows).verdict == expected


@pytest.mark.parametrize(("wins", "expected"), [(161, "PASS"), (160, "INCONCLUSIVE")])
def test_161_of_200_prove_a_win_rate_above_three_quarters(wins, expected):
    rows = judgements(wins)
    rows += [replace(row, id=f"l{row.id}") for row in judgements(200 - wins, verdicts=("B", "A"))]
    assert verdict({"win_rate": "> 0.75"}, [], rows).verdict == expected


def test_an_uncalibrated_judge_never_passes():
    rows = judgements(400, fingerprint="f", calibrated=False)
    found = verdict({"win_rate": "> 0.5"}, [], rows)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "judge_uncalibrated" in found.reason
    assert verdict({"win_rate": "> 0.5"}, [], judgements(400, fingerprint="f", calibrated=True)
                   ).verdict is Verdict.PASS  # fmt: skip
    strict = [{"win_rate": {"limit": "> 0.5", "require_calibration": True}}]
    assert verdict(strict, [], judgements(400)).verdict is Verdict.INCONCLUSIVE


def test_a_judge_that_changes_in_the_middle_is_invalid():
    rows = judgements(100, fingerprint="f", calibrated=True)
    rows[7] = replace(rows[7], fingerprint="g")
    assert verdict({"win_rate": "> 0.5"}, [], rows).verdict is Verdict.INVALID


def test_labels_of_people_correct_the_judge():
    rng = np.random.default_rng(1)
    good = rng.random(600) < 0.6
    rows = []
    for i, wins in enumerate(good):
        said = "A" if wins or rng.random() < 0.5 else "B"  # the judge forgives half the losses
        other = "B" if said == "A" else "A"
        rows += [Judgement(f"i{i}", "j", "AB", said), Judgement(f"i{i}", "j", "BA", other)]
        if i < 200:
            rows.append(Judgement(f"i{i}", "human", "AB", "A" if wins else "B", human=True))
    found = verdict({"win_rate": "> 0.7"}, [], rows)
    assert found.method == "ppi++"
    assert found.verdict is Verdict.FAIL
    assert found.low < 0.6 < found.high


def test_the_whole_passes_only_when_every_blocking_gate_does():
    rows = GOOD + scores(ones(1, 400), "harmful")
    claims = {"accuracy": ">= 0.85", "harmful_rate": "<= 0.01"}
    assert decide(read(claims), rows).verdict is Verdict.INCONCLUSIVE
    warned = {**claims, "harmful_rate": {"limit": "<= 0.01", "severity": "warn"}}
    decision = decide(read(warned), rows)
    assert decision.verdict is Verdict.PASS
    assert "harmful_rate (warn) INCONCLUSIVE" in decision.warnings[0]


def test_warnings_alone_prove_nothing():
    decision = decide(read({"accuracy": {"limit": ">= 0.85", "severity": "warn"}}), GOOD)
    assert decision.verdict is Verdict.INVALID


def test_a_point_decision_is_printed_as_weak():
    found = verdict({"accuracy": {"limit": ">= 0.85", "decision": "point"}}, scores(ones(17, 20)))
    assert found.verdict is Verdict.PASS
    assert found.weak
    assert "weak evidence" in found.reason


def test_the_best_of_several_needs_more():
    rows = scores(ones(180, 200))
    assert verdict({"accuracy": ">= 0.85"}, rows).verdict is Verdict.PASS
    best = {"accuracy": {"limit": ">= 0.85", "best_of": 5}}
    assert verdict(best, rows).verdict is Verdict.INCONCLUSIVE


def test_many_attempts_on_one_eval_set_are_warned_of():
    decision = decide(read({"accuracy": ">= 0.85"}), GOOD, rules=Rules(attempts=6))
    assert "6 other candidates" in decision.warnings[-1]
    assert "30%" in decision.warnings[-1]


def test_the_same_scores_in_any_order_give_the_same_record():
    rng = np.random.default_rng(1)
    rows = scores(rng.beta(5, 2, 200), "rougeL")
    mixed = [rows[i] for i in rng.permutation(200)]
    assert verdict({"rougeL": ">= 0.7"}, rows) == verdict({"rougeL": ">= 0.7"}, mixed)


def test_the_first_release_has_no_champion_to_be_worse_than():
    claims = [
        {"id": "a", "metric": "accuracy", "op": ">=", "value": 0.85},
        {"id": "c", "metric": "accuracy", "compare": "champion", "max_drop": 0.02},
        {"id": "w", "metric": "win_rate", "op": ">", "value": 0.4, "opponent": "champion"},
    ]
    assert decide(read(claims), GOOD).verdict is Verdict.INVALID
    first = decide(read(claims), GOOD, rules=Rules(has_champion=False))
    assert first.verdict is Verdict.PASS
    assert [one.severity for one in first.gates] == ["block", "warn", "warn"]
    assert (
        decide(read(claims[1:]), GOOD, rules=Rules(has_champion=False)).verdict is Verdict.INVALID
    )


def test_a_decision_is_strict_json():
    fast = scores(range(10), "latency_ms")
    decision = decide(read({"p99_latency_ms": "<= 400", "accuracy": ">= 0.5"}), fast + GOOD)
    text = json.dumps(decision.as_json(), allow_nan=False)
    record = json.loads(text)["gates"][0]
    keys = {
        "id",
        "verdict",
        "estimate",
        "low",
        "high",
        "n",
        "threshold",
        "method",
        "reason",
        "next",
    }
    assert keys <= set(record)


def test_a_relative_drop_is_a_share_of_the_other_arm():
    rng = np.random.default_rng(1)
    base = rng.uniform(20, 40, 300)
    rows = scores(base * 0.97, "bleu") + scores(base, "bleu", "base")
    claim = {"id": "b", "metric": "bleu", "compare": "base", "max_drop": 0.05, "scale": "relative"}
    found = verdict([claim], rows)
    assert found.estimate == pytest.approx(0.03)
    assert found.verdict is Verdict.PASS
    assert verdict([{**claim, "max_drop": 0.02}], rows).verdict is Verdict.FAIL


def test_harm_may_not_rise_against_the_base():
    rows = scores(ones(5, 500), "harmful") + scores(ones(5, 500), "harmful", "base")
    claim = {"id": "h", "metric": "harmful_rate", "compare": "base", "max_increase": 0.02}
    assert verdict([claim], rows).verdict is Verdict.PASS
    worse = scores(ones(50, 500), "harmful") + rows[500:]
    assert verdict([claim], worse).verdict is Verdict.FAIL


def drawn(successes, n):
    return scores(ones(successes, n), suite="s")


@pytest.mark.parametrize(
    ("looks", "expected", "alpha"), [(1, "PASS", 0.05), (3, "INCONCLUSIVE", 0.05 / 3)]
)
def test_alpha_is_split_over_the_looks_of_a_suite(looks, expected, alpha):
    found = verdict({"accuracy": ">= 0.85"}, drawn(179, 200), rules=Rules(looks={"s": looks}))
    assert (found.verdict, found.alpha) == (expected, pytest.approx(alpha))
    assert found.more_helps == (looks > 1)


def test_looks_of_another_suite_cost_nothing():
    found = verdict({"accuracy": ">= 0.85"}, drawn(179, 200), rules=Rules(looks={"other": 3}))
    assert found.alpha == 0.05


def test_candidates_that_compete_are_tested_by_holms_steps():
    spec = read({"accuracy": ">= 0.85"})
    both = {"sure": (scores(ones(195, 200)), (), None), "near": (scores(ones(180, 200)), (), None)}
    found = decide_best_of(spec, both)
    assert {name: one.verdict for name, one in found.items()} == {"sure": "PASS", "near": "PASS"}
    assert (found["sure"].alpha, found["near"].alpha) == (0.025, 0.05)  # one is left
    alone = {"a": both["near"], "b": both["near"]}
    assert {one.verdict for one in decide_best_of(spec, alone).values()} == {"INCONCLUSIVE"}


SPOT = [{"id": "spot", "metric": "human_issue_rate", "op": "<=", "value": 0.05, "suite": "task",
         "sample": 59}]  # fmt: skip


@pytest.mark.parametrize(
    ("issues", "expected"),
    [(None, "PENDING_HUMAN"), (0, "PASS"), (1, "INCONCLUSIVE"), (20, "FAIL")],
)
def test_people_are_waited_for_and_then_counted(issues, expected):
    rows = scores(ones(190, 200))
    if issues is not None:
        rows += scores(ones(issues, 59), "human_issue")
    found = decide(read([*SPOT, "accuracy >= 0.85"]), rows)
    assert found.verdict == expected
    assert not found.gates[0].more_helps


def test_people_are_not_bothered_when_another_gate_says_no():
    found = decide(read([*SPOT, "accuracy >= 0.99"]), scores(ones(150, 200)))
    assert found.verdict == "FAIL"


def grades(values, **more):
    return [
        Judgement(f"i{i}", "j", "single", "invalid" if v is None else "graded", suite="essay",
                  grade=v, **more)
        for i, v in enumerate(values)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "more", "expected", "says"),
    [
        ([0.75, 1.0] * 50, {"fingerprint": "f", "calibrated": True}, "PASS", "mean grade 0.875"),
        ([0.25, 0.5] * 50, {"fingerprint": "f", "calibrated": True}, "FAIL", "mean grade 0.375"),
        ([0.75, 1.0] * 50, {"fingerprint": "f", "calibrated": False}, "INCONCLUSIVE", "uncalib"),
        ([1.0] * 90 + [None] * 10, {"fingerprint": "f", "calibrated": True}, "INCONCLUSIVE",
         "10.0% of the judge's calls are invalid"),
        ([1.0], {"fingerprint": "f", "calibrated": True}, "INVALID", "one judged item"),
        ([], {}, "INVALID", "no judgements"),
    ],
)  # fmt: skip
def test_grades_of_answers_shown_alone(values, more, expected, says):
    found = verdict({"rubric_score": ">= 0.6"}, (), grades(values, **more))
    assert found.verdict == expected
    assert says in found.reason


def test_a_pair_is_no_grade_and_a_grade_no_pair():
    both = grades([1.0] * 100, fingerprint="f", calibrated=True) + judgements(100)
    assert verdict({"win_rate": "> 0.5"}, (), both).n == 100
    assert verdict({"rubric_score": ">= 0.5"}, (), both).n == 100


def test_a_hundred_labels_of_this_run_correct_the_judge():
    judged = judgements(400, fingerprint="f", calibrated=True)  # it says that all are wins
    people = [Judgement(f"i{i}", "p", "AB", "A" if i % 5 else "B", human=True) for i in range(120)]
    found = verdict({"win_rate": "> 0.9"}, (), judged + people)
    assert found.verdict == "FAIL"
    assert found.estimate == pytest.approx(0.8)
    few = verdict({"win_rate": "> 0.9"}, (), judged + people[:99])
    assert few.verdict == "PASS"
    assert few.method != "ppi++"
