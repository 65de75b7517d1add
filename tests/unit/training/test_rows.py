import json
from pathlib import Path

import pytest

from trainyard.data.template import Template
from trainyard.errors import InputError
from trainyard.training.rows import read_rows

BASE = Path("recipes/quickstart/base")
ASKED = [{"role": "user", "content": "Which order? I mean the one with 3 lamps."}]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    messages = [*ASKED, {"role": "assistant", "content": '{"order": 3}'}]
    row = {"id": "row0", "kind": "sft", "messages": messages}
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps(row) + "\n")
    return file


def test_a_row_that_is_too_long_is_named_and_nothing_is_cut(rows: Path) -> None:
    template = Template.load(BASE, None)
    (whole,) = read_rows(rows, template, 128)
    assert 24 < len(whole["input_ids"]) < 128
    with pytest.raises(InputError, match=r"longer than max_seq_len \(24 tokens\), row row0 has"):
        read_rows(rows, template, 24)


def test_rows_of_another_kind_are_refused_by_name(rows: Path) -> None:
    with pytest.raises(InputError, match="row row0 is of kind sft, and objective dpo"):
        read_rows(rows, Template.load(BASE, None), 128, "dpo")
