"""Put and get of versions on an S3 server, beside boto3, on the same server in one run.

Ours includes its verification: sha256 of every file on both ways, the server's MD5 of every part on
the way up. boto3 sends and fetches the same files, several at once, with none of that. Both take
turns, and each turn is a process of its own, so that its memory and its CPU time are its own.

    python -m bench.archive [--size 1g] [--files 500] [--server rclone|moto] [--rounds 5]
    python -m bench.archive --size 5g --alone     ours only: peak memory of one large file

The ratio is the median of boto3's seconds over ours, turn by turn. With the server on the same
machine the CPU's time is shared: the last column, ours and the server's, says more on a busy one.
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.services.storage.servers import ACCESS, SECRET, moto, rclone
from trainyard import files, version
from trainyard.recipe.register import S3Archive

PART_MIB, PARALLEL, SMALL_KIB = 16, 4, 64
MIB = 1 << 20
UNITS = {"k": 1 << 10, "m": MIB, "g": 1 << 30}

Turn = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=size_of, default="1g", help="of the large file, as 512m")
    parser.add_argument("--files", type=int, default=500, help=f"small ones, {SMALL_KIB} KiB each")
    parser.add_argument("--server", choices=["rclone", "moto"], default="rclone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="without boto3, the large file only")
    parser.add_argument("--folder", type=Path, help="where files and server keep their bytes")
    parser.add_argument("--one", nargs=3, metavar=("WHO", "URL", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ.update(ARCHIVE_KEY=ACCESS, ARCHIVE_SECRET=SECRET)
    if given.one:
        who, url, folder = given.one
        print(json.dumps({"trainyard": ours, "boto3": theirs}[who](url, Path(folder))))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch, served(given, scratch) as server:
        large = make_version(Path(scratch) / "large", [given.size])
        if given.alone:
            alone(server, large, given)
            return
        small = make_version(Path(scratch) / "small", [SMALL_KIB << 10] * given.files)
        compare(server, large, small, given)


class Server:
    def __init__(self, url: str) -> None:
        self.url = url
        found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True)
        self.pid = int(found.stdout.split()[0])

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def turn(self, who: str, folder: Path) -> Turn:
        command = [sys.executable, "-m", "bench.archive", "--one", who, self.url, str(folder)]
        before = self.cpu_s()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found: Turn = json.loads(done.stdout)
        return found | {"server_s": self.cpu_s() - before}


@contextmanager
def served(given: Any, scratch: str) -> Iterator[Server]:
    (Path(scratch) / "served").mkdir()
    with moto() if given.server == "moto" else rclone(Path(scratch) / "served") as url:
        yield Server(url)


def compare(server: Server, large: version.Version, small: version.Version, given: Any) -> None:
    print(
        f"{given.server}, parts of {PART_MIB} MiB, {PARALLEL} at once, {given.rounds} turns each, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"{'':28}{'put MiB/s':>11}{'get MiB/s':>11}{'CPU s':>8}{'server CPU s':>14}{'peak MiB':>10}"
    )
    results = {}
    for name, made in (
        (f"one file of {given.size / MIB:.0f} MiB", large),
        (f"{given.files} files of {SMALL_KIB} KiB", small),
    ):
        results[name] = turns(server, made.folder, given.rounds)
        mib = sum(entry.size for entry in version.read_manifest(made.folder).files.values()) / MIB
        print(name)
        for who, rows in results[name].items():
            row = {key: statistics.median(turn[key] for turn in rows) for key in rows[0]}
            print(
                f"  {who:26}{mib / row['put_s']:11.1f}{mib / row['get_s']:11.1f}{row['cpu_s']:8.2f}"
                f"{row['server_s']:14.2f}{row['rss_mib']:10.0f}"
            )
        for way in ("put_s", "get_s", "work_s"):
            of = ratios(results[name], way)
            print(
                f"  {'boto3 over ours, ' + way:26}{statistics.median(of):11.2f}"
                f"   ({min(of):.2f} to {max(of):.2f})"
            )
    big, little = results.values()
    cost = digest_cost(given.size)
    share = cost / statistics.median(turn["put_s"] for turn in big["trainyard"])
    print(f"one sha256 of the large file: {cost:.2f} CPU s, on each way; {share:.0%} of our put")
    print(
        json.dumps(
            {
                "put_ratio": round(statistics.median(ratios(big, "put_s")), 3),
                "get_ratio": round(statistics.median(ratios(big, "get_s")), 3),
                "cpu_ratio": round(statistics.median(ratios(big, "work_s")), 3),
                "small_put_ratio": round(statistics.median(ratios(little, "put_s")), 3),
                "small_get_ratio": round(statistics.median(ratios(little, "get_s")), 3),
                "rss_mib": round(max(turn["rss_mib"] for turn in big["trainyard"])),
                "verification_s": round(cost, 2),
                "mib": given.size // MIB,
                "files": given.files,
                "server": given.server,
            }
        )
    )


def turns(server: Server, folder: Path, rounds: int) -> dict[str, list[Turn]]:
    """Ours, theirs; then theirs, ours: what drifts on the machine hurts both alike."""
    found: dict[str, list[Turn]] = {"trainyard": [], "boto3": []}
    for number in range(rounds):
        for who in sorted(found, reverse=number % 2 == 0):
            turn = server.turn(who, folder)
            found[who].append(turn | {"work_s": turn["cpu_s"] + turn["server_s"]})
    return found


def ratios(rows: dict[str, list[Turn]], key: str) -> list[float]:
    pairs = zip(rows["boto3"], rows["trainyard"], strict=True)
    return [theirs_[key] / ours_[key] for theirs_, ours_ in pairs]


def alone(server: Server, large: version.Version, given: Any) -> None:
    turn = server.turn("trainyard", large.folder)
    mib = given.size / MIB
    print(f"{mib:.0f} MiB to {given.server}: put {mib / turn['put_s']:.1f} MiB/s, get and verify")
    print(
        f"{mib / turn['get_s']:.1f} MiB/s, {turn['cpu_s']:.1f} CPU s, {turn['rss_mib']:.0f} MiB "
        f"of memory at most, of which {turn['start_mib']:.0f} MiB before the first byte"
    )
    print(json.dumps({"rss_mib": round(turn["rss_mib"]), "mib": given.size // MIB, **turn}))


def make_version(scratch: Path, sizes: list[int]) -> version.Version:
    adapter = scratch / "adapter"
    adapter.mkdir(parents=True)
    for number, size in enumerate(sizes):
        with (adapter / f"{number:04}.safetensors").open("wb") as file:
            for start in range(0, size, MIB):
                file.write(os.urandom(min(MIB, size - start)))
    return version.assemble(scratch, "bench", version.digest_of(adapter), adapter, {})


def ours(url: str, folder: Path) -> Turn:
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
    start = used()
    with tempfile.TemporaryDirectory(dir=folder.parent) as back:
        put_s = timed(lambda: storage.put_tree(store, folder, "models/bench/x"))
        get_s = timed(lambda: storage.get_tree(store, "models/bench/x", Path(back)))
        found = used()
    storage.delete_tree(store, "models/bench/x")
    return {"put_s": put_s, "get_s": get_s, "start_mib": start["rss_mib"], **since(start, found)}


def theirs(url: str, folder: Path) -> Turn:
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
            max_pool_connections=PARALLEL * 2,
        ),
    )
    bucket, size = f"theirs-{os.urandom(4).hex()}", PART_MIB << 20
    config = TransferConfig(
        multipart_threshold=size, multipart_chunksize=size, max_concurrency=PARALLEL
    )
    client.create_bucket(Bucket=bucket)
    names = sorted(files.digest_files(folder))
    # a transfer's own threads share out the parts of one file; several small files need ours
    at_once = PARALLEL if len(names) > 2 * PARALLEL else 1

    start = used()

    def put(name: str) -> None:
        client.upload_file(str(folder / name), bucket, name, Config=config)

    with (
        tempfile.TemporaryDirectory(dir=folder.parent) as back,
        ThreadPoolExecutor(at_once) as pool,
    ):

        def get(name: str) -> None:
            (Path(back) / name).parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, name, str(Path(back) / name), Config=config)

        put_s = timed(lambda: [*pool.map(put, names)])
        get_s = timed(lambda: [*pool.map(get, names)])
        found = used()
    for name in names:
        client.delete_object(Bucket=bucket, Key=name)
    return {"put_s": put_s, "get_s": get_s, **since(start, found)}


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def used() -> Turn:
    """CPU seconds and the peak of resident memory of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu_s": usage.ru_utime + usage.ru_stime, "rss_mib": usage.ru_maxrss / 1024}


def since(start: Turn, end: Turn) -> Turn:
    """The CPU seconds between the two, without imports; the peak of memory counts them."""
    return {"cpu_s": end["cpu_s"] - start["cpu_s"], "rss_mib": end["rss_mib"]}


def digest_cost(size: int) -> float:
    block, digest = os.urandom(MIB), hashlib.sha256()
    begin = time.process_time()
    for _ in range(size // MIB):
        digest.update(block)
    return time.process_time() - begin


def size_of(text: str) -> int:
    return int(text[:-1]) * UNITS[text[-1].lower()] if text[-1].lower() in UNITS else int(text)


if __name__ == "__main__":
    main()
