"""How a version that passed its gates gets traffic: where, by which engine, on which evidence."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from trainyard.recipe.approval import ApprovalSpec
from trainyard.recipe.base import Fraction, Frozen
from trainyard.recipe.register import SecretRef
from trainyard.recipe.strategy import Ab, AllAtOnce, BlueGreen, Canary, Evidence, SloSpec, Strategy

__all__ = ["Ab", "AllAtOnce", "BlueGreen", "Canary", "DeploySpec", "Evidence", "SloSpec"]


class LocalTarget(Frozen):
    """Processes on this machine that outlive the release."""

    kind: Literal["local"] = "local"


class DockerTarget(Frozen):
    """A container per version, behind the gateway on this machine.

    `DOCKER_HOST` names the Docker engine; without it, it is this machine's.
    """

    kind: Literal["docker"] = "docker"

    image: Annotated[str, Field(pattern=r"^\S+(:[\w.-]+|@sha256:[0-9a-f]{64})$")] | None = None
    """Image of the engine, with a tag or, better, a digest. None: the one the engine was tried
    with."""

    blue_gpus: tuple[str, ...] = ()
    """Devices of the first slot, as `nvidia-smi -L` numbers or names them. Empty: no GPU."""

    green_gpus: tuple[str, ...] = ()
    """Devices of the second slot. The same ones are possible if both engines fit their memory."""

    arguments: tuple[str, ...] = ()
    """Further arguments of the engine, for instance `--max-model-len`, `8192`."""

    env: dict[str, str] = Field(default_factory=dict)
    """Further environment of the engine; no secrets, anybody on the machine can read it."""

    shm_gib: PositiveFloat = 8
    """Shared memory of the container, in GiB: tensor parallel engines need it."""

    @model_validator(mode="after")
    def _image_never_moves(self) -> Self:
        if self.image is not None and self.image.endswith(":latest"):
            raise ValueError(f"image {self.image} can change by itself: name a version or a digest")
        return self


class S3Source(Frozen):
    """The archive, from which an init container fetches and verifies the adapter."""

    url: Annotated[str, Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$")]
    """`s3://bucket` or `s3://bucket/prefix`, as in `register.archive`."""

    endpoint: Annotated[str, Field(pattern=r"^https?://[^/]+/?$")] = "https://s3.amazonaws.com"
    """Address of the server, as the pods reach it."""

    region: str = "us-east-1"
    """Region that requests are signed for."""

    secret: str
    """Secret of the namespace with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."""


class Toleration(Frozen):
    """A taint of nodes that the engine's pods accept."""

    key: str
    """Key of the taint, for instance `nvidia.com/gpu`."""

    value: str | None = None
    """Value of the taint. None: any."""

    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"
    """Effect of the taint."""


class Hpa(Frozen):
    """Replicas by a HorizontalPodAutoscaler; the metrics come from prometheus-adapter."""

    kind: Literal["hpa"] = "hpa"

    max_replicas: PositiveInt = 4
    """Most replicas of one version; `replicas` is the least."""

    waiting: PositiveFloat = 4
    """Requests that wait in the queue of one replica, on average, beyond which more are started."""

    requests_per_s: PositiveFloat = 5
    """Requests per second and replica beyond which more are started."""


class Keda(Frozen):
    """Replicas by a KEDA ScaledObject that asks Prometheus."""

    kind: Literal["keda"] = "keda"

    max_replicas: PositiveInt = 4
    """Most replicas of one version; `replicas` is the least."""

    waiting: PositiveFloat = 4
    """Requests that wait in the queue of one replica, on average, beyond which more are started."""

    requests_per_s: PositiveFloat = 5
    """Requests per second and replica beyond which more are started."""

    prometheus: Annotated[str, Field(pattern=r"^https?://\S+$")]
    """Address of Prometheus, as KEDA reaches it."""


ByDigest = Annotated[str, Field(pattern=r"^\S+@sha256:[0-9a-f]{64}$")]
DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]


