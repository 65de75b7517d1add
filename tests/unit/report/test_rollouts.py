import json
import re
from pathlib import Path
from typing import Any

from trainyard.report.rollouts import rollout_chart
from trainyard.rollout.looks import noted


def look(at: float, weight: float, e_value: float, bad: int, **rest: Any) -> dict[str, Any]:
    arm = {"requests": 100, "errors": bad, "flagged": 0}
    champion = {"champion": {"requests": 100, "errors": 1, "flagged": 0}}
    return {"at": at, "weight": weight, "e_value": e_value, "canary": arm} | champion | rest


LOOKS = [look(0, 5, 1, 0), look(60, 5, 3, 5), look(120, 25, 150, 20)]


def lines(chart: str) -> list[list[tuple[float, float]]]:
    found = re.findall(r'points="([^"]*)"', chart)
    return [[tuple(map(float, p.split(","))) for p in one.split()] for one in found]  # type: ignore[misc]


def test_three_lines_tell_weight_evidence_and_bad_answers() -> None:
    chart = rollout_chart(LOOKS, 0.01)
    weight, evidence, champion, canary, *_legend = lines(chart)
    assert len(weight) == 5  # a weight holds until it changes
    assert [y for _, y in evidence] == sorted((y for _, y in evidence), reverse=True)
    assert canary[-1][1] < champion[-1][1], "20 % is drawn above 1 %"
    limit = float(re.findall(r'class="limit" [^>]*y1="([\d.]+)"', chart)[0])
    assert evidence[1][1] > limit > evidence[2][1], "the last look is past 100"


def test_a_soak_has_no_champion_beside_it() -> None:
    soak = look(180, 100, 1, 0)
    del soak["champion"]
    assert len(lines(rollout_chart([*LOOKS, soak], None))[2]) == 3


def test_long_rollouts_are_thinned_and_keep_their_last_look(tmp_path: Path) -> None:
    rows = [{"rollout": "a" if i % 2 else "b", "at": i} for i in range(2001)]
    (tmp_path / "looks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = noted(tmp_path, "a")
    assert len(found) <= 400
    assert found[-1]["at"] == 1999
    assert noted(tmp_path / "none", "a") == []
