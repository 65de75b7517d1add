"""What the webhook listens to: servers, repositories, branches, and the secrets' places."""

from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from trainyard.recipe.base import Frozen
from trainyard.recipe.register import SecretRef

Provider = Literal["github", "gitlab", "gitea", "forgejo"]
Url = Annotated[str, Field(pattern=r"^https?://[^/]+(/.*)?$")]


class RepositorySpec(Frozen):
    """One repository that may start releases."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)+$")]
    """As the server writes it: `owner/name`, on GitLab with all groups."""

    url: str
    """Where it is fetched from. With https, the hook's `api_token` is sent."""

    branches: tuple[str, ...] = ("main",)
    """Protected branches, patterns allowed. Only a push to one of them starts releases."""

    recipes: tuple[str, ...] = ("recipes/*.yaml",)
    """Which files are recipes."""

    deployment: Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")] = "release/pushed"
    """Prefect deployment that releases a recipe at a commit."""

    environment: str = "laptop"
    """Environment of the releases it starts."""

    dry_run: bool = False
    """Releases plan only."""

    def protects(self, branch: str) -> bool:
        return any(fnmatchcase(branch, pattern) for pattern in self.branches)


class Hook(Frozen):
    """One address that one git server delivers to: `POST /hooks/<name>`."""

    provider: Provider

    proof: Literal["hmac", "token", "signature"] = "hmac"
    """How a delivery proves where it comes from. `hmac`: GitHub, Gitea and Forgejo sign the body.
    GitLab: `signature` (webhook-signature, with a time), or `token` (a shared word, weaker)."""

    secrets: Annotated[tuple[SecretRef, ...], Field(min_length=1)]
    """What deliveries are signed with; two while one is being replaced."""

    api: Url
    """The server's API: `https://api.github.com`, `https://gitlab.com/api/v4`,
    `https://gitea.example.com/api/v1`."""

    api_token: SecretRef
    """Token that writes commit statuses and comments, and fetches."""

    repositories: Annotated[tuple[RepositorySpec, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _proof_is_the_providers(self) -> Self:
        known = ("token", "signature") if self.provider == "gitlab" else ("hmac",)
        if self.proof not in known:
            raise ValueError(
                f"{self.provider} proves a delivery by {' or '.join(known)}, not {self.proof}"
            )
        return self


class WebhookConfig(Frozen):
    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback needs TLS here or a proxy that ends it."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8710

    tls_certificate: str | None = None
    """PEM file; with `tls_key`, the service speaks https."""

    tls_key: str | None = None

    prefect_api: Url = "http://127.0.0.1:4200/api"

    prefect_ui: Url = "http://127.0.0.1:4200"
    """Where links in commit statuses lead."""

    prefect_auth: SecretRef | None = None
    """`user:password` of a server with basic auth."""

    prefect_token: SecretRef | None = None
    """API key of Prefect Cloud."""

    max_body_mib: PositiveFloat = 5
    """Largest delivery; GitHub sends up to 25 MiB, and what is refused is found by the poll."""

    deliveries_per_minute: PositiveInt = 120
    """Per repository; more are answered with 429."""

    poll_s: PositiveFloat = 300
    """Seconds between two looks for deliveries that were lost."""

    watch_s: PositiveFloat = 5
    """Seconds between two looks at the runs whose commits wait for a status."""

    hooks: Annotated[dict[str, Hook], Field(min_length=1)]

    @model_validator(mode="after")
    def _whole_tls(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: give both or neither")
        return self