class KubernetesTarget(Frozen):
    """A Deployment per version behind one HTTPRoute, whose weights are the rollout.

    Whoever runs the rollout must reach the pods: run it in the cluster, in a pod with the label
    `trainyard.dev/role: controller`. Needs the Gateway API and deployments/kubernetes/.
    """

    kind: Literal["kubernetes"] = "kubernetes"

    namespace: DnsLabel
    """Namespace of everything of this model; one per environment."""

    context: str | None = None
    """Context of the kubeconfig. None: the pod's own service account, else the current one."""

    image: ByDigest
    """Image of the engine, by digest."""

    gateway_image: ByDigest
    """Image of this project, by digest; its gateway runs beside every engine and keeps the records
    that the rollout reads."""

    gateway: Annotated[str, Field(pattern=r"^[a-z0-9-]+/[a-z0-9.-]+$")]
    """Namespace and name of the Gateway that the HTTPRoute joins."""

    hostname: str
    """Host name of the model's stable URL."""

    url: Annotated[str, Field(pattern=r"^https?://\S*[^/\s]$")]
    """The model's stable URL, without `/v1`."""

    claim: str
    """PersistentVolumeClaim with the base model and, unless `archive` is set, the versions."""

    mount: Annotated[str, Field(pattern=r"^/\S+$")] = "/app/.trainyard"
    """Where the claim is mounted, here as in the engine's pods."""

    archive: S3Source | None = None
    """Fetch the adapter from S3 rather than from the claim."""

    replicas: PositiveInt = 1
    """Replicas of each version; with `scale`, the least."""

    scale: Annotated[Hpa | Keda, Field(discriminator="kind")] | None = None
    """What changes the number of replicas. None: nothing does."""

    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs of one replica, as `nvidia.com/gpu`."""

    cpu: str = "1"
    """CPUs that one engine requests, as Kubernetes writes them."""

    memory_gib: PositiveFloat = 16
    """Memory that one engine requests and may not exceed, in GiB."""

    shm_gib: PositiveFloat = 8
    """Shared memory of the engine, in GiB; it counts as memory."""

    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes that may run an engine."""

    tolerations: tuple[Toleration, ...] = ()
    """Taints that the engine's pods accept."""

    service_account: str = "trainyard-engine"
    """Account of the engine's pods; it needs no rights, and its token is not mounted."""

    pull_secret: str | None = None
    """Secret of the registry, when images are private."""

    arguments: tuple[str, ...] = ()
    """Further arguments of the engine, for instance `--max-model-len`, `8192`."""

    env: dict[str, str] = Field(default_factory=dict)
    """Further environment of the engine; no secrets."""

    controllers: DnsLabel = "trainyard"
    """Namespace whose controller pods may ask the replicas directly."""

    monitoring: DnsLabel = "monitoring"
    """Namespace whose pods may read metrics."""

    @model_validator(mode="after")
    def _shared_memory_is_memory(self) -> Self:
        if self.shm_gib >= self.memory_gib:
            raise ValueError(
                f"shm_gib ({self.shm_gib:g}) must be below memory_gib ({self.memory_gib:g}): "
                "Kubernetes counts it as memory"
            )
        return self

    @model_validator(mode="after")
    def _scale_goes_up(self) -> Self:
        if self.scale is not None and self.scale.max_replicas < self.replicas:
            raise ValueError(
                f"scale.max_replicas ({self.scale.max_replicas}) must be at least replicas "
                f"({self.replicas})"
            )
        return self


class TlsFiles(Frozen):
    """Where the gateway finds its certificate; read when it starts."""

    cert: Path
    """PEM file: the certificate, then those between it and its authority."""

    key: Path
    """PEM file of the private key, without a passphrase."""


