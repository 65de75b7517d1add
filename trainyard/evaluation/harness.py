"""Suites of lm-eval and inspect: their own process runs the tasks, we read every sample's score.

Nothing of theirs is imported here. A process per run, because lm-eval cannot run inside an event
loop and inspect not twice in a process; no cache of theirs, because both know models by name only.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from trainyard.errors import InputError
from trainyard.evaluation.asking import Arm
from trainyard.evaluation.scores import Score
from trainyard.files import read_json, write_json
from trainyard.process import die_with_parent
from trainyard.recipe.evaluate import HarnessSuite

log = logging.getLogger(__name__)

METRIC = "capability"
"""What their scores are to our gates, whatever they call them."""
CONTROLS = 5
"""Samples of each task on which a perfect and a broken stub are scored."""
BROKEN = "\ue000"
PACKAGES = {"lm_eval": "lm-eval[api]==0.4.13", "inspect": "inspect-ai==0.3.285 openai"}
_MODULES = {"lm_eval": "lm_eval", "inspect": "inspect_ai"}
_LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""Inspect's correct, partial, incorrect and no answer."""


@dataclass(frozen=True, slots=True)
class Sample:
    id: str
    task: str
    value: float | None
    prompt: str
    target: str
    error: str | None = None


def check(suite: HarnessSuite) -> None:
    """Raises InputError, with the line to type, when the harness is not installed."""
    python = _python(suite)
    module = _MODULES[suite.harness]
    program = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        found = subprocess.run([python, "-c", program], check=False).returncode == 0
    except OSError as error:
        raise InputError(f"suite {suite.name}: python {python} does not run: {error}") from error
    if not found:
        raise InputError(
            f"suite {suite.name} needs {module}, which {python} does not have; type: {python} -m "
            f"pip install {PACKAGES[suite.harness]!r}, in a virtual environment of its own that "
            "`python` of the suite names"
        )


def scores(suite: HarnessSuite, arms: Mapping[str, Arm], folder: Path) -> list[Score]:
    """A score per sample and arm; runs that are in `folder` are not repeated.

    Raises InputError when the harness is not there, or ends without scores.
    """
    check(suite)
    failure = control_failure(suite, folder)
    if failure is not None:
        log.warning("suite %s: %s", suite.name, failure)
    found = []
    for name, arm in arms.items():
        path = folder / f"{suite.name}-{arm.digest[:16]}.json"
        run = _kept(path, partial(_served, suite, arm))
        found += [_score(suite, name, sample, failure) for sample in run]
    return found


def _served(suite: HarnessSuite, arm: Arm) -> list[Sample]:
    return _run(suite, arm.base_url, arm.model, arm.api_key or "none", suite.limit or 1)


def control_failure(suite: HarnessSuite, folder: Path) -> str | None:
    """Why the harness cannot be trusted with these tasks; None when it can.

    A server that gives each sample's target must score 1, one that gives nonsense 0.
    """
    count = min(CONTROLS, suite.limit or CONTROLS)

    def control(answers: Mapping[str, str]) -> list[Sample]:
        with _stub(answers) as url:
            return _run(suite, url, "stub", "none", count)

    broken = _kept(folder / f"{suite.name}-broken.json", lambda: control({}))
    targets = {sample.prompt: sample.target for sample in broken}
    perfect = _kept(folder / f"{suite.name}-perfect.json", lambda: control(targets))
    for samples, expected, what in ((broken, 0.0, "a broken answer"), (perfect, 1.0, "the target")):
        for sample in samples:
            if sample.value != expected:
                shown = sample.error or sample.value
                return (
                    f"control failed: {suite.harness} gives {what} {shown} instead of "
                    f"{expected:g} (sample {sample.id})"
                )
    return None


def _score(suite: HarnessSuite, arm: str, sample: Sample, failure: str | None) -> Score:
    error = failure or sample.error
    return Score(
        id=sample.id,
        suite=suite.name,
        metric=METRIC,
        arm=arm,
        value=None if error else sample.value,
        slice=(f"task={sample.task}",),
        error=error,
    )


def _kept(path: Path, run: Callable[[], list[Sample]]) -> list[Sample]:
    if not path.exists():
        write_json(path, [asdict(sample) for sample in run()])
    return [Sample(**row) for row in read_json(path)]


def _run(suite: HarnessSuite, url: str, model: str, key: str, count: int) -> list[Sample]:
    with tempfile.TemporaryDirectory(prefix="trainyard-") as scratch:
        run = _lm_eval if suite.harness == "lm_eval" else _inspect
        found = run(suite, url.rstrip("/").removesuffix("/v1"), model, key, count, Path(scratch))
    if not found:
        raise InputError(f"suite {suite.name}: {suite.harness} left no samples")
    return found


