"""`trainyard webhook`: the service, until it is ended."""

import argparse
import asyncio
import logging
import os
from pathlib import Path

from trainyard.recipe.load import load
from trainyard.webhook.config import WebhookConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("deployments/webhook.yaml"),
        help="which repositories may start what (default deployments/webhook.yaml)",
    )
    parser.add_argument("--home", type=Path, default=Path(".trainyard"), help="state folder")


def run(args: argparse.Namespace) -> int:
    from trainyard.webhook.server import serve  # noqa: PLC0415  (--help starts without aiohttp)

    config = load(args.config, WebhookConfig)
    logging.getLogger("trainyard").setLevel(os.environ.get("TRAINYARD_LOG_LEVEL", "INFO"))
    asyncio.run(serve(config, args.home.absolute()))
    return 0
