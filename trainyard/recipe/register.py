"""Section `register` of a recipe: where versions are kept, named and tracked."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from trainyard.recipe.base import Frozen

SecretRef = Annotated[
    str, Field(pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:.+|block:[a-z0-9-]+)$")
]
"""Where a secret is found, never the secret: `env:NAME`, `file:/run/secrets/name`, or `block:name`
for a Secret block of Prefect, in a flow."""


class MlflowRegistry(Frozen):
    """MLflow's tracking and model registry."""

    kind: Literal["mlflow"] = "mlflow"

    uri: str | None = None
    """`https://...` of a team's server, or a database URL as `postgresql://...`. Absent: one sqlite
    file in the home folder, with no server and no account."""

    experiment: str | None = None
    """MLflow experiment of the runs; absent: the recipe's name."""

    token: SecretRef | None = None
    """Bearer token of the server."""


class WandbRegistry(Frozen):
    """Weights & Biases: runs in `entity/project`, versions linked into a registry."""

    kind: Literal["wandb"]

    entity: str
    """Team or user that owns the runs."""

    project: str
    """Project of the runs."""

    registry: str = "model"
    """Registry that versions are linked to, without the prefix `wandb-registry-`. It must exist."""

    base_url: str = "https://api.wandb.ai"
    """Address of the W&B server."""

    api_key: SecretRef = "env:WANDB_API_KEY"
    """Key of the account."""

    connect_timeout_s: PositiveFloat = 30
    """Seconds the server has to answer when a run opens."""

    when_down: Literal["offline", "skip"] = "offline"
    """A run whose server does not answer: `offline` keeps its metrics on disk and the next run that
    reaches the server sends them; `skip` leaves them out. Versions are registered online."""


RegistrySpec = Annotated[MlflowRegistry | WandbRegistry, Field(discriminator="kind")]


class FolderArchive(Frozen):
    """A folder on this machine or on a shared disk."""

    kind: Literal["file"] = "file"

    url: Annotated[str, Field(pattern=r"^file://.+")] | None = None
    """`file:///absolute/path`, or `file://relative/path` from the current directory. Absent: the
    folder `archive` in the home folder."""


class S3Archive(Frozen):
    """A bucket of any server that speaks S3."""

    kind: Literal["s3"]

    url: Annotated[str, Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$")]
    """`s3://bucket` or `s3://bucket/prefix`."""

    endpoint: Annotated[str, Field(pattern=r"^https?://[^/]+/?$")] = "https://s3.amazonaws.com"
    """Address of the server."""

    region: str = "us-east-1"
    """Region that requests are signed for."""

    access_key: SecretRef = "env:AWS_ACCESS_KEY_ID"
    """First part of the credentials."""

    secret_key: SecretRef = "env:AWS_SECRET_ACCESS_KEY"
    """Second part of the credentials."""

    session_token: SecretRef | None = None
    """Third part of temporary credentials."""

    ca: str | None = None
    """PEM file with the certificate authority of a server that public ones do not know."""

    create_bucket: bool = False
    """Create the bucket when it does not exist."""

    lock_days: PositiveInt | None = None
    """Nobody can delete or change a version's objects for so many days (S3 object lock, mode
    GOVERNANCE). The bucket must have been made with object lock, or by `create_bucket`."""

    checkpoint_days: PositiveInt | None = None
    """The server deletes checkpoints after so many days, by a lifecycle rule of the bucket.
    Absent: they stay until their training or a sweep deletes them."""

    part_mib: Annotated[int, Field(ge=5, le=1024)] = 16
    """Larger files travel in parts of this size, in MiB. A file may have 10 000 parts."""

    parallel: Annotated[int, Field(ge=1, le=32)] = 4
    """Parts on their way at once; each holds up to twice `part_mib` of memory."""


ArchiveSpec = Annotated[FolderArchive | S3Archive, Field(discriminator="kind")]


class KeySigning(Frozen):
    """A key pair, as `openssl ecparam -name prime256v1 -genkey -noout` makes one."""

    kind: Literal["key"] = "key"

    private_key: SecretRef
    """Elliptic-curve key in PEM, without a password."""

    public_key: str
    """PEM file with its public half."""


class SigstoreSigning(Frozen):
    """Keyless: a short-lived certificate for an identity, and a public log that has it."""

    kind: Literal["sigstore"]

    identity: str
    """Who must have signed: an e-mail address, or the URL of a CI workflow."""

    issuer: str
    """Who vouches for that identity, as https://token.actions.githubusercontent.com."""

    identity_token: SecretRef | None = None
    """OIDC token to sign with; absent: the one that the CI system offers."""

    trust_config: str | None = None
    """JSON file that names a Sigstore of one's own; absent: the public one."""


SigningSpec = Annotated[KeySigning | SigstoreSigning, Field(discriminator="kind")]


class HubSpec(Frozen):
    """A repository of the Hugging Face hub that gets each champion's adapter and card."""

    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    """`owner/name`; created when it does not exist."""

    private: bool = True
    """Whether a repository that is created is private."""

    token: SecretRef = "env:HF_TOKEN"
    """Token that may write."""

    endpoint: Annotated[str, Field(pattern=r"^https?://[^/]+/?$")] = "https://huggingface.co"
    """Address of the hub."""


class RegisterSpec(Frozen):
    """Where a version that passed its gates is kept and named, and where its run is tracked."""

    registry: RegistrySpec = MlflowRegistry()
    """The source of truth for versions and aliases, and the tracker of the run."""

    mirror: RegistrySpec | None = None
    """A second registry and tracker for people to look at. Nothing is decided by what it says; what
    it missed while it was away, it gets with the next release."""

    archive: ArchiveSpec = FolderArchive()
    """Where the bytes of versions are kept."""

    keep_inputs: Literal["none", "data", "all"] = "data"
    """What the archive keeps beside a version, by digest, so that it can be made again: `data` is
    its training files and eval sets as they were read, `all` its base model too. `none` keeps
    digests only: for data that must not leave their place."""

    sign: SigningSpec | None = None
    """With it, every version is signed, and one without that signature is not deployed."""

    hub: HubSpec | None = None
    """Push each new champion to a model hub. Absent: nothing leaves for a hub."""

    base_license: str | None = None
    """Licence of the base model; absent: what its own card says."""

    data_license: str | None = None
    """Licence of the training data, for the model card."""

    allow_dirty: bool = False
    """Register a version whose working tree had changes that are in no commit. Its lineage then
    holds the whole difference."""
