import base64
import json
import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainyard.data.check import check, prepare, work_folder
from trainyard.data.chunk import check_chunk
from trainyard.data.finish import finish
from trainyard.data.job import Job
from trainyard.data.verdict import DataVerdict
from trainyard.errors import InputError
from trainyard.recipe.data import Checks, DataSpec, Limits, SourceSpec

WORDS = [f"w{n}x" for n in range(4000)]
Write = Callable[..., Path]


def text(seed: object, n: int = 60) -> str:
    return " ".join(random.Random(str(seed)).choices(WORDS, k=n)) + "."


def row(seed: object, **changed: Any) -> dict[str, Any]:
    return {"instruction": text(f"q{seed}", 20), "output": text(f"a{seed}"), **changed}


def lenient(file: Path, **changed: Any) -> DataSpec:
    limits = changed.pop("limits", Limits(min_rows=0, min_valid=0))
    return DataSpec(train=(str(file),), limits=limits, **changed)


def lines(verdict: DataVerdict, name: str) -> list[dict[str, Any]]:
    content = (verdict.folder / f"{name}.jsonl").read_bytes()
    return [json.loads(line) for line in content.splitlines()]


def whys(verdict: DataVerdict) -> dict[int, list[str]]:
    return {q["line"]: [r["code"] for r in q["reasons"]] for q in lines(verdict, "quarantine")}


BAD = {
    b'{"instruction": "q", "output": ': "bad_json",
    b'{"instruction": "q\xff", "output": "a"}': "bad_utf8",
    b'\xef\xbb\xbf{"instruction": "q", "output": "a"}': "bad_json",  # a BOM inside
    b'{"instruction": NaN, "output": "a"}': "bad_json",
    b'{"instruction": "q", "output": "a", "output": "b"}': "duplicate_key",
    b'{"instruction": "q", "output": "\\ud800"}': "bad_json",
    b'{"instruction": "q", "output": 3}': "wrong_type",
    b"[1]": "not_object",
    b"": "blank_line",
    b'{"instruction": "q", "output": "' + b"x" * 2000 + b'"}': "too_long",
    b'{"instruction": "q"}': "missing_field",
    b'{"instruction": "q", "output": "a", "messages": []}': "ambiguous_format",
    b'{"messages": [{"role": "user", "content": "q"}]}': "no_assistant",
    b'{"instruction": "q", "output": " "}': "empty_output",
}


def test_exactly_the_bad_lines_are_set_aside_with_their_bytes(
    write_rows: Write, tmp_path: Path
) -> None:
    content = [line for bad in BAD for line in (json.dumps(row(bad)).encode(), bad)]
    file = write_rows(*content)
    verdict = check(lenient(file, max_row_bytes=1900), tmp_path / "out")
    assert whys(verdict) == {2 * i: [code] for i, code in enumerate(BAD.values(), 1)}
    assert verdict.train + verdict.val == len(BAD)
    whole = file.read_bytes()
    for entry, raw in zip(lines(verdict, "quarantine"), BAD, strict=True):
        assert whole[entry["offset"] :].startswith(raw)
        assert "raw_base64" in entry or entry["raw"].encode() == raw


def test_an_escaped_colon_in_a_string_is_no_second_key(write_rows: Write, tmp_path: Path) -> None:
    file = write_rows(*[row(i, output=json.dumps({"a": {"b": i}, "c": "x\\"})) for i in range(9)])
    assert check(lenient(file), tmp_path / "out").quarantine == 0


garbage = st.one_of(
    st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")),
    st.builds(lambda v: json.dumps(v).encode(), st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["instruction", "output", "messages", "role", "content", "text"]),
            inner, max_size=4,
        ), max_leaves=6)),
    st.builds(
        lambda q, a: json.dumps({"instruction": q, "output": a}).encode(), st.text(), st.text()
    ),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(garbage, min_size=1, max_size=12), st.sampled_from(["jsonl", "json", "txt"]))
