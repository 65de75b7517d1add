import os
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from trainyard import files
from trainyard.exporter import Pipeline
from trainyard.monitor import questions, record, traffic
from trainyard.monitor.change import Change
from trainyard.monitor.finding import worst
from trainyard.monitor.questions import DriftMemory
from trainyard.monitor.record import Look
from trainyard.monitor.traffic import Traffic
from trainyard.recipe.monitor import DriftSpec, FeedbackSpec
from trainyard.rollout.state import Placed, State, Store
from trainyard.rollout.target import ServedVersion
from trainyard.run import Run, StageSummary


def said(home: Path) -> str:
    registry = CollectorRegistry()
    registry.register(Pipeline(home))
    return generate_latest(registry).decode()


def drifted(at: float) -> Look:
    """A look that found drift, by the checks themselves."""
    drift = DriftSpec(against="traffic", reference=30, short=30, long=60)
    rows = [{"messages": [{"role": "user", "content": f"where is order {i}"}]} for i in range(60)]
    rows += [{"messages": [{"role": "user", "content": f"titrate enzyme {i}"}]} for i in range(30)]
    tested = questions.check_drift(drift, rows, None, DriftMemory()).finding
    assert tested is not None
    votes = Change().take([False] * 60, baseline=50, margin=0.05, alpha=0.01)
    heard = traffic.check_feedback(Traffic(votes=votes), FeedbackSpec())
    findings = (tested, heard)
    return Look(at=at, model="m", version="a" * 64, health=worst([*findings]), findings=findings)


def test_what_the_newest_look_found_is_exported_by_model_and_environment(tmp_path: Path) -> None:
    folder = record.folder_of(tmp_path, "m")
    folder.mkdir(parents=True)
    record.keep(folder, drifted(1.0))
    record.keep(folder, drifted(2.0))
    with (folder / record.LOOKS).open("a") as file:
        file.write('{"at": 3.0, "mod')  # killed while it was written
    text = said(tmp_path)
    mine = 'environment="production"'
    for line in (
        f'trainyard_monitor_look_timestamp_seconds{{{mine},model="m"}} 2.0',
        f'trainyard_monitor_finding{{check="drift",{mine},health="BREACH",model="m"}} 1.0',
        f'trainyard_monitor_finding{{check="drift",{mine},health="HEALTHY",model="m"}} 0.0',
        f'trainyard_monitor_drift_p_value{{{mine},model="m",window="30"}} 0.001',
        f'trainyard_monitor_drift_p_value{{{mine},model="m",window="60"}} 0.001',
        f'trainyard_monitor_drift_mmd2{{{mine},model="m",window="30"}} 0.',
        f'trainyard_monitor_e_value{{check="feedback",{mine},model="m"}} 0.',
    ):
        assert line in text, text


def waiting_rollout(home: Path, asked: float) -> None:
    version = ServedVersion(name="m", digest="b" * 64, adapter=home, base=home)
    store = Store(home / "serving" / "m")
    store.save(
        State(id="r", phase="waiting", plan=("start",), candidate=Placed(version=version,
              slot="green"), champion=None, salt="", started_at=asked)
    )  # fmt: skip
    os.utime(store.folder / "rollout.json", (asked, asked))


def test_a_rollout_that_waits_for_a_person_is_exported_since_when(tmp_path: Path) -> None:
    waiting_rollout(tmp_path / "environments" / "staging", 7.0)
    name = "trainyard_rollout_waiting_since_timestamp_seconds"
    assert f'{name}{{environment="staging",model="m"}} 7.0' in said(tmp_path)


def test_waits_gpu_hours_cost_and_plans_are_metrics_of_a_run_whatever_its_end(
    tmp_path: Path,
) -> None:
    run = Run.start(tmp_path, "tickets", "r.yaml")
    run.summary.stages.append(StageSummary(name="train", status="done", seconds=90, queue_s=30))
    run.end(ValueError("a bug"))
    spent = {"gpu_hours": 0.5, "amount": 1.25, "judge_tokens": 7, "train_s": 60}
    files.write_json(run.folder / "cost.json", spent | {"estimated_train_s": 90})
    text = said(tmp_path)
    for line in (
        'trainyard_queue_wait_seconds_sum{recipe="tickets",stage="train"} 30.0',
        'trainyard_gpu_hours_total{recipe="tickets"} 0.5',
        'trainyard_cost_total{recipe="tickets"} 1.25',
        'trainyard_judge_tokens_total{recipe="tickets"} 7.0',
        'trainyard_estimate_ratio{recipe="tickets"} 1.5',
    ):
        assert line in text, text
