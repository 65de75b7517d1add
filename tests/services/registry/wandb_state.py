"""What a W&B server remembers, as far as the client of wandb 0.31 can see it.

It models what that client asks for: an alias is unique in its collection, equal content is one
artifact, a registry must exist. It is not W&B: protected aliases, roles, quotas and delays are not
here, and it was never compared with a real server.
"""

import base64
import json
import threading
import time
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

Record = dict[str, Any]
ORGANISATION, ORGANISATION_ENTITY, USER, TEAM = "test-org", "test-org-org", "tester", "team"


class Rejected(Exception):
    """The server's answer is an error."""


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())


def new_id(kind: str) -> str:
    return base64.b64encode(f"{kind}:{uuid.uuid4().hex[:12]}".encode()).decode()


class State:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        self.url = ""
        self.lock = threading.RLock()
        self.projects: dict[tuple[str, str], Record] = {}
        self.runs: dict[tuple[str, ...], Record] = {}
        self.streams: dict[tuple[str, ...], dict[str, dict[int, str]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        self.collections: dict[tuple[str, str, str], Record] = {}
        self.artifacts: dict[str, Record] = {}
        self.manifests: dict[str, Record] = {}
        self.clients: dict[str, str] = {}
        self.blobs: dict[str, Path] = {}
        self.unknown: list[str] = []
        """What the client asked for that is not modelled."""

    def project(self, entity: str, name: str) -> Record:
        organisation = {"id": new_id("Entity"), "name": entity}
        organisation["organization"] = {"name": ORGANISATION}  # type: ignore[assignment]
        return self.projects.setdefault(
            (entity, name),
            {
                "__typename": "Project",
                "id": new_id("Project"),
                "internalId": str(len(self.projects) + 1),
                "name": name,
                "entity": organisation,
            },
        )

    def create_registry(self, name: str) -> None:
        self.project(ORGANISATION_ENTITY, f"wandb-registry-{name}")

    def run(self, entity: str, project: str, name: str) -> Record:
        return self.runs.setdefault((entity, project, name), {"id": new_id("Run")})

    def collection(self, entity: str, project: str, name: str, kind: str, type_: str) -> Record:
        made = {
            "__typename": kind,
            "id": new_id(kind),
            "name": name,
            "type": type_,
            "where": (entity, project),
            "members": [],
        }
        return self.collections.setdefault((entity, project, name), made)

    def add_member(self, collection: Record, artifact: str, aliases: list[str]) -> Record:
        members = collection["members"]
        member = next((m for m in members if m["artifact"] == artifact), None)
        if member is None:
            member = {
                "artifact": artifact,
                "index": len(members),
                "aliases": [],
                "createdAt": now(),
            }
            members.append(member)
        self.move_aliases(collection, member, ["latest", *aliases])
        found: Record = member
        return found

    @staticmethod
    def move_aliases(collection: Record, member: Record, aliases: list[str]) -> None:
        for alias in dict.fromkeys(aliases):
            for other in collection["members"]:
                if alias in other["aliases"]:
                    other["aliases"].remove(alias)
            member["aliases"].append(alias)

    def find_member(self, entity: str, project: str, name: str) -> tuple[Record, Record] | None:
        name, _, version = name.partition(":")
        collection = self.collections.get((entity, project, name))
        for member in collection["members"] if collection else []:
            committed = self.artifacts[member["artifact"]]["state"] == "COMMITTED"
            wanted = (version or "latest") in [*member["aliases"], f"v{member['index']}"]
            if committed and wanted:
                return collection, member  # type: ignore[return-value]
        return None

    def blob_url(self, key: str) -> str:
        return f"{self.url}/_blob/{key}"

    def object_url(self, entry: Record) -> str:
        return self.blob_url("object/" + base64.b64decode(entry["digest"]).hex())

    def history(self, run: str) -> list[Record]:
        """Return the metric rows of the run with this id or display name."""
        for key, record in self.runs.items():
            if run in (key[2], record.get("displayName")):
                lines = self.streams[key]["wandb-history.jsonl"]
                return [json.loads(lines[at]) for at in sorted(lines)]
        return []

    def collection_json(self, collection: Record) -> Record:
        shown = {key: collection[key] for key in ("__typename", "id", "name")}
        return shown | {"project": self.project(*collection["where"])}

    def artifact_json(self, artifact: Record) -> Record:
        manifest = self.manifests.get(artifact["id"])
        aliases = [
            {"__typename": "ArtifactAlias", "id": new_id("Alias"), "alias": alias}
            | {"artifactCollection": self.collection_json(collection)}
            for collection in self.collections.values()
            for member in collection["members"]
            if member["artifact"] == artifact["id"]
            for alias in member["aliases"]
        ]
        return {
            "__typename": "Artifact",
            "artifactSequence": self.collection_json(self.collections[artifact["sequence"]]),
            "artifactType": {"name": artifact["type"]},
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "digestAlgorithm": "MANIFEST_MD5",
            "updatedAt": now(),
            "aliases": aliases,
            "currentManifest": {"file": {"directUrl": manifest["url"]}} if manifest else None,
        } | {
            key: artifact[key]
            for key in (
                *("id", "versionIndex", "description", "metadata", "state", "size", "digest"),
                *("commitHash", "fileCount", "createdAt"),
            )
        }

    def member_json(self, collection: Record, member: Record) -> Record:
        return {
            "__typename": "ArtifactCollectionMembership",
            "id": new_id("Membership"),
            "versionIndex": member["index"],
            "createdAt": member["createdAt"],
            "aliases": [
                {"__typename": "ArtifactAlias", "id": new_id("Alias"), "alias": alias}
                for alias in member["aliases"]
            ],
            "artifactCollection": self.collection_json(collection),
            "artifact": self.artifact_json(self.artifacts[member["artifact"]]),
        }
