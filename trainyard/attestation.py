"""What a version says of itself, checked: manifest, in-toto statement, verdict, signature.

The statement is an in-toto Statement v1 with an SLSA provenance v1 predicate, made by the release
itself: it claims no SLSA level.
"""

from pathlib import Path
from typing import Any

from trainyard import files, lineage
from trainyard.errors import NotFound, Refused
from trainyard.lineage import Lineage
from trainyard.recipe.register import SigningSpec
from trainyard.version import ADAPTER, Manifest, digest_of, verify

FILE = "attestation.json"

_STATEMENT = "https://in-toto.io/Statement/v1"
_PROVENANCE = "https://slsa.dev/provenance/v1"
_BUILD = "urn:trainyard:release:v1"


def statement(facts: Lineage, adapter: Path) -> dict[str, Any]:
    """Say how every file of the adapter was made."""
    subjects = files.digest_files(adapter)
    return {
        "_type": _STATEMENT,
        "subject": [
            {"name": f"{ADAPTER}/{name}", "digest": {"sha256": digest}}
            for name, digest in subjects.items()
        ],
        "predicateType": _PROVENANCE,
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD,
                "externalParameters": {
                    "recipe": facts.recipe.path,
                    "resolved": facts.recipe.resolved,
                },
                "internalParameters": facts.environment.model_dump(
                    mode="json", exclude={"packages"}
                ),
                "resolvedDependencies": list(_dependencies(facts)),
            },
            "runDetails": {
                "builder": {"id": facts.environment.image or "urn:trainyard:process"},
                "metadata": {"invocationId": facts.run_id, "finishedOn": facts.created},
            },
        },
    }


def check(
    folder: Path, manifest_sha256: str | None = None, sign: SigningSpec | None = None
) -> Manifest:
    """Prove that the version is whole, is what its statement names, and passed its gates.

    `manifest_sha256` is what the registry recorded: with it, no file can be exchanged for another.
    With `sign` it must also be signed so. Raises Refused saying what does not fit.
    """
    manifest = verify(folder)
    if manifest_sha256 and files.digest_file(folder / "manifest.json") != manifest_sha256:
        raise Refused(f"{folder} is not the version that was registered: its manifest differs")
    facts = lineage.read(folder / lineage.FILE)
    if facts.digest != manifest.digest or facts.name != manifest.name:
        raise Refused(
            f"{folder / lineage.FILE} is about {facts.name}@{facts.digest[:12]}, "
            f"the version is {manifest.name}@{manifest.digest[:12]}"
        )
    if facts.verdict != "PASS":
        raise Refused(f"{manifest.name}@{manifest.digest[:12]}: its gates said {facts.verdict}")
    _check_statement(folder, manifest)
    if sign:
        from trainyard import signing  # noqa: PLC0415  (seconds, and only with keys)

        signing.check(folder, sign)
    return manifest


def _check_statement(folder: Path, manifest: Manifest) -> None:
    path = folder / FILE
    if not path.is_file():
        raise NotFound(f"{folder} has no {FILE}")
    found = files.read_json(path)
    if found.get("_type") != _STATEMENT or found.get("predicateType") != _PROVENANCE:
        raise Refused(f"{path} is no in-toto statement with SLSA provenance")
    named = {subject["name"]: subject["digest"]["sha256"] for subject in found["subject"]}
    served = {
        name: entry.sha256
        for name, entry in manifest.files.items()
        if name.startswith(f"{ADAPTER}/")
    }
    if named != served:
        differ = sorted(n for n in named.keys() | served.keys() if named.get(n) != served.get(n))
        raise Refused(f"{path} is about other files than are served: {', '.join(differ)}")
    if digest_of(folder / ADAPTER) != manifest.digest:
        raise Refused(f"{folder / ADAPTER} is not what its manifest names")


def _dependencies(facts: Lineage) -> Any:
    if facts.git:
        uri = f"git+{facts.git.remote or 'file://local'}@{facts.git.branch or facts.git.commit}"
        source: dict[str, Any] = {"uri": uri, "digest": {"gitCommit": facts.git.commit}}
        if facts.git.diff_digest:
            source["annotations"] = {"uncommitted_diff_sha256": facts.git.diff_digest}
        yield source
    base = facts.base_model
    yield {
        "uri": base.ref,
        "digest": {"sha256": base.digest},
        "annotations": {"revision": base.revision},
    }
    yield {"uri": "urn:trainyard:data", "digest": {"sha256": facts.data.digest}}
    for place, digest in facts.data.sources.items():
        yield {"uri": place, "digest": {"sha256": digest}}
    if facts.environment.lock_digest:
        lock = facts.environment.lock_digest
        yield {"uri": "constraints.txt", "digest": {"sha256": lock}}