def test_no_line_is_ever_lost(tmp_path_factory: Any, content: list[bytes], suffix: str) -> None:
    folder = tmp_path_factory.mktemp("garbage")
    file = folder / f"rows.{suffix}"
    file.write_bytes(b"\n".join(content) + b"\n")
    try:
        verdict = check(lenient(file, val_fraction=0.3), folder / "out")
    except InputError as error:
        if str(file) not in str(error):
            raise
        return
    written = sum(len(lines(verdict, n)) for n in ("train", "val", "quarantine"))
    assert verdict.lines == verdict.train + verdict.val + verdict.quarantine == written
    whole = file.read_bytes()
    for entry in lines(verdict, "quarantine"):
        raw = (
            base64.b64decode(entry["raw_base64"])
            if "raw_base64" in entry
            else entry["raw"].encode()
        )
        assert whole[entry["offset"] :].startswith(raw)
    if suffix == "jsonl" and not file.read_bytes().lstrip(b"\xef\xbb\xbf \r\t").startswith(b"["):
        assert verdict.lines == file.read_bytes().removeprefix(b"\xef\xbb\xbf").count(b"\n")
        kept = [r["source"]["line"] for n in ("train", "val") for r in lines(verdict, n)]
        aside = [entry["line"] for entry in lines(verdict, "quarantine")]
        assert sorted(kept + aside) == list(range(1, verdict.lines + 1))


def test_duplicates_keep_the_first_and_name_it(write_rows: Write, tmp_path: Path) -> None:
    near = row(3)
    near["output"] = near["output"].replace(near["output"].split()[30], "changed")
    file = write_rows(*[row(i) for i in range(30)], row(5), near)
    verdict = check(lenient(file), tmp_path / "out")
    assert verdict.duplicates == {"exact": 1, "near": 1}
    assert whys(verdict) == {31: ["exact_duplicate"], 32: ["near_duplicate"]}
    assert "rows.jsonl:4" in lines(verdict, "quarantine")[1]["reasons"][0]["detail"]


def test_near_duplicates_in_chinese_are_found_by_characters(
    write_rows: Write, tmp_path: Path
) -> None:
    rng = random.Random(1)
    answer = "".join(chr(rng.randrange(0x4E00, 0x6000)) for _ in range(200))
    changed = answer[:100] + "甲" + answer[101:]
    rows = [{"instruction": "说一说", "output": a} for a in (answer, changed)]
    verdict = check(lenient(write_rows(*rows, *map(row, range(9)))), tmp_path / "out")
    assert verdict.duplicates["near"] == 1


def test_a_long_shared_instruction_makes_no_duplicates(write_rows: Write, tmp_path: Path) -> None:
    shared = text("shared", 300)
    rows = [{"instruction": f"{shared} {text(i, 6)}", "output": text(i, 4)} for i in range(60)]
    verdict = check(lenient(write_rows(*rows)), tmp_path / "out")
    assert verdict.duplicates == {"exact": 0, "near": 0}


def test_one_prompt_with_two_answers_is_a_conflict(write_rows: Write, tmp_path: Path) -> None:
    file = write_rows(*map(row, range(9)), row(3, output=text("other")))
    verdict = check(lenient(file), tmp_path / "out")
    assert verdict.warnings == {"conflicting_answers": 2}
    assert verdict.verdict == "warn"


@pytest.mark.parametrize(
    "leaking",
    [
        lambda e: row("x", instruction=e["instruction"]),  # the prompt alone
        lambda e: row("x", output=f"As I said: {e['output']} So there."),  # the answer
        lambda e: row("x", instruction=f"Please. {e['instruction'].upper()}"),  # other case
        lambda e: {"text": f"{e['instruction']}\n{e['output']}"},
    ],
)
def test_a_repeated_eval_sample_refuses_the_data(
    write_rows: Write, tmp_path: Path, leaking: Callable[[Any], Any]
) -> None:
    sample = row("sample")
    evals = write_rows(sample, row("another"), name="eval.jsonl")
    file = write_rows(*map(row, range(12)), leaking(sample))
    verdict = check(lenient(file), tmp_path / "out", eval_sets=[str(evals)])
    assert (verdict.verdict, verdict.leaks) == ("refuse", 1)
    assert whys(verdict) == {13: ["leak"]}
    assert "eval.jsonl:1" in lines(verdict, "quarantine")[0]["reasons"][0]["detail"]


