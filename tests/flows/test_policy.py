import inspect
import logging
import pkgutil
from importlib import import_module
from typing import Any

import pytest
from prefect import Flow, Task, flow, task

import flows
import tasks
from flows.release import release
from tasks.policy import quiet_own_errors, worth_retrying
from trainyard.errors import InputError, TrainyardError, Unavailable


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (Unavailable("the registry did not answer"), 3),
        (InputError("batch_size (10) must be a multiple of 4"), 1),  # time heals no recipe
    ],
)
@pytest.mark.usefixtures("prefect_server")
def test_only_a_silent_service_is_asked_again(error: TrainyardError, calls: int) -> None:
    seen: list[int] = []

    @task(retries=2, retry_condition_fn=worth_retrying)
    def step() -> None:
        seen.append(1)
        raise error

    @flow
    def run() -> None:
        step()

    with pytest.raises(type(error)):
        run()
    assert len(seen) == calls


@pytest.mark.usefixtures("prefect_server")
def test_an_error_of_ours_is_logged_as_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    quiet_own_errors()
    logging.getLogger("prefect").propagate = True

    @task
    def step() -> None:
        raise InputError("rank is 0")

    @flow
    def run() -> None:
        step()

    with caplog.at_level(logging.ERROR), pytest.raises(InputError):
        run()
    told = [record for record in caplog.records if "rank is 0" in record.getMessage()]
    assert told
    assert not [record for record in told if record.exc_info]


def test_hooks_have_the_names_that_the_worker_calls_them_by() -> None:
    hooks = [*(release.on_cancellation_hooks or []), *(release.on_crashed_hooks or [])]
    assert hooks
    for hook in hooks:
        assert list(inspect.signature(hook).parameters) == ["flow", "flow_run", "state"]


def _declared() -> dict[str, "Flow[..., Any] | Task[..., Any]"]:
    found = {}
    for package in (flows, tasks):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            values = vars(import_module(module.name)).values()
            runs = (value for value in values if isinstance(value, Flow | Task))
            found |= {f"{one.fn.__module__}.{one.fn.__name__}": one for one in runs}
    return found


def test_every_task_and_flow_keeps_secrets_from_its_errors() -> None:
    declared = _declared()
    assert len(declared) > 20
    assert not [name for name, one in declared.items() if one.fn.__code__.co_name != "kept"]
