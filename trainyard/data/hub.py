"""Data sets of the Hugging Face hub, pinned to a revision."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from trainyard.errors import InputError, Unavailable


def fetch_dataset(ref: str) -> Path:
    """Folder of `owner/name@revision` (default main), from the hub's cache when offline."""
    name, _, revision = ref.partition("@")
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision or "main"))
    except HFValidationError:
        raise InputError(f"hf://{ref} is not owner/name@revision") from None
    except LocalEntryNotFoundError:
        raise Unavailable(
            f"hf://{ref} is not in the local cache and the hub did not answer"
        ) from None
    except HfHubHTTPError as error:
        raise InputError(f"hf://{ref}: {str(error).splitlines()[0]}") from None