def test_one_shared_13_gram_is_told_per_sample_and_per_row(
    write_rows: Write, tmp_path: Path
) -> None:
    samples = [row(f"sample{i}") for i in range(3)]
    evals = write_rows(*samples, name="eval.jsonl")
    shared = [" ".join(s["output"].split()[20:33]) for s in samples]  # 13 words
    short = " ".join(samples[0]["output"].split()[20:32])  # 12 prove nothing
    touching = [
        row("x", output=f"{shared[0]} and {shared[2]}"),
        row("y", output=f"{shared[0]} alone"),
        row("z", output=f"{short} and more of it"),
        row("leak", instruction=samples[1]["instruction"]),
    ]
    spec = lenient(write_rows(*map(row, range(12)), *touching), val_fraction=0)
    verdict = check(spec, tmp_path / "out", eval_sets=[str(evals)])
    assert verdict.warnings == {"eval_overlap": 2}
    assert whys(verdict) == {16: ["leak"]}
    found = [
        (Path(e["sample"]).name, e["line"], e["code"], e["side"])
        for e in lines(verdict, "contamination")
    ]
    assert found == [
        ("eval.jsonl:1", 13, "eval_overlap", "train"),
        ("eval.jsonl:1", 14, "eval_overlap", "train"),
        ("eval.jsonl:2", 16, "leak", "quarantine"),
        ("eval.jsonl:3", 13, "eval_overlap", "train"),
    ]
    assert "Evaluation samples that rows touch" in (verdict.folder / "report.html").read_text()
    strict = lenient(Path(spec.sources[0].path), checks=Checks(eval_overlap="refuse"))
    refused = check(strict, tmp_path / "no", eval_sets=[str(evals)])
    assert refused.verdict == "refuse"


def test_one_answer_to_many_prompts_is_told_with_its_rate(
    write_rows: Write, tmp_path: Path
) -> None:
    canned = "Thank you for your message, we will come back to you within a day."
    rows = [row(i, output=canned) for i in range(5)] + [
        row(i, output="billing") for i in range(5, 9)
    ]
    file = write_rows(*map(row, range(9, 20)), *rows)
    verdict = check(lenient(file), tmp_path / "out")
    assert verdict.warnings == {"repeated_answer": 5}  # a label is no answer
    refused = check(
        lenient(file, limits=Limits(min_rows=0, max_share={"repeated_answer": 0.1})),
        tmp_path / "no",
    )
    assert "repeated_answer is 25.00% of lines, over 10.00%" in refused.problems


def test_prompt_and_answer_in_other_scripts_are_told_where_asked(
    write_rows: Write, tmp_path: Path
) -> None:
    file = write_rows(*map(row, range(9)), row("x", output="Ответ написан по-русски, целиком."))
    assert check(lenient(file), tmp_path / "off").verdict == "pass"
    spec = lenient(file, checks=Checks(language_mismatch="warn"))
    assert check(spec, tmp_path / "out").warnings == {"language_mismatch": 1}


def test_short_samples_leak_only_as_a_whole(write_rows: Write, tmp_path: Path) -> None:
    evals = write_rows({"instruction": "What is 2 + 2?", "output": "4"}, name="eval.jsonl")
    rows = [{"instruction": q, "output": "4"} for q in ("what is 2+2", "What is 2 + 2 + 0?")]
    file = write_rows(*rows)
    verdict = check(lenient(file), tmp_path / "out", eval_sets=[str(evals)])
    assert whys(verdict) == {1: ["leak"]}


