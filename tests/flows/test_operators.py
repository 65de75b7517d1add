"""Two operators who apply pools and deployments at the same moment leave what one would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

from tests.flows import declared

ONE = "{py} -m deployments.pools && {py} -m prefect --no-prompt deploy --all"


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("prefect_server")
def test_two_who_deploy_at_once_leave_every_deployment_once() -> None:
    env = os.environ | {
        "PREFECT_API_URL": PREFECT_API_URL.value() or "",
        "TRAINYARD_ROOT": str(Path.cwd()),
        "TRAINYARD_ENVIRONMENT": "team",
    }
    command = ["bash", "-c", ONE.format(py=sys.executable)]
    both = [
        subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]  # fmt: skip
    for one in both:
        said = one.communicate(timeout=600)[0]
        assert one.returncode == 0, said
    with get_client(sync_client=True) as client:
        assert declared.on_server(client) == declared.in_file()
        pools = sorted(pool.name for pool in client.read_work_pools())
    assert pools.count("cpu") == pools.count("gpu") == 1