class DeploySpec(Frozen):
    target: Annotated[
        LocalTarget | DockerTarget | KubernetesTarget, Field(discriminator="kind")
    ] = LocalTarget()
    """Where engines run: `local` processes, `docker` containers, or pods in `kubernetes`."""

    engine: Literal["cpu", "vllm", "tgi", "sglang"] = "cpu"
    """What answers. `cpu` is the server of this project: no GPU, small models. `vllm` is the one
    to prefer on a GPU; TGI's makers ended its development with 3.3.7."""

    threads: PositiveInt = 1
    """CPU threads of each engine; read by `cpu` only."""

    host: str = "127.0.0.1"
    """Address the gateway listens on. `0.0.0.0` lets other machines in."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8700
    """Port of the gateway, the model's stable URL; 0 takes any free one."""

    strategy: Strategy = Canary()
    """How a version gets its traffic, and what sends it back."""

    slo: SloSpec | None = None
    """Objectives that hold for every version, whatever the champion does. None: the candidate is
    only compared with the champion."""

    expected_requests_per_s: PositiveFloat | None = None
    """Users' requests per second to this model; with it, the plan foresees how long a canary takes
    and how soon it would find a fault."""

    ready_timeout_s: PositiveFloat = 300
    """Seconds an engine has to load and to answer its first probe."""

    lease_s: Annotated[float, Field(ge=2)] = 30
    """If the rollout's controller is silent for so long, the canary loses its traffic."""

    soak_s: NonNegativeFloat = 60
    """Seconds after 100 % in which the former champion stays warm and a breach brings it back."""

    answers: Literal["text", "json"] = "text"
    """`json`: an answer that is not JSON is a bad answer."""

    api_keys: tuple[SecretRef, ...] = ()
    """Keys of which users must bring one as bearer token. None: anybody who reaches the port may
    ask."""

    tls: TlsFiles | None = None
    """Certificate with which the gateway speaks https. None: http, for a proxy or this machine."""

    max_inflight: PositiveInt = 256
    """Requests in progress beyond which the gateway sheds with 429."""

    max_body_mib: PositiveFloat = 8
    """Largest request body."""

    approval: ApprovalSpec | None = None
    """A named person who has to say yes before a version gets traffic. None: the gates decide."""

    log_fraction: Fraction = 0
    """Share of the live requests that the gateway logs, redacted, for drift and the next data."""

    @model_validator(mode="after")
    def _engine_runs_there(self) -> Self:
        if isinstance(self.target, LocalTarget) and self.engine != "cpu":
            raise ValueError(
                f"engine {self.engine} runs as a container: write target: {{kind: docker}}"
            )
        imageless = isinstance(self.target, DockerTarget) and self.target.image is None
        if self.engine == "cpu" and imageless:
            raise ValueError("engine cpu has no published image: name yours in target.image")
        return self

    @model_validator(mode="after")
    def _gateway_is_here(self) -> Self:
        if self.tls is not None and isinstance(self.target, KubernetesTarget):
            raise ValueError("tls is the Gateway's business in kubernetes: leave it out")
        return self

    @model_validator(mode="after")
    def _one_gateway_hears(self) -> Self:
        if not isinstance(self.target, KubernetesTarget):
            return self
        if isinstance(self.strategy, Ab):
            raise ValueError(
                "strategy ab needs one gateway that knows every answer; in kubernetes each replica "
                "has its own: take canary"
            )
        if isinstance(self.strategy, Evidence) and self.strategy.judged is not None:
            raise ValueError(
                "strategy.judged reads the pairs that one gateway logs; in kubernetes each replica "
                "has its own: leave it out, and gate on the pairwise suite before the rollout"
            )
        return self

    @model_validator(mode="after")
    def _lease_outlasts_looks(self) -> Self:
        if isinstance(self.strategy, Evidence) and self.lease_s < 2 * self.strategy.look_s:
            raise ValueError(
                f"lease_s ({self.lease_s:g}) must be at least twice look_s "
                f"({self.strategy.look_s:g}): the lease is renewed once per look"
            )
        return self
