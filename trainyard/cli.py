"""The command line. Exit 0: yes. 1: no (refused, failed). 2: could not be done. 3: people first.

Each verb imports only what it needs, so that `--help` is instant and `check` starts without torch.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainyard.errors import Refused, TrainyardError, Waiting

Verb = Callable[[argparse.Namespace], int]
HOME = Path(".trainyard")


def main(arguments: list[str] | None = None) -> int:
    args = _parser(sys.argv[1:] if arguments is None else arguments).parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        return int(args.run(args))
    except TrainyardError as error:
        waits = 3 if isinstance(error, Waiting) else 2
        return _fail(args, str(error), code=1 if isinstance(error, Refused) else waits)
    except KeyboardInterrupt:
        return _fail(args, "interrupted", code=130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(args, f"{where}{error.strerror or error}", code=2)


def _fail(args: argparse.Namespace, message: str, code: int) -> int:
    print(f"trainyard: {message}", file=sys.stderr)
    if getattr(args, "json", False):
        print(json.dumps({"error": message}))
    return code


def _parser(given: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainyard", description="Fine-tuning CI/CD for language models."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    chosen = next((word for word in given if not word.startswith("-")), None)
    for name, (help_, add) in VERBS.items():
        verb = verbs.add_parser(name, help=help_, description=help_)
        if name == chosen:
            add(verb)
    return parser


def _check(parser: argparse.ArgumentParser) -> None:
    from trainyard.data.command import add_arguments, run

    add_arguments(parser)
    parser.set_defaults(run=run)


def _gate(parser: argparse.ArgumentParser) -> None:
    from trainyard.evaluation.command import add_arguments, run

    add_arguments(parser)
    parser.set_defaults(run=run)


def _plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key"
    )
    parser.add_argument(
        "--against", metavar="VERSION", help="NAME@REF, a version's folder, or a git commit"
    )
    parser.add_argument("--environment", help="look also at what trains there")
    _add_common(parser)
    parser.set_defaults(run=_run_plan)


def _run_plan(args: argparse.Namespace) -> int:
    from trainyard import plan
    from trainyard.against import read_against
    from trainyard.environment import read_environment
    from trainyard.recipe import parse_override, read_recipe
    from trainyard.release.job import Job

    recipe = read_recipe(args.recipe, dict(parse_override(text) for text in args.set))
    against = read_against(args.against, args.recipe, args.home) if args.against else None
    job = Job(recipe=recipe, recipe_path=str(args.recipe), run_id="plan", home=args.home)
    where = read_environment(args.environment) if args.environment else None
    made = plan.make(job, where, against=against)
    _show(args, made.model_dump(mode="json"), plan.as_text(made))
    return 1 if made.problems or made.over_budget else 0


def _webhook(parser: argparse.ArgumentParser) -> None:
    from trainyard.webhook.command import add_arguments, run

    add_arguments(parser)
    parser.set_defaults(run=run)


def _schema(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_run_schema)


def _run_schema(_: argparse.Namespace) -> int:
    from trainyard.recipe import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=2))
    return 0


def _status(parser: argparse.ArgumentParser) -> None:
    of = parser.add_mutually_exclusive_group()
    of.add_argument("--lineage", metavar="VERSION", help="draw where a version comes from")
    of.add_argument(
        "--served", metavar="HEADERS", help="the same of what gave an answer: its headers, or -"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="draw the lineage as a page")
    _add_common(parser)
    parser.set_defaults(run=_run_status)


def _run_status(args: argparse.Namespace) -> int:
    if args.lineage or args.served:
        return _run_lineage(args)
    from trainyard import status

    found = status.read(args.home)
    _show(args, found.model_dump(mode="json"), status.as_text(found))
    return 0


def _run_lineage(args: argparse.Namespace) -> int:
    from trainyard import drawing, files, versions

    version = args.lineage or versions.served_by(args.served, args.home)
    facts = versions.origin(version, args.home)
    if args.html:
        files.write_text(args.html, drawing.as_html(facts))
    _show(args, facts.model_dump(mode="json"), drawing.as_text(facts))
    return 0


def _verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("version", metavar="VERSION", help="NAME@DIGEST, NAME@ALIAS or a folder")
    _add_common(parser)
    parser.set_defaults(run=_run_verify)


def _run_verify(args: argparse.Namespace) -> int:
    from trainyard import versions

    found = versions.verify(args.version, args.home)
    _show(args, found.model_dump(mode="json"), found.as_text())
    return 0


def _export(parser: argparse.ArgumentParser) -> None:
    from trainyard.export import KINDS

    parser.add_argument("version", metavar="VERSION", help="NAME@DIGEST, NAME@ALIAS or a folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist")
    parser.add_argument("--as", dest="kind", choices=KINDS, default="merged")
    _add_common(parser)
    parser.set_defaults(run=_run_export)


def _run_export(args: argparse.Namespace) -> int:
    from trainyard import export, versions

    folder = versions.verify(args.version, args.home).folder
    made = export.export(folder, args.kind, args.out, args.home)
    _show(args, made.model_dump(mode="json"), made.as_text())
    return 0


def _reproduce(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("version", metavar="VERSION", help="NAME@DIGEST, NAME@ALIAS or a folder")
    _add_common(parser)
    parser.set_defaults(run=_run_reproduce)


def _run_reproduce(args: argparse.Namespace) -> int:
    from trainyard import versions

    def said(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    found = versions.reproduce(args.version, args.home, said)
    _show(args, found.model_dump(mode="json") | {"holds": found.holds}, found.as_text())
    return 0 if found.holds else 1


def _keep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("version", metavar="VERSION", help="NAME@DIGEST or NAME@ALIAS")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--why", help="stays with the tag")
    choice.add_argument("--end", action="store_true", help="remove the tag")
    _add_common(parser)
    parser.set_defaults(run=_run_keep)


def _run_keep(args: argparse.Namespace) -> int:
    from trainyard import versions

    found = versions.keep(args.version, args.home, None if args.end else args.why)
    words = "may be swept when it is old" if args.end else f"is kept: {args.why}"
    _show(args, found.model_dump(mode="json"), f"{found.name}@{found.digest[:12]} {words}")
    return 0


def _sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--days", type=float, default=30, help="younger things stay (default 30)")
    parser.add_argument("--delete", action="store_true", help="without it, only say what would go")
    _add_common(parser)
    parser.set_defaults(run=_run_sweep)


def _run_sweep(args: argparse.Namespace) -> int:
    from trainyard import housekeeping

    done = housekeeping.sweep(args.home, days=args.days, delete=args.delete)
    _show(args, done.model_dump(mode="json"), done.as_text())
    return 1 if done.alarm else 0


def _rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the model, as in its recipe")
    parser.add_argument("--why", required=True, help="goes into the history of the alias")
    _add_common(parser)
    parser.set_defaults(run=_run_rollback)


def _run_rollback(args: argparse.Namespace) -> int:
    from trainyard import versions

    done = versions.rollback(args.name, args.home, why=args.why)
    words = f"{done.back_to} serves again instead of {done.away_from}, after {done.seconds:.2f} s"
    _show(args, done.model_dump(mode="json"), words)
    return 0


def _promote(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("version", metavar="VERSION", help="NAME, NAME@DIGEST or NAME@ALIAS")
    parser.add_argument(
        "--to", default="production", metavar="ENVIRONMENT", help="default: production"
    )
    _add_common(parser)
    parser.set_defaults(run=_run_promote)


def _run_promote(args: argparse.Namespace) -> int:
    from trainyard import promotion

    done = promotion.promote(args.version, args.home, args.to)
    _show(args, done.model_dump(mode="json"), f"{done.reason}\nendpoint  {done.endpoint}")
    return 0


def _approve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id", metavar="RUN", help="the run that asks")
    parser.add_argument("--by", required=True, metavar="NAME", help="as the recipe names you")
    parser.add_argument("--why", required=True, help="goes into the lineage of the version")
    parser.add_argument("--reject", action="store_true", help="say no")
    _add_common(parser)
    parser.set_defaults(run=_run_approve)


def _run_approve(args: argparse.Namespace) -> int:
    from trainyard import approval

    asked = approval.asked_by(args.home, args.run_id)
    choice: approval.Choice = "reject" if args.reject else "approve"
    said = approval.Answer(choice=choice, who=args.by, why=args.why, time=approval.now_s())
    done = approval.answer(args.home, asked, said)
    words = f"{done.served_name} for {done.environment}: {choice} by {args.by}"
    if not args.reject:
        words += "; repeat what asked for it, it goes on from here"
    _show(args, done.model_dump(mode="json"), words)
    return 0


def _rollout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the model, as in its recipe")
    parser.add_argument(
        "word",
        choices=("approve", "promote", "pause", "resume", "abort"),
        help="approve: yes to what it waits for; promote: no more evidence; pause: at this weight",
    )
    parser.add_argument("--why", required=True, help="stays in the record of the rollout")
    _add_common(parser)
    parser.set_defaults(run=_run_rollout)


def _run_rollout(args: argparse.Namespace) -> int:
    from trainyard import rollout

    said = rollout.command(args.home, args.name, args.word, args.why)
    _show(args, {"name": args.name, "said": said}, f"{args.name}: {said}")
    return 0


def _monitor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key"
    )
    parser.add_argument("--environment", default="laptop", help="where it serves")
    _add_common(parser)
    parser.set_defaults(run=_run_monitor)


def _run_monitor(args: argparse.Namespace) -> int:
    from trainyard.environment import read_environment
    from trainyard.monitor import watch
    from trainyard.monitor.finding import Health
    from trainyard.recipe import parse_override, read_recipe

    recipe = read_recipe(args.recipe, dict(parse_override(text) for text in args.set))
    found = watch.look(recipe, args.home, read_environment(args.environment), dry=True)
    _show(args, found.model_dump(mode="json"), found.as_text())
    return 0 if found.health is Health.HEALTHY else 1


def _collect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE")
    parser.add_argument("--environment", default="laptop", help="where it serves")
    _add_common(parser)
    parser.set_defaults(run=_run_collect)


def _run_collect(args: argparse.Namespace) -> int:
    from trainyard.environment import read_environment
    from trainyard.monitor import harvest
    from trainyard.recipe import read_recipe

    place = read_environment(args.environment).home(args.home)
    made = harvest.collect(read_recipe(args.recipe), args.home, place)
    _show(args, made.model_dump(mode="json") | {"folder": str(made.folder)}, made.as_text())
    return 0


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--home", type=Path, default=HOME, help="state folder (default .trainyard)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _show(args: argparse.Namespace, value: dict[str, Any], text: str) -> None:
    print(json.dumps(value, indent=2) if args.json else text)


VERBS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "check": ("Check a data set: every bad row by file, line and reason.", _check),
    "plan": ("Say what a release would do, cost and skip, before it does it.", _plan),
    "webhook": ("Listen to git servers: a push releases, a merge request is planned.", _webhook),
    "gate": ("Decide on saved scores: PASS, FAIL, INCONCLUSIVE or INVALID.", _gate),
    "schema": ("Print the JSON Schema of a recipe, for editors.", _schema),
    "status": ("Show runs, versions, aliases and what is served.", _status),
    "verify": ("Check that a version is whole and unaltered.", _verify),
    "export": ("Write a version as one model, proved against its adapter.", _export),
    "reproduce": ("Make a version again and compare.", _reproduce),
    "keep": ("Tag a version so that no sweep takes it.", _keep),
    "sweep": ("Say, or delete, what nothing needs any more.", _sweep),
    "promote": ("Give a version traffic in the next environment, as it is.", _promote),
    "approve": ("Answer a release that waits for a named person.", _approve),
    "monitor": ("Look at the champion and say what the monitor would do.", _monitor),
    "collect": ("Make a data-set version of feedback and corrections.", _collect),
    "rollback": ("Put the former champion back.", _rollback),
    "rollout": ("Answer, hurry, pause or end a rollout in progress.", _rollout),
}