def _lm_eval(
    suite: HarnessSuite, url: str, model: str, key: str, count: int, out: Path
) -> list[Sample]:
    where = f"base_url={url}/v1/chat/completions,model={model}"
    command = [
        _python(suite), "-m", "lm_eval", "run", "--model", "local-chat-completions",
        "--model_args", f"{where},num_concurrent=4,max_retries=3,tokenizer_backend=None",
        "--apply_chat_template", "--tasks", ",".join(suite.tasks), "--limit", str(count),
        "--gen_kwargs", f"temperature=0,max_gen_toks={suite.max_tokens}",
        "--output_path", str(out / "log"), "--log_samples",
    ]  # fmt: skip
    command += ["--include_path", suite.folder] if suite.folder else []
    _call(suite, command, {"OPENAI_API_KEY": key, "HF_DATASETS_CACHE": str(out / "data")})
    metric, _, wanted = suite.metric.partition(",")
    found: dict[str, Sample] = {}
    for path in sorted((out / "log").rglob("samples_*.jsonl")):
        task = path.name.removeprefix("samples_").rsplit("_", 1)[0]
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            name = f"{task}/{row['doc_id']}"
            if name in found or (wanted and row.get("filter") != wanted):
                continue
            value, error = _number(row.get(metric), metric, row.get("metrics") or ())
            found[name] = Sample(name, task, value, _prompt(row), str(row["target"]), error)
    return list(found.values())


def _prompt(row: Mapping[str, Any]) -> str:
    """The last message of a sample's request, as the stub of the controls will see it."""
    try:
        messages = json.loads(row["arguments"]["gen_args_0"]["arg_0"][0])
        return str(messages[-1]["content"])
    except (KeyError, IndexError, TypeError, ValueError):
        return ""


def _inspect(
    suite: HarnessSuite, url: str, model: str, key: str, count: int, out: Path
) -> list[Sample]:
    found = []
    for number, task in enumerate(suite.tasks):
        path = Path(task)
        if not path.is_file():
            raise InputError(f"suite {suite.name}: {path} is not there; inspect runs task files")
        logs = out / str(number)
        command = [
            _python(suite), "-m", "inspect_ai", "eval", path.name,
            "--model", f"openai-api/trainyard/{model}", "--limit", str(count),
            "--temperature", "0", "--max-tokens", str(suite.max_tokens), "--display", "none",
            "--log-dir", str(logs), "--log-format", "json",
        ]  # fmt: skip
        env = {"TRAINYARD_BASE_URL": f"{url}/v1", "TRAINYARD_API_KEY": key}
        _call(suite, command, env, cwd=path.parent)
        for log_file in sorted(logs.glob("*.json")):
            found += [
                _inspected(suite, path.stem, row)
                for row in read_json(log_file).get("samples") or ()
            ]
    return found


def _inspected(suite: HarnessSuite, task: str, row: Mapping[str, Any]) -> Sample:
    given = row.get("scores") or {}
    value, error = _number(given.get(suite.metric, {}).get("value"), suite.metric, given)
    if row.get("error"):
        value, error = None, str(row["error"].get("message", row["error"]))[:200]
    asked, target = row["input"], row["target"]
    prompt = asked if isinstance(asked, str) else str(asked[-1].get("content"))
    epoch = "" if row.get("epoch", 1) == 1 else f"#{row['epoch']}"
    name = f"{task}/{row['id']}{epoch}"
    target = target if isinstance(target, str) else str(target[0])
    return Sample(name, task, value, prompt, target, error)


def _number(value: Any, metric: str, known: Iterable[str]) -> tuple[float | None, str | None]:
    if isinstance(value, str):
        value = _LETTERS.get(value)
    if value is None:
        return None, f"no score of {metric}; there are {', '.join(known) or 'none'}"
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        return None, f"{metric} is {value!r}, not a number from 0 to 1"
    return float(value), None


def _call(
    suite: HarnessSuite, command: Sequence[str], env: Mapping[str, str], cwd: Path | None = None
) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **offline, **env},
            preexec_fn=die_with_parent,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=suite.timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"suite {suite.name}: {suite.harness} did not end within {suite.timeout_s:g} s"
        ) from error
    if done.returncode != 0:
        lines = done.stdout.decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else f"exit {done.returncode}"
        raise InputError(f"suite {suite.name}: {suite.harness} ended with: {last[:300]}")


def _python(suite: HarnessSuite) -> str:
    # not resolved: a virtual environment's python is a link to the one that it was made from
    return str(Path(suite.python).absolute()) if suite.python else sys.executable


@contextmanager
def _stub(answers: Mapping[str, str]) -> Iterator[str]:
    """A server that knows the answers to these prompts, and nonsense to all others."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked = body["messages"][-1]["content"]
            asked = asked if isinstance(asked, str) else "".join(p["text"] for p in asked)
            message = {"role": "assistant", "content": answers.get(asked, BROKEN)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            reply = {"id": "stub", "object": "chat.completion", "created": 0,
                     "model": body["model"], "choices": [choice], "usage": usage}  # fmt: skip
            content = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
