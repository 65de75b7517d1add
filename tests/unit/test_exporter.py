from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from trainyard import files
from trainyard.exporter import Pipeline
from trainyard.run import Run, StageSummary


def test_waits_gpu_hours_cost_and_plans_are_metrics_of_a_run_whatever_its_end(
    tmp_path: Path,
) -> None:
    run = Run.start(tmp_path, "tickets", "r.yaml")
    run.summary.stages.append(StageSummary(name="train", status="done", seconds=90, queue_s=30))
    run.end(ValueError("a bug"))
    spent = {"gpu_hours": 0.5, "amount": 1.25, "judge_tokens": 7, "train_s": 60}
    files.write_json(run.folder / "cost.json", spent | {"estimated_train_s": 90})
    registry = CollectorRegistry()
    registry.register(Pipeline(tmp_path))
    said = generate_latest(registry).decode()
    for line in (
        'trainyard_queue_wait_seconds_sum{recipe="tickets",stage="train"} 30.0',
        'trainyard_gpu_hours_total{recipe="tickets"} 0.5',
        'trainyard_cost_total{recipe="tickets"} 1.25',
        'trainyard_judge_tokens_total{recipe="tickets"} 7.0',
        'trainyard_estimate_ratio{recipe="tickets"} 1.5',
    ):
        assert line in said, said