def test_templates_shared_with_the_eval_set_do_not_leak(write_rows: Write, tmp_path: Path) -> None:
    frame = text("frame", 40)
    rows = [{"instruction": f"{frame} {text(i, 9)} {frame}", "output": text(i)} for i in range(90)]
    evals = write_rows(*rows[:30], name="eval.jsonl")
    verdict = check(lenient(write_rows(*rows[30:])), tmp_path / "out", eval_sets=[str(evals)])
    assert verdict.leaks == 0


SECRET = "AKIAQ7ZP2MX4KD8WN3VB"


def test_secrets_are_masked_outside_the_quarantine(write_rows: Write, tmp_path: Path) -> None:
    file = write_rows(*map(row, range(9)), row("x", output=f"the key is {SECRET} indeed"))
    out = check(lenient(file), tmp_path / "out").folder
    assert stat.S_IMODE((out / "quarantine.jsonl").stat().st_mode) == 0o600
    holders = {f.name for f in out.iterdir() if SECRET.encode() in f.read_bytes()}
    assert holders == {"quarantine.jsonl"}
    assert "AKIA…VB" in (out / "report.html").read_text()


def test_a_secret_in_a_role_or_a_label_is_masked_in_reports(
    write_rows: Write, tmp_path: Path
) -> None:
    talk = [{"role": SECRET, "content": "q"}, {"role": "assistant", "content": "a"}]
    labelled = row("x", kind=f"{SECRET} & <b>")
    file = write_rows(*[row(i, kind="plain") for i in range(9)], {"messages": talk}, labelled)
    out = check(lenient(file, label="kind"), tmp_path / "out").folder
    for report in ("report.html", "report.md"):
        text = (out / report).read_text()
        assert SECRET not in text
        assert "<b>" not in text
    assert "[AWS_KEY]" in (out / "report.html").read_text()
    limits = Limits(min_rows=0, min_label_share=0.2)
    refused = check(lenient(file, label="kind", limits=limits), tmp_path / "no")
    assert any("[AWS_KEY]" in problem for problem in refused.problems)
    assert SECRET not in (refused.folder / "verdict.json").read_text()


def test_redaction_replaces_and_is_recorded(write_rows: Write, tmp_path: Path) -> None:
    file = write_rows(*map(row, range(9)), row("x", output=f"{SECRET} and ann@example.org"))
    checks = Checks(secret="redact", pii="redact")
    verdict = check(lenient(file, checks=checks, val_fraction=0), tmp_path / "out")
    last = lines(verdict, "train")[-1]
    assert last["messages"][1]["content"] == "[AWS_KEY] and [EMAIL]"
    assert last["meta"] == {"redacted": {"aws_key": 1, "email": 1}}
    assert verdict.warnings == {"pii": 1, "secret": 1}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("I'm sorry, but I cannot help with that request.", "refusal"),
        ("Dear [insert name here], welcome to the shop.", "placeholder"),
        ("It ends <|im_end|> here.", "special_tokens"),
        ("So:\n```python\nprint(1)", "truncated_output"),
        (" ".join(["one two three four five"] * 20), "repetition"),
        ("A cafÃ© in the city.", "mojibake"),
        ("A bidi \u202e override.", "control_characters"),
        ("Write to ann@example.org now.", "pii"),
    ],
)
def test_each_finding_in_an_answer_is_named(
    write_rows: Write, tmp_path: Path, answer: str, code: str
) -> None:
    file = write_rows(*map(row, range(9)), row("x", output=answer))
    verdict = check(lenient(file), tmp_path / "out")
    assert {**verdict.reasons, **verdict.warnings} == {code: 1}
    off = Checks.model_validate({code: "off"})
    assert check(lenient(file, checks=off), tmp_path / "off").verdict == "pass"
    refused = Checks.model_validate({code: "refuse"})
    assert check(lenient(file, checks=refused), tmp_path / "no").verdict == "refuse"


