"""An engine in a pod of its own for the time of an evaluation: same image, engine and arguments."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from trainyard import files
from trainyard.errors import InputError, Unavailable
from trainyard.recipe.deploy import DeploySpec, KubernetesTarget
from trainyard.rollout import manifest_names, manifest_pod
from trainyard.rollout.kubernetes import Cluster
from trainyard.serving.engines import ENGINES, adapter_rank, not_ready


@contextmanager
def serving(
    spec: DeploySpec, *, base: Path, base_name: str, adapters: Mapping[str, Path], log: Path
) -> Iterator[str]:
    """Serve a base and several adapters for a while; yields the pod's URL.

    Raises InputError for what can never start, Unavailable when it is not ready within
    `ready_timeout_s`. Base and adapters must be on the claim of the target.
    """
    target = spec.target
    assert isinstance(target, KubernetesTarget)
    places = {name: manifest_names.below_mount(target, folder) for name, folder in adapters.items()}
    pod = manifest_pod.engine_pod(
        spec,
        target,
        manifest_names.below_mount(target, base.absolute()),
        base_name,
        places,
        max((adapter_rank(folder) for folder in adapters.values()), default=8),
    )
    mark = hashlib.sha256(repr((base_name, sorted(adapters))).encode()).hexdigest()[:8]
    name = f"{manifest_names.slug(base_name)}-{mark}"
    cluster = Cluster(target.namespace, target.context)
    try:
        cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "namespace": target.namespace,
                    "labels": manifest_names.labels(base_name),
                },
                "spec": {**pod, "restartPolicy": "Never"},
            }
        )
        try:
            yield _await(cluster, name, spec, [base_name, *adapters])
        finally:
            files.write_bytes(log, cluster.last_log_line(name, "engine").encode())
            cluster.delete("Pod", name)
    finally:
        cluster.close()


def _await(cluster: Cluster, name: str, spec: DeploySpec, models: Sequence[str]) -> str:
    end = time.monotonic() + spec.ready_timeout_s
    engine, why = ENGINES[spec.engine], "no address yet"
    while time.monotonic() < end:
        status = (cluster.get("Pod", name) or {}).get("status", {})
        if status.get("phase") in ("Failed", "Succeeded"):
            said = cluster.last_log_line(name, "engine")
            raise InputError(f"the engine {engine.name} ended in pod {name}: {said}")
        if address := status.get("podIP"):
            host = f"[{address}]" if ":" in address else address
            url = f"http://{host}:{manifest_names.ENGINE_PORT}"
            answers = (not_ready(url, engine, model, base_name=models[0]) for model in models)
            why = next((answer for answer in answers if answer), "")
            if not why:
                return url
        time.sleep(1)
    raise Unavailable(f"{engine.name} was not ready within {spec.ready_timeout_s:g} s: {why}")
