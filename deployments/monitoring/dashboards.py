"""The Grafana dashboards, as data; `python -m deployments.monitoring.dashboards` writes the JSON.

Every expression is run against a live Prometheus in tests/services/monitoring.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent / "grafana"
_WIDTH, _HEIGHT, _ACROSS = 8, 8, 3


class Panel(NamedTuple):
    title: str
    unit: str
    """Grafana's name of the unit."""

    queries: dict[str, str]
    """Legend -> expression."""

    kind: str = "timeseries"


def _rate(metric: str, by: str, chosen: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{chosen}}}[$__rate_interval]))"


def _quantile(q: float, metric: str, by: str) -> str:
    buckets = f"sum by ({by}, le) (rate({metric}[$__rate_interval]))"
    return f"histogram_quantile({q}, {buckets})"


def _engine(name: str) -> str:
    """Name a metric of vLLM in a way that every Prometheus reads alike."""
    return f'{{__name__="vllm:{name}"}}'


SERVING = [
    Panel(
        "Requests",
        "reqps",
        {"{{variant}} {{code}}": _rate("gateway_requests_total", "variant, code")},
    ),
    Panel(
        "Failed",
        "percentunit",
        {
            "{{variant}}": _rate("gateway_requests_total", "variant", 'code=~"5..|0"')
            + " / "
            + _rate("gateway_requests_total", "variant")
        },
    ),
    Panel("Weight", "percent", {"{{variant}}": "max by (variant) (gateway_weight_pct)"}),
    Panel(
        "End to end",
        "s",
        {
            "{{variant}} p50": _quantile(0.5, "gateway_request_seconds_bucket", "variant"),
            "{{variant}} p95": _quantile(0.95, "gateway_request_seconds_bucket", "variant"),
        },
    ),
    Panel(
        "First token",
        "s",
        {"{{variant}} p95": _quantile(0.95, "gateway_ttft_seconds_bucket", "variant")},
    ),
    Panel(
        "Tokens", "short", {"{{variant}} {{kind}}": _rate("gateway_tokens_total", "variant, kind")}
    ),
    Panel(
        "Flagged answers",
        "reqps",
        {"{{variant}} {{flag}}": _rate("gateway_flagged_total", "variant, flag")},
    ),
    Panel("In progress", "short", {"{{instance}}": "gateway_inflight"}),
    Panel(
        "Under load",
        "reqps",
        {
            "refused": "sum(rate(gateway_shed_total[$__rate_interval]))",
            "by the champion instead": "sum(rate(gateway_retried_total[$__rate_interval]))",
            "copies not made": "sum(rate(gateway_shadow_dropped_total[$__rate_interval]))",
            "given up by the client": "sum(rate(gateway_client_gone_total[$__rate_interval]))",
        },
    ),
    Panel("Leases that ran out", "short", {"{{instance}}": "gateway_lease_lapsed_total"}, "stat"),
    Panel("Versions", "short", {"{{variant}} {{version}}": "gateway_version_info"}, "stat"),
    Panel(
        "Engine's queue",
        "short",
        {
            "running {{instance}}": _engine("num_requests_running"),
            "waiting {{instance}}": _engine("num_requests_waiting"),
        },
    ),
]

PIPELINE = [
    Panel(
        "Releases",
        "short",
        {"{{recipe}} {{status}} {{verdict}}": "trainyard_releases_total"},
        "stat",
    ),
    Panel("Interrupted", "short", {"{{recipe}}": "trainyard_releases_interrupted"}, "stat"),
    Panel(
        "Since the last release",
        "s",
        {"{{recipe}}": "time() - trainyard_last_release_timestamp_seconds"},
        "stat",
    ),
    Panel(
        "Mean time of a stage",
        "s",
        {
            "{{recipe}} {{stage}}": "trainyard_stage_seconds_sum / trainyard_stage_seconds_count",
        },
    ),
    Panel("Stages skipped", "short", {"{{recipe}} {{stage}}": "trainyard_stages_skipped_total"}),
    Panel("GPU-hours", "h", {"{{recipe}}": "trainyard_gpu_hours_total"}),
    Panel("Cost", "short", {"{{recipe}}": "trainyard_cost_total"}),
    Panel("Champions", "short", {"{{model}} {{version}}": "trainyard_champion_info"}, "stat"),
    Panel(
        "What the monitor finds",
        "short",
        {"{{model}} {{environment}} {{check}} {{health}}": "trainyard_monitor_finding == 1"},
        "stat",
    ),
    Panel(
        "Since the last look",
        "s",
        {"{{model}} {{environment}}": "time() - trainyard_monitor_look_timestamp_seconds"},
        "stat",
    ),
    Panel(
        "Drift: p-values",
        "short",
        {"{{model}} {{environment}} newest {{window}}": "trainyard_monitor_drift_p_value"},
    ),
    Panel(
        "Worse answers: e-values",
        "short",
        {"{{model}} {{environment}} {{check}}": "trainyard_monitor_e_value"},
    ),
]

DASHBOARDS = {"serving": SERVING, "pipeline": PIPELINE}


def dashboard(name: str, panels: list[Panel]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "uid": f"trainyard-{name}",
        "title": f"trainyard: {name}",
        "tags": ["trainyard"],
        "schemaVersion": 39,
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus", "label": "Source"}
            ]
        },
        "panels": [
            {
                "id": n + 1,
                "title": panel.title,
                "type": panel.kind,
                "datasource": source,
                "gridPos": {
                    "x": n % _ACROSS * _WIDTH,
                    "y": n // _ACROSS * _HEIGHT,
                    "w": _WIDTH,
                    "h": _HEIGHT,
                },
                "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
                "targets": [
                    {"refId": chr(65 + m), "expr": expression, "legendFormat": legend}
                    for m, (legend, expression) in enumerate(panel.queries.items())
                ],
            }
            for n, panel in enumerate(panels)
        ],
    }


def text(name: str) -> str:
    return json.dumps(dashboard(name, DASHBOARDS[name]), indent=2) + "\n"


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(text(name), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