def test_clusters_and_groups_never_cross_the_split(write_rows: Write, tmp_path: Path) -> None:
    rows = [row(i, customer=i % 40) for i in range(400)]
    spec = lenient(write_rows(*rows), group_by="customer", val_fraction=0.2)
    verdict = check(spec, tmp_path / "out")
    sides = [{r["meta"]["customer"] for r in lines(verdict, n)} for n in ("train", "val")]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_a_row_keeps_its_side_when_rows_are_added(write_rows: Write, tmp_path: Path) -> None:
    rows = [row(i) for i in range(300)]
    few = check(lenient(write_rows(*rows[:200]), val_fraction=0.1), tmp_path / "few")
    more = check(lenient(write_rows(*rows[::-1]), val_fraction=0.1), tmp_path / "more")
    held = [{r["id"] for r in lines(v, "val")} for v in (few, more)]
    assert held[0]
    assert held[0] <= held[1]


def test_the_digest_is_of_the_rows_not_of_their_order(write_rows: Write, tmp_path: Path) -> None:
    rows = [row(i) for i in range(40)]
    one = check(lenient(write_rows(*rows)), tmp_path / "one")
    two = check(lenient(write_rows(*rows[::-1], name="other.jsonl")), tmp_path / "two")
    three = check(lenient(write_rows(*rows[1:])), tmp_path / "three")
    assert one.digest == two.digest != three.digest
    ordered = [
        json.loads((v.folder / "manifest.json").read_text())["ordered_digest"] for v in (one, two)
    ]
    assert ordered[0] != ordered[1]


def test_thresholds_refuse_with_their_numbers(write_rows: Write, tmp_path: Path) -> None:
    file = write_rows(*map(row, range(6)), b"{", b"{", b"{")
    verdict = check(DataSpec(train=(str(file),)), tmp_path / "out")
    assert verdict.verdict == "refuse"
    assert "valid lines are 66.67%, below 98.00%" in verdict.problems
    assert any("train has" in p and "below 10" in p for p in verdict.problems)


def test_labels_and_scripts_have_their_least_shares(write_rows: Write, tmp_path: Path) -> None:
    file = write_rows(*[row(i, kind="a" if i else "b") for i in range(50)])
    limits = Limits(min_label_share=0.1, min_script_share={"cyrillic": 0.2})
    verdict = check(lenient(file, label="kind", limits=limits), tmp_path / "out")
    assert "label 'b' is 2.00%, below 10.00%" in verdict.problems
    assert "answers in cyrillic are 0.0%, below 20.0%" in verdict.problems
    few = check(lenient(file, limits=Limits(max_script_share={"latin": 0.5})), tmp_path / "few")
    assert "answers in latin are 100.0%, over 50.0%" in few.problems


def test_drift_is_told_by_size_and_never_for_the_same_rows(
    write_rows: Write, tmp_path: Path
) -> None:
    rows = [row(i) for i in range(600)]
    same = check(lenient(write_rows(*rows)), tmp_path / "before")
    again = check(lenient(write_rows(*rows)), tmp_path / "again", previous=same.folder)
    assert again.verdict == "pass"
    longer = [row(i, output=text(i, 160)) for i in range(600)]
    moved = check(lenient(write_rows(*longer)), tmp_path / "after", previous=same.folder)
    assert moved.verdict == "refuse"
    assert any(p.startswith("answer_chars moved: PSI") for p in moved.problems)
    assert any("rows of the former version are gone" in p for p in moved.problems)
    assert "Drift" in (moved.folder / "report.html").read_text()


