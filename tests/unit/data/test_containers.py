import gzip
import io
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainyard.data.read import read_samples
from trainyard.errors import InputError
from trainyard.recipe.data import SourceSpec

ROWS = [{"instruction": f"question {i}", "output": f"answer {i}"} for i in range(5)]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def zst(content: bytes) -> bytes:
    sink = io.BytesIO()
    with pa.CompressedOutputStream(pa.PythonFile(sink, "w"), "zstd") as out:
        out.write(content)
        out.flush()
        found = sink
        out.close()
    return found.getvalue() if not found.closed else b""


def parquet(rows: list[dict[str, object]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def arrow(rows: list[dict[str, object]]) -> bytes:
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def csv(delimiter: str) -> bytes:
    lines = [delimiter.join(("prompt", "completion"))]
    lines += [f'"question {i}"{delimiter}"an ""answer""{delimiter} {i}"' for i in range(5)]
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", LINES),
        ("rows.jsonl", LINES.rstrip(b"\n")),  # no line end at the end
        ("rows.jsonl", LINES.replace(b"\n", b"\r\n")),
        ("rows.json", LINES),
        ("rows.json", json.dumps(ROWS).encode()),
        ("rows.json", json.dumps(ROWS, indent=2).encode()),
        ("rows.jsonl", json.dumps(ROWS).encode()),  # an array, whatever it is called
        ("rows.jsonl", b"\xef\xbb\xbf" + LINES),
        ("rows", LINES),
        ("rows.jsonl.gz", gzip.compress(LINES)),
        ("rows.json", gzip.compress(json.dumps(ROWS).encode())),
        ("rows.csv", csv(",")),
        ("rows.csv", csv(";")),
        ("rows.tsv", csv("\t")),
        ("rows.csv.gz", gzip.compress(csv(","))),
        ("rows.parquet", parquet(ROWS)),
        ("rows.bin", parquet(ROWS)),
        ("rows.arrow", arrow(ROWS)),
    ],
)
def test_every_container_gives_the_same_rows(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    found = list(read_samples(tmp_path / name))
    assert [m["messages"][0]["content"] for m in found] == [r["instruction"] for r in ROWS]
    assert len({row["id"] for row in found}) == 5


def test_zstd_is_unpacked(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl.zst"
    with pa.CompressedOutputStream(str(file), "zstd") as out:
        out.write(LINES)
    assert len(list(read_samples(file))) == 5


def test_a_parquet_of_conversations_is_read(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "talks.parquet").write_bytes(parquet([{"messages": talk}] * 2))
    assert [row["messages"] for row in read_samples(tmp_path / "talks.parquet")] == [talk, talk]


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('prompt,completion\n"two\nlines",a\nnext,b\n')
    assert [row["source"]["line"] for row in read_samples(file)] == [2, 4]


def test_plain_text_is_a_row_per_line(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("one\n\ntwo\n")
    assert [row["text"] for row in read_samples(tmp_path / "corpus.txt")] == ["one", "two"]


def zipped() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("xl/workbook.xml", "x")
    return sink.getvalue()


NESTED = {"instruction": {"deep": {"er": [1]}}}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.jsonl", b"", "is empty"),
        ("empty.jsonl.gz", b"", "is empty"),
        ("nothing.jsonl.gz", gzip.compress(b""), "holds nothing"),
        ("cut.jsonl.gz", gzip.compress(LINES)[:-9], "damaged or cut off"),
        ("rows.zip", zipped(), "zip archive or an Excel workbook"),
        ("rows.xlsx", zipped(), "zip archive or an Excel workbook"),
        ("rows.jsonl", "{}".encode("utf-16"), "UTF-16"),
        ("rows.pdf", b"%PDF-1.7 ...", "a PDF"),
        ("rows.dat", b"\x01\x00\x02" * 50, "binary and no known container"),
        ("rows.parquet", b"PAR1 but not really", "cannot be read as a table"),
        ("rows.parquet", parquet([NESTED]), "no known format: output is missing"),
        (
            "rows.parquet",
            parquet([NESTED | {"output": "a"}]),
            r"column instruction is struct<deep.*, and a format alpaca needs text there",
        ),
        ("rows.parquet", parquet([{"text": [1, 2]}]), "column text is list<"),
        ("rows.parquet", parquet([{"a": 1}]), "no known format"),
        ("rows.csv", b"prompt,completion\n", "a header and no rows"),
        ("rows.csv", b"prompt,completion\nprompt,completion\na,b\n", "its header twice"),
        ("rows.csv", b"prompt,completion\na;b\nc;d\n", "two delimiters"),
        ("rows.csv", b"prompt,prompt\na,b\n", "two columns named prompt"),
        ("rows.csv", b"a,b\n1,2\n", "no known format"),
        ("rows.json", b'{\n "data": []\n}', "one JSON object"),
        ("rows.json", b"[]", "holds no rows"),
    ],
)
def test_what_holds_no_rows_is_one_sentence_with_the_name(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        list(read_samples(tmp_path / name))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(LINES)
    with pytest.raises(InputError, match=r"does not exist; did you mean .*train\.jsonl"):
        list(read_samples(tmp_path / "trian.jsonl"))


def test_a_folder_of_nothing_and_a_glob_of_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder without a data file"):
        list(read_samples(tmp_path))
    with pytest.raises(InputError, match="matches no file"):
        list(read_samples(str(tmp_path / "*.jsonl")))


def test_a_folder_and_a_glob_give_their_files_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_bytes(LINES)
    for path in (str(tmp_path), str(tmp_path / "*.jsonl")):
        found = [Path(row["source"]["file"]).name for row in read_samples(path)]
        assert found == ["a.jsonl"] * 5 + ["b.jsonl"] * 5


def test_the_layout_of_the_hub_cache_is_followed(tmp_path: Path) -> None:
    for revision in ("abc", "def"):
        (tmp_path / "snapshots" / revision).mkdir(parents=True)
    (tmp_path / "snapshots" / "def" / "train.jsonl").write_bytes(LINES)
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs" / "main").write_text("def")
    assert len(list(read_samples(tmp_path))) == 5


def test_an_entry_of_dataset_info_maps_the_columns(tmp_path: Path) -> None:
    row = {"q": "question", "a": "answer", "sys": "be short"}
    (tmp_path / "mine.json").write_text(json.dumps([row]))
    columns = {"prompt": "q", "response": "a", "system": "sys"}
    entry = {"mine": {"file_name": "mine.json", "columns": columns}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entry))
    spec = SourceSpec(path=str(tmp_path / "dataset_info.json"), dataset="mine")
    (found,) = read_samples(spec.path, spec)
    assert [m["content"] for m in found["messages"]] == ["be short", "question", "answer"]


def test_a_dvc_pointer_is_followed_into_its_cache(tmp_path: Path) -> None:
    md5 = "0123456789abcdef0123456789abcdef"
    stored = tmp_path / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    stored.parent.mkdir(parents=True)
    stored.write_bytes(LINES)
    pointer = tmp_path / "rows.jsonl.dvc"
    pointer.write_text(f"outs:\n- md5: {md5}\n  path: rows.jsonl\n")
    assert len(list(read_samples(tmp_path / "rows.jsonl"))) == 5
    stored.unlink()
    with pytest.raises(InputError, match="dvc pull"):
        list(read_samples(pointer))


def test_a_bad_sample_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_bytes(LINES + b'{"instruction": 1, "output": "x"}\n')
    with pytest.raises(InputError, match=r"eval\.jsonl, line 6: wrong_type: instruction"):
        list(read_samples(tmp_path / "eval.jsonl"))
