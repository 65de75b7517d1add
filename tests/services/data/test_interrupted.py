"""A check whose disk fills up, that is interrupted, or killed: nothing half, and nothing twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from trainyard.data.check import work_folder

CHECK = [sys.executable, "-m", "trainyard", "check"]
ROWS = 32_000  # about 19 MB: two chunks


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file, rng = tmp_path_factory.mktemp("rows") / "rows.jsonl", random.Random(7)
    words = [f"w{rng.randrange(10**9)}" for _ in range(9000)]
    with file.open("w") as out:
        for i in range(ROWS):
            told = " ".join(rng.choices(words, k=50))
            out.write(json.dumps({"instruction": f"number {i}", "output": told}) + "\n")
    return file


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many MiB."""
    mounted: list[Path] = []

    def mount(mib: int) -> Path:
        folder = tmp_path / f"disk{mib}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a small disk could not be mounted")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("mib", [2, 36])  # too little for the chunks, and for the version
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    rows: Path, small_disk: Callable[[int], Path], mib: int
) -> None:
    disk = small_disk(mib)
    command = [*CHECK, str(rows), "--out", str(disk / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    said = done.stderr.strip()
    assert "\n" not in said
    assert said.startswith("trainyard: no space is left on the disk of")
    assert not list(disk.iterdir())


def started(rows: Path, out: Path) -> subprocess.Popen[str]:
    """A check in a process group of its own, as a shell starts it, once chunks are being read."""
    command = [*CHECK, str(rows), "--out", str(out)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
    )
    deadline = time.monotonic() + 120
    while not list(work_folder(out).glob("chunks/.*/rows.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_ctrl_c_answers_at_once_and_leaves_no_version(rows: Path, tmp_path: Path) -> None:
    with started(rows, tmp_path / "out") as process:
        family = psutil.Process(process.pid).children(recursive=True)
        pressed = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert time.monotonic() - pressed < 30
    assert (process.returncode, said.strip()) == (130, "trainyard: interrupted")
    assert not psutil.wait_procs(family, timeout=60)[1]
    assert not (tmp_path / "out").exists()


def test_what_a_killed_check_finished_is_not_done_again(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started(rows, out) as process:
        deadline = time.monotonic() + 120
        while not (finished := list(work_folder(out).glob("chunks/[!.]*/info.json"))):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert not psutil.wait_procs(workers, timeout=60)[1], "chunks go on without their check"
    assert not out.exists()
    kept = {file: file.stat().st_ino for file in finished}

    again = started_again(rows, out, kept)
    assert again.returncode == 0
    assert (out / "manifest.json").is_file()
    assert not work_folder(out).exists()


def started_again(
    rows: Path, out: Path, kept: dict[Path, int]
) -> "subprocess.CompletedProcess[str]":
    """The same check once more; while it runs, what was kept stays the very same files."""
    command = [*CHECK, str(rows), "--out", str(out)]
    seen = 0
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None:
            try:
                assert {file: file.stat().st_ino for file in kept} == kept
                seen += 1
            except FileNotFoundError:  # the work is over and its folder goes
                assert seen
            time.sleep(0.02)
        said, problem = process.communicate()
    assert seen > 5
    return subprocess.CompletedProcess(command, process.returncode, said, problem)
