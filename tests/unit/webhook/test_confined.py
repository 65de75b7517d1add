"""In a process of its own: what is confined stays so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys, os, socket, subprocess
from pathlib import Path
from trainyard.webhook.confined import confine
code = [Path(entry) for entry in sys.path if entry]
confine([Path("inside"), *code], Path("home"))
try:
    {}
except Exception as error:
    print(type(error).__name__, error)
else:
    print("done")
"""


def run(folder: Path, statement: str) -> str:
    for name in ("inside", "home", "outside"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "outside" / "secret").write_text("x")
    (folder / "inside" / "link").unlink(missing_ok=True)
    (folder / "inside" / "link").symlink_to(folder / "outside" / "secret")
    (folder / "inside" / "row").write_text("x")
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path.cwd()),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(folder / "home"),
    }
    command = [sys.executable, "-P", "-c", CODE.format(statement)]
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("open('inside/row').read()", "done"),
        ("open('home/new', 'w').write('x')", "done"),
        ("open('outside/secret').read()", "outside/secret is outside the repository"),
        ("open('inside/link').read()", "inside/link is outside the repository"),
        ("open('inside/../outside/secret')", "is outside the repository"),
        ("Path('/etc/passwd').read_text()", "/etc/passwd is outside the repository"),
        ("os.listdir('outside')", "outside is outside the repository"),
        ("open('inside/row', 'a')", "is outside the repository"),  # read only
        ("os.open('inside/row', os.O_RDWR)", "is outside the repository"),
        ("socket.create_connection(('127.0.0.1', 9))", "without network"),
        ("socket.getaddrinfo('example.com', 80)", "without network"),
        ("subprocess.run(['true'])", "without running programs"),
        ("os.system('true')", "without running programs"),
    ],
)
def test_only_the_repository_is_read_and_nothing_is_started(
    tmp_path: Path, statement: str, said: str
) -> None:
    assert said in run(tmp_path, statement)
