"""An archive that is away when a version is registered: parked, shown, registered later."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services.storage.conftest import archive
from tests.services.storage.servers import Gateway
from tests.services.storage.test_killed import make_run
from trainyard import lineage, registration, storage
from trainyard.errors import Unavailable
from trainyard.recipe.register import RegisterSpec
from trainyard.registry import open_registry
from trainyard.storage.s3 import S3Store

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


def test_a_version_whose_archive_is_away_is_parked_shown_and_registered_by_the_next_run(
    moto_url: str, tmp_path: Path
) -> None:
    gateway = Gateway(moto_url)
    gateway.rule = lambda _method, _path: (503, "ServiceUnavailable")
    home, run = tmp_path / "home", make_run(tmp_path / "run")
    spec = RegisterSpec(archive=archive(gateway.url, "parked"), keep_inputs="none")
    facts = lineage.read(run / "lineage.json")
    with pytest.raises(Unavailable, match=r"is parked in .* without training again"):
        registration.publish(
            spec, home, facts, run / "adapter", {"gate.json": run / "gate.json"}, who="ci"
        )
    command = [sys.executable, "-m", "trainyard", "status", "--json", "--home", str(home)]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    (line,) = shown["parked"]
    assert line.startswith(f"support@{facts.digest[:12]} since ")
    assert registration.register_parked(home) == []  # still away
    gateway.rule = lambda _method, _path: None
    (made,) = registration.register_parked(home)
    assert made.record.digest == facts.digest
    assert registration.parked(home) == []
    assert open_registry(spec.registry, home).resolve("support", "candidate") == made.record
    assert storage.list_versions(S3Store(archive(moto_url, "parked")), "support") == [facts.digest]
    gateway.close()