def test_every_row_is_proved_with_the_template(
    write_rows: Write, tmp_path: Path, model_folder: Path
) -> None:
    file = write_rows(*[row(i, output=text(i, 12)) for i in range(20)])
    verdict = check(lenient(file), tmp_path / "out", base_model=model_folder, max_seq_len=4096)
    assert verdict.verdict == "pass"
    assert 0 < verdict.trained_tokens < verdict.tokens
    shouting = model_folder / "chat_template.jinja"
    loses = tmp_path / "loses"
    loses.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (loses / name).write_bytes((model_folder / name).read_bytes())
    (loses / shouting.name).write_text(shouting.read_text().replace("m['content']", "'...'"))
    verdict = check(lenient(file), tmp_path / "lost", base_model=loses, max_seq_len=4096)
    assert verdict.reasons == {"template": 20}


@pytest.mark.parametrize(
    ("policy", "verdict", "train"),
    [
        ("error", "refuse", 20),
        ("drop", "warn", 20),
        ("truncate", "warn", 21),
        ("split", "pass", 21),
    ],
)
def test_what_is_too_long_goes_the_way_the_recipe_says(
    write_rows: Write, tmp_path: Path, model_folder: Path, policy: Any, verdict: str, train: int
) -> None:
    turns = [{"role": r, "content": text(i, 12)} for i in range(9) for r in ("user", "assistant")]
    talk = {
        "messages": [
            {"role": m["role"], "content": m["content"] + str(i)} for i, m in enumerate(turns)
        ]
    }
    file = write_rows(*[row(i, output=text(i, 4)) for i in range(20)], talk)
    spec = lenient(file, over_length=policy, val_fraction=0)
    found = check(spec, tmp_path / "out", base_model=model_folder, max_seq_len=400)
    assert (found.verdict, found.train) == (verdict, train)
    if policy == "truncate":
        assert found.lost_tokens > 0
    if policy == "split":
        pieces = [r for r in lines(found, "train") if r["source"]["line"] == 21]
        assert len(pieces) > 1
        assert [m for p in pieces for m in p["messages"]] == talk["messages"]


def test_a_row_with_nothing_left_to_learn_is_set_aside(
    write_rows: Write, tmp_path: Path, model_folder: Path
) -> None:
    long = {"instruction": text("x", 400), "output": "yes"}
    file = write_rows(*[row(i, output="yes") for i in range(20)], long)
    spec = lenient(file, over_length="truncate")
    verdict = check(spec, tmp_path / "out", base_model=model_folder, max_seq_len=300)
    assert whys(verdict) == {21: ["no_trained_tokens", "over_length"]}


def test_several_sources_may_have_several_formats(write_rows: Write, tmp_path: Path) -> None:
    one = write_rows(*map(row, range(12)), name="one.jsonl")
    asked = [{"q": text(i), "a": text(-i)} for i in range(20, 32)]
    two = write_rows(*asked, name="two.jsonl")
    mapped = SourceSpec(path=str(two), columns={"question": "q", "answer": "a"})
    verdict = check(DataSpec(train=(str(one), mapped)), tmp_path / "out")
    assert verdict.train + verdict.val == 24


def content_of(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.name != "verdict.json"}


