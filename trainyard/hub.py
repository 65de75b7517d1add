"""Push a version to a model hub: its adapter, its card and its lineage, in one commit."""

from pathlib import Path

import httpx
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from trainyard import secrets
from trainyard.errors import InputError, Unavailable
from trainyard.recipe.register import HubSpec
from trainyard.version import ADAPTER, MANIFEST, read_manifest

LEFT_OUT = ("evaluation/", "data/")
"""Questions, answers and rows of a team stay in its own archive."""


def push(spec: HubSpec, folder: Path) -> str:
    """Push the version in `folder` and return the commit's address.

    The files of `adapter/` lie at the top, where libraries look for them. Raises InputError for a
    token or repository that the hub refuses, Unavailable for a silent one.
    """
    made = read_manifest(folder)
    served = f"{made.name}@{made.digest[:12]}"
    api = HfApi(endpoint=spec.endpoint.rstrip("/"), token=secrets.resolve(spec.token))
    added = [
        CommitOperationAdd(place.removeprefix(f"{ADAPTER}/"), folder / place)
        for place in (*made.files, MANIFEST)
        if not place.startswith(LEFT_OUT)
    ]
    try:
        api.create_repo(spec.repository, private=spec.private, exist_ok=True)
        done = api.create_commit(spec.repository, added, commit_message=served)
    except HfHubHTTPError as error:
        said = secrets.mask(str(error).splitlines()[0])
        if error.response is not None and error.response.status_code < 500:
            raise InputError(f"{spec.endpoint} refuses {spec.repository}: {said}") from None
        raise Unavailable(f"{spec.endpoint} did not take {spec.repository}: {said}") from None
    except (httpx.HTTPError, OSError) as error:
        raise Unavailable(f"{spec.endpoint} did not answer: {error}") from error
    return str(done.commit_url)
