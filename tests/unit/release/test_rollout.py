import json
from pathlib import Path

import pytest

from trainyard.errors import InputError
from trainyard.files import write_json
from trainyard.parity.record import FILE, Parity, Probe, Step
from trainyard.release.rollout import first_probe
from trainyard.release.version import Registered


def registered(folder: Path) -> Registered:
    return Registered(name="m", digest="d" * 64, folder=folder, url="file:///m", skipped=False)


def probe(answer: str, margin: float) -> Probe:
    asked = ({"role": "user", "content": answer.upper()},)
    return Probe(messages=asked, max_tokens=9, prompt_tokens=3, answer=answer, margin=margin)


def test_a_version_is_ready_when_it_answers_as_its_parity_record_says(tmp_path):
    step = Step(name="server", verdict="ok", reason="equal")
    probes = (probe("close", 0.01), probe("sure", 2.0), probe("likely", 0.5))
    parity = Parity(steps=(step,), probes=probes, tokens=9, candidate="d" * 64)
    write_json(tmp_path / "evaluation" / FILE, parity.model_dump(mode="json"))
    found = first_probe(registered(tmp_path))
    assert (found.answer, found.max_tokens) == ("sure", 9)  # the one that rounding cannot change
    assert found.messages == ({"role": "user", "content": "SURE"},)


def test_a_version_without_a_parity_record_answers_anything(tmp_path):
    assert first_probe(registered(tmp_path)).answer is None


def test_a_record_that_is_none_is_named(tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / FILE).write_text(json.dumps({"steps": 1}))
    with pytest.raises(InputError, match=r"parity.json is no parity record"):
        first_probe(registered(tmp_path))