def test_a_check_cut_off_at_its_end_starts_again_and_loses_nothing(
    write_rows: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainyard.data.check.CHUNK", 20_000)
    spec = lenient(write_rows(*(row(i % 150) for i in range(200))))
    whole = check(spec, tmp_path / "whole")

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("trainyard.data.finish.write_facts", cut_off)
        with pytest.raises(KeyboardInterrupt):
            check(spec, tmp_path / "again")
    assert work_folder(tmp_path / "again").is_dir()
    again = check(spec, tmp_path / "again")
    found, expected = content_of(again.folder), content_of(whole.folder)
    del found["manifest.json"], expected["manifest.json"]
    assert found == expected


def test_any_order_of_chunks_gives_the_same_bytes(
    write_rows: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainyard.data.check.CHUNK", 20_000)
    rows = [row(i % 150) for i in range(200)]
    rows[7]["output"] = ""
    spec = lenient(write_rows(*rows))
    whole = check(spec, tmp_path / "whole", processes=1)
    workers = check(spec, tmp_path / "workers", processes=2)
    job = prepare(spec, work_folder(tmp_path / "shuffled"))
    numbers = list(range(len(Job.load(job).chunks)))
    assert len(numbers) > 3
    for number in reversed(numbers):
        check_chunk(job, number)
    shuffled = finish(job, tmp_path / "shuffled")
    for other in (workers, shuffled):
        found, expected = content_of(other.folder), content_of(whole.folder)
        del found["manifest.json"], expected["manifest.json"]
        assert found == expected
        assert other.digest == whole.digest


def test_finished_chunks_are_taken_over_after_a_kill(
    write_rows: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainyard.data.check.CHUNK", 20_000)
    file, out = write_rows(*map(row, range(200))), tmp_path / "out"
    program = (
        "import os, sys, trainyard.data.check as c\n"
        "from pathlib import Path\n"
        "from trainyard.recipe.data import DataSpec\n"
        "c.CHUNK = 20_000\n"
        "def tell(what, done, total):\n"
        "    if what == 'checking rows' and done == 3: os.kill(os.getpid(), 9)\n"
        "spec = DataSpec.model_validate_json(sys.argv[1])\n"
        "c.check(spec, Path(sys.argv[2]), processes=1, progress=tell)"
    )
    spec = lenient(file)
    command = [sys.executable, "-c", program, spec.model_dump_json(), str(out)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert not out.exists()
    told: list[int] = []
    check(
        spec,
        out,
        processes=1,
        progress=lambda what, done, _: told.append(done) if what == "checking rows" else None,
    )
    assert told[0] == 3
    assert (out / "manifest.json").is_file()
    assert not work_folder(out).exists()


def test_an_interrupted_check_leaves_nothing_that_looks_finished(
    write_rows: Write, tmp_path: Path
) -> None:
    file = write_rows(*map(row, range(100)))

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "comparing rows":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(lenient(file), tmp_path / "out", progress=interrupt)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read_leaves_the_version_before(write_rows: Write, tmp_path: Path) -> None:
    verdict = check(lenient(write_rows(*map(row, range(20)))), tmp_path / "out")
    with pytest.raises(InputError, match="does not exist"):
        check(lenient(tmp_path / "missing.jsonl"), tmp_path / "out")
    assert (verdict.folder / "manifest.json").is_file()
    assert not work_folder(tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(write_rows: Write, tmp_path: Path) -> None:
    file = write_rows(*map(row, range(20)))
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(InputError, match="locked"):
        check(lenient(file), tmp_path / "locked" / "out")


def test_the_manifest_names_every_input_and_output(write_rows: Write, tmp_path: Path) -> None:
    file = write_rows(*map(row, range(20)))
    verdict = check(lenient(file), tmp_path / "out")
    manifest = json.loads((verdict.folder / "manifest.json").read_text())
    assert [i["file"] for i in manifest["inputs"]] == [str(file)]
    assert manifest["digest"] == verdict.digest
    assert set(manifest["files"]) < {f.name for f in verdict.folder.iterdir()}


def test_the_report_needs_nothing_from_elsewhere(write_rows: Write, tmp_path: Path) -> None:
    file = write_rows(*map(row, range(20)), b"{", row("<script>alert(1)</script>", output=""))
    page = (check(lenient(file), tmp_path / "out").folder / "report.html").read_text()
    assert "<svg" in page
    for foreign in ("http:", "https:", "<script", "@import", "url("):
        assert foreign not in page


def test_verdict_is_plain_json(write_rows: Write, tmp_path: Path) -> None:
    verdict = check(lenient(write_rows(*map(row, range(20)))), tmp_path / "out")
    saved = json.loads((verdict.folder / "verdict.json").read_text())
    keys = "verdict lines train val quarantine reasons duplicates leaks tokens digest out"
    assert set(keys.split()) <= set(saved)
    assert saved["verdict"] == "pass"
    assert np.sum([saved["train"], saved["val"], saved["quarantine"]]) == saved["lines"]
