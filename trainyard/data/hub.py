"""Data sets of the Hugging Face hub, pinned to a revision."""

import sys
from pathlib import Path

import httpx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import disable_progress_bars

from trainyard.errors import InputError, Unavailable


def fetch_dataset(ref: str) -> tuple[Path, str]:
    """Folder of `owner/name@revision` (default main) and the path inside it that follows.

    Taken from the hub's cache when it is there or the hub is away; HF_ENDPOINT names another hub.
    """
    owner, _, rest = ref.removeprefix("datasets/").partition("/")
    pinned, _, inside = rest.partition("/")
    name, _, revision = pinned.partition("@")
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        found = snapshot_download(
            f"{owner}/{name}", repo_type="dataset", revision=revision or "main"
        )
    except HFValidationError:
        raise InputError(f"hf://{ref} is not owner/name@revision") from None
    except LocalEntryNotFoundError:
        raise Unavailable(
            f"hf://{ref} is not in the local cache and the hub did not answer"
        ) from None
    except HfHubHTTPError as error:
        said = str(error).strip().splitlines()[-1]
        if error.response is not None and error.response.status_code >= 500:
            raise Unavailable(f"hf://{ref}: {said}") from None
        raise InputError(f"hf://{ref}: {said}") from None
    except (httpx.HTTPError, OSError) as error:
        raise Unavailable(f"hf://{ref} could not be fetched: {error}") from None
    return Path(found), inside
