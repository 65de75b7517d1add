"""What a person sees who runs a release by hand: a line per stage, then the result."""

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging.configuration import setup_logging
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL

from flows.local_server import server_at_hand
from tasks import progress
from trainyard import files, plan
from trainyard.environment import read_environment
from trainyard.errors import Refused, TrainyardError, Waiting
from trainyard.recipe import parse_override, read_recipe
from trainyard.rollout.gateway_client import verifies
from trainyard.run import Summary

MARKS = {"done": "✓", "skipped": "=", "failed": "✗", "waiting": "…"}


class Lines(logging.Handler):
    """Prints the stages of a run; on a terminal, the one at work is redrawn in place."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._drawn = time.monotonic()
        self._tty = sys.stdout.isatty()

    def emit(self, record: logging.LogRecord) -> None:
        stage, event = getattr(record, "stage", None), getattr(record, "event", None)
        if event in MARKS:
            seconds = getattr(record, "seconds", 0.0)
            words = record.getMessage().removeprefix(f"{stage}: ")
            self._line(f"{MARKS[event]} {stage:<9}{seconds:6.1f} s  {words}\n")
        elif event == "started":
            self._drawn = time.monotonic()
            if self._tty:
                self._line(f"  {stage:<9}")
        elif record.levelno >= logging.WARNING:
            self._line(f"! {record.getMessage()}\n")

    def progress(self, stage: str, share: float, words: str) -> None:
        """On a terminal twice a second; in a file every 15 seconds, a line each."""
        if time.monotonic() - self._drawn > (0.5 if self._tty else 15):
            self._drawn = time.monotonic()
            self._line(f"  {stage:<9}{share:6.0%}    {words}" + ("" if self._tty else "\n"))

    def _line(self, text: str) -> None:
        sys.stdout.write(("\r\x1b[2K" if self._tty else "") + text)
        sys.stdout.flush()


def main(release: Callable[..., Summary]) -> None:
    """Run one release from the command line and end the process with its exit code."""
    args = _arguments()
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"  # the UI has those lines
    setup_logging()
    lines = Lines()
    log = logging.getLogger("trainyard")
    log.setLevel(logging.INFO)
    log.addHandler(lines)
    progress.listeners.append(lines.progress)
    signal.signal(signal.SIGTERM, _terminated)
    begin = time.monotonic()
    try:
        overrides = dict(parse_override(text) for text in args.set)
        read_recipe(Path(args.recipe), overrides)  # a typo is said before a server starts
        read_environment(args.environment)
        with server_at_hand(Path(".trainyard/logs/server.log")):
            summary = release(
                recipe=args.recipe,
                overrides=overrides or None,
                environment=args.environment,
                dry_run=args.dry_run,
            )
    except Refused as error:
        _end(f"stopped: {error}", 1)
    except Waiting as error:
        _end(f"waiting: {error}", 3)
    except TrainyardError as error:
        _end(f"could not be done: {error}", 2)
    except PrefectHTTPStatusError as error:
        if error.response.status_code not in (401, 403):
            raise
        _end(
            f"could not be done: {PREFECT_API_URL.value()} refuses without its credential: set "
            "PREFECT_API_AUTH_STRING to NAME:PASSWORD",
            2,
        )
    except KeyboardInterrupt:
        _end("interrupted: run the same command again, finished stages are kept", 130)
    folder = Path(".trainyard/runs") / summary.run_id
    if args.dry_run:
        print(plan.as_text(plan.Plan.model_validate(files.read_json(folder / "plan.json"))))
    else:
        print(closing_words(summary, time.monotonic() - begin))
    sys.exit(0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flows.release", description=__doc__)
    parser.add_argument("recipe", metavar="RECIPE")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key"
    )
    parser.add_argument(
        "--environment", default="laptop", help="default: laptop, all in one process"
    )
    parser.add_argument("--dry-run", action="store_true", help="plan only")
    return parser.parse_args()


def closing_words(summary: Summary, seconds: float) -> str:
    """Say what came out and where everything is."""
    folder = Path(".trainyard/runs") / summary.run_id
    lines = ["", f"{summary.verdict}  {summary.recipe} released in {seconds:.0f} s"]
    for gate in files.read_json(folder / "gate.json")["gates"]:
        lines.append(f"  {gate['id']:<18}{_numbers(gate)}")
    lines += [
        "",
        f"version   {summary.version}",
        f"endpoint  {summary.endpoint}",
        *_question_and_answer(summary),
        f"report    {summary.report}",
        f"UI        {_ui_line(summary)}",
        "end       make down   (the model serves until then)",
    ]
    return "\n".join(lines)


def _numbers(gate: dict[str, Any]) -> str:
    if gate["estimate"] is None:
        return str(gate["reason"])
    limit = f"limit {gate['op']} {gate['threshold']:g}, n {gate['n']}"
    if gate["low"] is None or gate["high"] is None:
        return f"{gate['estimate']:.4f}  {gate['method']}, {limit}"
    bounds = f"one-sided 95 % bounds {gate['low']:.4f} to {gate['high']:.4f}"
    return f"{gate['estimate']:.4f}  {bounds}, {limit}"


def _question_and_answer(summary: Summary) -> list[str]:
    """Ask the endpoint a held-out question, as a user would."""
    folder = Path(".trainyard/runs") / summary.run_id
    probe = files.read_json(folder / "probe.json")
    body = {"model": summary.recipe, "temperature": 0, "max_tokens": probe["max_tokens"]}
    reply = httpx.post(
        f"{summary.endpoint}/chat/completions",
        json=body | {"messages": probe["messages"]},
        timeout=60,
        verify=verifies(str(summary.endpoint)),
    )
    answer = reply.json()["choices"][0]["message"]["content"] if reply.is_success else reply.text
    return [f"asked     {probe['messages'][-1]['content']}", f"answered  {answer}"]


def _ui_line(summary: Summary) -> str:
    run = f"runs/flow-run/{summary.flow_run_id}"
    url = PREFECT_UI_URL.value()
    if PREFECT_API_URL.value() and url:
        return f"{url}/{run}"
    return f"make ui   then open http://127.0.0.1:4200/{run}"


def _terminated(*_: object) -> None:
    raise KeyboardInterrupt


def _end(words: str, code: int) -> None:
    print(words, file=sys.stderr)
    sys.stdout.flush()
    sys.exit(code)
