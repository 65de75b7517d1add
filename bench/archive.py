"""Put and get of one large version on an S3 server, beside boto3, on the same server in one run.

Ours includes its verification: sha256 of the whole file on both ways, and the ETag of every part.
boto3 sends and fetches the same file with its own parallel transfers and no digest of ours.

    python -m bench.archive [--mib 512] [--server rclone|moto] [--rounds 3]
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.services.storage.servers import ACCESS, SECRET, moto, rclone
from trainyard import files, version
from trainyard.recipe.register import S3Archive

PART_MIB, PARALLEL = 16, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--server", choices=["rclone", "moto"], default="rclone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("WHO", "URL", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ.update(ARCHIVE_KEY=ACCESS, ARCHIVE_SECRET=SECRET)
    if given.one:
        who, url, folder = given.one
        print(json.dumps({"trainyard": ours, "boto3": theirs}[who](url, Path(folder))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        compare(Path(scratch), given.mib, given.server, given.rounds)


def compare(scratch: Path, mib: int, server: str, rounds: int) -> None:
    made = make_version(scratch, mib)
    (scratch / "served").mkdir()
    results: dict[str, list[dict[str, float]]] = {"trainyard": [], "boto3": []}
    with moto() if server == "moto" else rclone(scratch / "served") as url:
        for _ in range(rounds):
            for who, found in results.items():
                found.append(one(who, url, made.folder))
    middle = {
        who: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for who, rows in results.items()
    }
    print(f"{mib} MiB to {server}, parts of {PART_MIB} MiB, {PARALLEL} at once, median of {rounds}")
    print(f"{'':12}{'put MiB/s':>12}{'get MiB/s':>12}{'CPU s':>8}{'memory MiB':>12}")
    for who, row in middle.items():
        speeds = f"{mib / row['put_s']:12.1f}{mib / row['get_s']:12.1f}"
        print(f"{who:12}{speeds}{row['cpu_s']:8.1f}{row['rss_mib']:12.0f}")
    cost = digest_cost(mib)
    print(f"one sha256 of the file, part of ours on each way: {cost:.2f} s")
    ours_, boto = middle["trainyard"], middle["boto3"]
    print(
        json.dumps(
            {
                "put_ratio": round(boto["put_s"] / ours_["put_s"], 3),
                "get_ratio": round(boto["get_s"] / ours_["get_s"], 3),
                "rss_mib": round(ours_["rss_mib"]),
                "verification_s": round(cost, 2),
                "mib": mib,
                "server": server,
            }
        )
    )


def make_version(scratch: Path, mib: int) -> version.Version:
    adapter = scratch / "adapter"
    adapter.mkdir()
    with (adapter / "adapter_model.safetensors").open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
    return version.assemble(scratch, "bench", version.digest_of(adapter), adapter, {})


def one(who: str, url: str, folder: Path) -> dict[str, float]:
    """Measure in a process of its own, so that its memory is its own."""
    command = [sys.executable, "-m", "bench.archive", "--one", who, url, str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def ours(url: str, folder: Path) -> dict[str, float]:
    from trainyard import storage
    from trainyard.storage.s3 import S3Store

    bucket = f"ours-{os.urandom(4).hex()}"
    spec = S3Archive(
        kind="s3",
        url=f"s3://{bucket}",
        endpoint=url,
        access_key="env:ARCHIVE_KEY",
        secret_key="env:ARCHIVE_SECRET",
        create_bucket=True,
        part_mib=PART_MIB,
        parallel=PARALLEL,
    )
    store = S3Store(spec)
    with tempfile.TemporaryDirectory(dir=folder.parent) as back:
        put_s = timed(lambda: storage.put_tree(store, folder, "models/bench"))
        get_s = timed(lambda: storage.get_tree(store, "models/bench", Path(back)))
    storage.delete_tree(store, "models/bench")
    return {"put_s": put_s, "get_s": get_s, **used()}


def theirs(url: str, folder: Path) -> dict[str, float]:
    import boto3
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config

    client = boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=ACCESS,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
        # rclone knows none of the checksums that boto3 sends by itself
        config=Config(
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    bucket, size = f"theirs-{os.urandom(4).hex()}", PART_MIB << 20
    config = TransferConfig(
        multipart_threshold=size, multipart_chunksize=size, max_concurrency=PARALLEL
    )
    client.create_bucket(Bucket=bucket)
    names = sorted(files.digest_files(folder))

    def put() -> None:
        for name in names:
            client.upload_file(str(folder / name), bucket, name, Config=config)

    def get(back: Path) -> None:
        for name in names:
            (back / name).parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, name, str(back / name), Config=config)

    with tempfile.TemporaryDirectory(dir=folder.parent) as back:
        put_s = timed(put)
        get_s = timed(lambda: get(Path(back)))
    for name in names:
        client.delete_object(Bucket=bucket, Key=name)
    return {"put_s": put_s, "get_s": get_s, **used()}


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def used() -> dict[str, float]:
    """CPU seconds, put and get together, and the peak of resident memory."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu_s": usage.ru_utime + usage.ru_stime, "rss_mib": usage.ru_maxrss / 1024}


def digest_cost(mib: int) -> float:
    block, digest = os.urandom(1 << 20), hashlib.sha256()

    def work() -> None:
        for _ in range(mib):
            digest.update(block)

    return timed(work)


if __name__ == "__main__":
    main()
