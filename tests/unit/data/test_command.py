import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainyard.cli import main

ROWS = [
    {"prompt": f"question number {i}", "completion": f"answer number {i * i}"} for i in range(40)
]


def test_json_is_one_object_and_the_exit_code_is_the_verdict(
    write_rows: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rows(*ROWS, b"{", b"}")
    assert main(["check", str(file), "--out", str(tmp_path / "out"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["problems"][0] == "valid lines are 95.24%, below 98.00%"
    keys = "verdict lines train val quarantine reasons duplicates leaks tokens digest out"
    assert set(keys.split()) <= set(found)


def test_good_rows_pass_with_exit_zero(
    write_rows: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(write_rows(*ROWS)), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("pass: 40 lines = ")


@pytest.mark.parametrize("arguments", [["missing.jsonl"], [], ["s4://bucket/x"]])
def test_what_cannot_be_read_is_exit_two_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["check", *arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_terminal_sees_progress_and_a_pipe_does_not(
    write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    file = write_rows(*ROWS)
    command = [sys.executable, "-m", "trainyard", "check", str(file), "--out", str(tmp_path / "o")]
    terminal, end = pty.openpty()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=end, check=True)
    os.close(end)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert "checking rows 100%" in shown
    assert shown.endswith("\r\x1b[K"), "the line is wiped at the end"
    piped = subprocess.run(command, capture_output=True, check=True)
    assert (piped.stdout, piped.stderr) == (done.stdout, b"")


def test_checking_imports_neither_torch_nor_prefect(
    write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    program = (
        "import sys; from trainyard.cli import main\n"
        f"main(['check', {str(write_rows(*ROWS))!r}, '--out', {str(tmp_path / 'out')!r}])\n"
        "bad = {'torch', 'prefect', 'transformers', 'datasets', 'pandas'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(bad)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
