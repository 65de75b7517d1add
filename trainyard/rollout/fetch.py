"""Bring a version from an S3 archive into a folder, every byte compared with its manifest.

`python -m trainyard.rollout.fetch URL ENDPOINT REGION NAME DIGEST FOLDER`, as the init container of
an engine runs it; credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

import sys
from pathlib import Path

from trainyard.errors import TrainyardError
from trainyard.recipe.register import S3Archive
from trainyard.storage import open_store
from trainyard.storage.trees import get_tree
from trainyard.version import key


def fetch(archive: S3Archive, name: str, digest: str, folder: Path) -> None:
    """Raises NotFound for a version that is not there, Refused naming a file that was changed."""
    get_tree(open_store(archive, folder), key(name, digest), folder)


def main(arguments: list[str]) -> int:
    if len(arguments) != 6:
        print(__doc__, file=sys.stderr)
        return 2
    url, endpoint, region, name, digest, folder = arguments
    archive = S3Archive(kind="s3", url=url, endpoint=endpoint, region=region)
    try:
        fetch(archive, name, digest, Path(folder))
    except TrainyardError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
