import random

import pytest

from trainyard.rollout.votes import Vote, Votes


def voted(canary: float, champion: float, n: int, *, gain: float = 0, seed: int = 1) -> Votes:
    """`n` thumbs up or down on each variant, with these shares of thumbs up."""
    draw, votes = random.Random(seed), Votes()
    for _ in range(n):
        for mine, share in ((True, canary), (False, champion)):
            votes = votes.take([Vote(mine, 1.0 if draw.random() < share else -1.0)], gain)
    return votes


@pytest.mark.parametrize(
    ("canary", "champion", "gain", "decision"),
    [
        (0.8, 0.5, 0, "go_on"),
        (0.5, 0.8, 0, "abort"),
        (0.6, 0.6, 0, "wait"),
        (0.6, 0.6, -0.5, "go_on"),  # no worse by half a point
        (0.6, 0.6, 0.5, "abort"),  # half a point was wanted
    ],
)
def test_users_decide(canary: float, champion: float, gain: float, decision: str) -> None:
    found = voted(canary, champion, 400, gain=gain).judge(50, gain, 0.01)
    assert found.decision == decision, found.reason
    assert found.metric == "feedback"


def test_the_reason_carries_both_means_and_their_n() -> None:
    votes = Votes().take([Vote(True, 1.0), Vote(True, 0.5), Vote(False, -1.0)], 0)
    found = votes.judge(50, 0, 0.01)
    assert found.decision == "wait"
    assert "not yet 50 votes on each: mean score 0.750 of 2 votes, champion -1.000 of 1" in (
        found.reason
    )


def test_few_votes_decide_nothing_however_clear_they_are() -> None:
    assert voted(1.0, 0.0, 49).judge(50, 0, 0.01).decision == "wait"
    assert voted(1.0, 0.0, 50).judge(50, 0, 0.01).decision == "go_on"


def test_without_a_difference_the_wrong_end_is_no_more_frequent_than_alpha_allows() -> None:
    wrong = 0
    for seed in range(100):
        votes = Votes()
        draw = random.Random(seed)
        for _ in range(10):
            block = [Vote(i % 2 > 0, draw.choice((-1.0, 1.0))) for i in range(40)]
            votes = votes.take(block, 0)
            if votes.judge(20, 0, 0.05).decision != "wait":
                wrong += 1
                break
    assert wrong <= 17  # 0.05 on either side: 10 expected at most


def test_votes_of_one_variant_wait_for_the_other() -> None:
    votes = Votes().take([Vote(False, 1.0)] * 3, 0)
    assert len(votes.unpaired) == 3
    votes = votes.take([Vote(True, 1.0)] * 4, 0)
    assert (len(votes.unpaired), votes.unpaired_canary) == (1, True)
    assert Votes.model_validate_json(votes.model_dump_json()) == votes
