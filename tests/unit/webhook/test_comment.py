import pytest

from trainyard.webhook.comment import plain, render
from trainyard.webhook.confined import Answer, Planned

PLAN = {
    "stages": [{"name": "train", "action": "run", "reason": "new inputs"}],
    "vram": {"needed_gib": 10.2, "available_gib": 22.0, "fits": True, "micro_batch": 4},
    "time_s": 720.0,
    "gpu_hours": 0.2,
    "cost": 0.14,
    "gates": [{"id": "exact_match", "n": 40, "min_detectable": None, "can_pass": False}],
    "problems": ["gate exact_match: needs 400 items"],
    "notes": [],
}


def test_a_plan_says_what_changes_costs_and_blocks() -> None:
    one = Planned(recipe="r.yaml", why="data.jsonl", plan=PLAN, changes=["train.rank: 16 → 8"])
    text, blocked = render(
        Answer(planned=[one]), "a" * 40, fork=False, data={"data.jsonl": (12, 3)}
    )
    assert blocked
    for said in (
        "Touched by `data.jsonl`",
        "- train.rank: 16 → 8",
        "memory 10.2 of 22.0 GiB, fits",
        "about 12 min of training, 0.20 GPU-hours",
        "cost about 0.14",
        "| exact_match | **can never pass** | 40 |",
        "needs 400 items",
        "`data.jsonl`: 12 lines added, 3 removed",
    ):
        assert said in text


def test_nothing_touched_is_said() -> None:
    text, blocked = render(Answer(planned=[]), "a" * 40, fork=False, data={})
    assert "starts no release" in text
    assert not blocked


@pytest.mark.parametrize(
    "text",
    [
        "@everyone",
        "<img src=x onerror=y>",
        "[click](https://evil.example)",
        "![pixel](https://evil.example/x.png)",
        "https://evil.example",
        "a | b",
        "`x`\n# heading",
    ],
)
def test_a_recipe_cannot_write_mentions_links_or_html(text: str) -> None:
    shown = plain(text)
    assert "\n" not in shown
    for unwanted in ("@e", "<img", "](", "s://", " | ", "`"):
        assert unwanted not in shown
