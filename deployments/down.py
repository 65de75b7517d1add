"""`make down`: end what `make up` started, and the models that releases left serving."""

import sys

from deployments.up import HOME, RECORDS, read_records
from trainyard import process, rollout


def main() -> int:
    for entry in reversed(read_records()):
        gone = "stopped" if process.stop(entry, grace_s=20) else "was gone"
        print(f"{entry.name} (process {entry.pid}) {gone}")
    RECORDS.unlink(missing_ok=True)
    for name in rollout.down(HOME):
        print(f"stopped serving {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
