"""A bare mirror of a repository: fetched, compared, read. Nothing of it is ever run."""

import asyncio
import base64
import io
import os
import tarfile
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from trainyard.errors import InputError, Refused, Unavailable
from trainyard.webhook.config import Provider

EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
LARGEST = 512 << 20
"""Bytes of a checkout of a merge request; more is not planned."""
PROPOSALS = {"gitlab": "refs/merge-requests/{}/head"}


class Mirror:
    """One repository. Its methods may be called one at a time."""

    def __init__(self, folder: Path, url: str, token: str | None) -> None:
        self.folder = folder
        self._url = url
        self._env = os.environ | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"} | _login(url, token)

    async def fetch(self) -> None:
        """Raises Unavailable when the repository does not answer."""
        if not (self.folder / "HEAD").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            await self._git("init", "-q", "--bare", ".")
        await self._fetch("+refs/heads/*:refs/heads/*", "--prune")

    async def fetch_proposal(self, provider: Provider, number: int) -> str:
        """Return the head of a merge request: from this repository, never from the fork."""
        ref = PROPOSALS.get(provider, "refs/pull/{}/head").format(number)
        await self._fetch(f"+{ref}:refs/proposals/{number}")
        return await self._git("rev-parse", f"refs/proposals/{number}")

    async def _fetch(self, refspec: str, *options: str) -> None:
        try:
            await self._git("fetch", "-q", "--no-tags", *options, self._url, refspec)
        except InputError as error:
            raise Unavailable(f"{self._url} could not be fetched: {error}") from None

    async def branches(self) -> dict[str, str]:
        """Branch -> its commit, as last fetched."""
        listed = await self._git("for-each-ref", "--format=%(objectname) %(refname)", "refs/heads")
        pairs = (line.split(" ", 1) for line in listed.splitlines())
        return {name.removeprefix("refs/heads/"): sha for sha, name in pairs}

    async def has(self, sha: str) -> bool:
        return await self._says_yes("cat-file", "-e", f"{sha}^{{commit}}")

    async def is_ancestor(self, sha: str, of: str) -> bool:
        """Whether everything in `sha` is in `of`; False for a commit that is not here."""
        return await self._says_yes("merge-base", "--is-ancestor", sha, of)

    async def merge_base(self, one: str, other: str) -> str | None:
        try:
            return await self._git("merge-base", one, other)
        except InputError:
            return None

    async def changed(self, before: str | None, after: str) -> dict[str, str]:
        """Path -> A, M, D or T between two trees; a renamed file is a D and an A."""
        options = ["--no-renames", "--no-ext-diff", "-z", "--name-status"]
        listed = await self._git("diff", *options, before or EMPTY_TREE, after)
        parts = listed.split("\0")
        return dict(zip(parts[1::2], parts[0::2], strict=False))

    async def line_changes(self, before: str, after: str) -> dict[str, tuple[int, int]]:
        """Path -> lines added and removed; binary files are left out."""
        options = ["--no-renames", "--no-ext-diff", "-z", "--numstat"]
        listed = await self._git("diff", *options, before, after)
        rows = [row.split("\t") for row in listed.split("\0")]
        return {r[2]: (int(r[0]), int(r[1])) for r in rows if len(r) == 3 and r[0] != "-"}

    async def files(self, sha: str, patterns: Collection[str]) -> dict[str, str]:
        """Path -> blob of the regular files that match; symbolic links are none."""
        listed = await self._git("ls-tree", "-r", "-z", sha)
        found = {}
        for row in filter(None, listed.split("\0")):
            about, path = row.split("\t", 1)
            mode, _, blob = about.split(" ")
            if mode in ("100644", "100755") and any(fnmatchcase(path, p) for p in patterns):
                found[path] = blob
        return found

    async def blob(self, id_: str) -> bytes:
        return await self._bytes("cat-file", "blob", id_)

    async def extract(self, sha: str, folder: Path) -> None:
        """Write the commit's regular files below `folder`: no links, no filters, no submodules."""
        listed = await self._git("ls-tree", "-r", "-l", "-z", sha)
        sizes = (row.split("\t")[0].split()[3] for row in filter(None, listed.split("\0")))
        total = sum(int(size) for size in sizes if size.isdecimal())
        if total > LARGEST:
            raise Refused(f"the checkout has {total >> 20} MiB and {LARGEST >> 20} are planned")
        plain = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}  # no smudge filters
        packed = await self._bytes("archive", "--format=tar", sha, env=plain)
        await asyncio.to_thread(_unpack, packed, folder)

    async def _says_yes(self, *arguments: str) -> bool:
        try:
            await self._git(*arguments)
        except InputError:
            return False
        return True

    async def _git(self, *arguments: str) -> str:
        return (await self._bytes(*arguments)).decode("utf-8", "surrogateescape").strip("\n")

    async def _bytes(self, *arguments: str, env: Mapping[str, str] | None = None) -> bytes:
        process = await asyncio.create_subprocess_exec(
            "git", "-C", str(self.folder), *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, env=self._env | dict(env or {}),
        )  # fmt: skip
        try:
            out, err = await asyncio.wait_for(process.communicate(), timeout=600)
        except BaseException:
            if process.returncode is None:
                process.kill()
                await process.wait()
            raise
        if process.returncode:
            said = err.decode("utf-8", "replace").strip().splitlines()
            raise InputError(f"git {arguments[0]}: {said[-1] if said else process.returncode}")
        return out


def _login(url: str, token: str | None) -> dict[str, str]:
    """Send the token as a header: in no command line, in no file."""
    if not token or not url.startswith("https://"):
        return {}
    word = base64.b64encode(f"oauth2:{token}".encode()).decode()
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"http.{url}.extraHeader",
        "GIT_CONFIG_VALUE_0": f"Authorization: Basic {word}",
    }


def _unpack(packed: bytes, folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        members = [member for member in tar if member.isfile() or member.isdir()]
        tar.extractall(folder, members, filter="data")
