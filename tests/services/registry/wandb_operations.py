"""The GraphQL operations that the W&B client sends: one function per operation, by its name."""

import base64
import json
import uuid
from typing import Any

from tests.services.registry.wandb_state import (
    ORGANISATION,
    ORGANISATION_ENTITY,
    TEAM,
    USER,
    Record,
    Rejected,
    State,
    new_id,
    now,
)


def answer(state: State, operation: str, variables: Record) -> Record | None:
    """Return the `data` of the answer; None for an operation that is not modelled."""
    function = globals().get(operation)
    if not operation[0].isupper() or function is None:
        return None
    found: Record = function(state, variables)
    return found


def Viewer(state: State, v: Record) -> Record:
    viewer = {"id": new_id("User"), "entity": TEAM, "username": USER, "email": "t@example.com"}
    return {
        "viewer": viewer
        | {"name": USER, "admin": False, "flags": "{}", "deletedAt": None}
        | {"apiKeys": {"edges": []}, "teams": {"edges": [{"node": {"name": TEAM}}]}}
    }


GetDefaultEntity = Viewer


def OrganizationCoreWeaveOrganizationID(state: State, v: Record) -> Record:
    return {"entity": None}


def ServerFeaturesQuery(state: State, v: Record) -> Record:
    return {"serverInfo": {"features": []}}


def ServerInfo(state: State, v: Record) -> Record:
    versions = {"max_cli_version": "9.9.9"}
    return {"serverInfo": {"cliVersionInfo": versions, "latestLocalVersionInfo": None}}


def UpsertBucket(state: State, v: Record) -> Record:
    if v.get("name") is None:
        key = next(key for key, run in state.runs.items() if run["id"] == v["id"])
    else:
        key = (v.get("entity") or TEAM, v.get("project") or "uncategorized", v["name"])
    inserted = key not in state.runs
    run = state.run(*key)
    for fact in ("config", "summaryMetrics", "displayName", "jobType", "groupName", "state"):
        if v.get(fact) is not None:
            run[fact] = v[fact]
    bucket = {
        "id": run["id"],
        "name": key[2],
        "displayName": run.get("displayName") or key[2],
        "description": None,
        "config": run.get("config", "{}"),
        "sweepName": None,
        "project": state.project(key[0], key[1]),
        "historyLineCount": 0,
    }
    return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}


def RunStoppedStatus(state: State, v: Record) -> Record:
    return {"project": {"run": {"stopped": False}}}


def RunResumeStatus(state: State, v: Record) -> Record:
    entity = {"id": new_id("Entity"), "name": v.get("entity") or TEAM}
    project = {"id": new_id("Project"), "name": v.get("project"), "entity": entity}
    return {"model": project | {"bucket": None}}


def Runs(state: State, v: Record) -> Record:
    key = (v["entity"], v["project"])
    group = json.loads(v.get("filters") or "{}").get("group")
    found = [
        (name, run)
        for (*place, name), run in state.runs.items()
        if tuple(place) == key and (group is None or run.get("groupName") == group)
    ]
    edges = [{"node": _run(state, *key, name, run), "cursor": name} for name, run in found]
    page = {"endCursor": None, "hasNextPage": False}
    runs = {"runs": {"edges": edges, "pageInfo": page}, "runCount": len(edges), "readOnly": False}
    return {"project": state.project(*key) | runs}


LightweightRuns = Runs
LightRuns = Runs


def Run(state: State, v: Record) -> Record:
    key = (v["entity"], v["project"], v["name"])
    run = state.runs.get(key)
    return {"project": state.project(*key[:2]) | {"run": run and _run(state, *key, run)}}


LightweightRun = Run


def _run(state: State, entity: str, project: str, name: str, run: Record) -> Record:
    ended = "finished" if run.get("complete") else "running"
    shown = {"id": run["id"], "name": name, "displayName": run.get("displayName") or name}
    shown |= {"state": ended, "group": run.get("groupName"), "jobType": run.get("jobType")}
    shown |= {"config": run.get("config", "{}"), "summaryMetrics": "{}", "systemMetrics": "{}"}
    shown |= {"createdAt": now(), "heartbeatAt": now(), "description": None, "notes": None}
    shown |= {"tags": [], "commit": None, "readOnly": False, "sweepName": None, "commandLine": ""}
    shown |= {"projectId": "1", "historyLineCount": 0, "historyKeys": None, "stopped": False}
    shown |= {"user": {"name": USER, "username": USER}, "internalId": run["id"]}
    return {"__typename": "Run", **shown}


def DeleteRun(state: State, v: Record) -> Record:
    gone = next(key for key, run in state.runs.items() if run["id"] == v["id"])
    del state.runs[gone]
    return {"deleteRun": {"clientMutationId": None}}


def UnlinkArtifact(state: State, v: Record) -> Record:
    given = v.get("input") or v
    for collection in state.collections.values():
        if collection["id"] == given["artifactPortfolioID"]:
            left = [m for m in collection["members"] if m["artifact"] != given["artifactID"]]
            collection["members"][:] = left
    done = {"artifactID": given["artifactID"], "success": True, "clientMutationId": None}
    return {"result": done, "unlinkArtifact": done}


def DeleteArtifact(state: State, v: Record) -> Record:
    given = v.get("input") or v
    artifact = state.artifacts.pop(given["artifactID"])
    for collection in state.collections.values():
        left = [m for m in collection["members"] if m["artifact"] != artifact["id"]]
        collection["members"][:] = left
    done = {"artifact": {"id": artifact["id"]}}
    return {"result": done, "deleteArtifact": done}


def CreateRunFiles(state: State, v: Record) -> Record:
    place = f"run/{v['entity']}/{v['project']}/{v['run']}"
    files = [{"name": name, "uploadUrl": state.blob_url(f"{place}/{name}")} for name in v["files"]]
    return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}


def ArtifactType(state: State, v: Record) -> Record:
    found = state.find_member(v.get("entity") or TEAM, v["project"], v["name"])
    type_ = state.artifacts[found[1]["artifact"]]["type"] if found else None
    return {"project": {"artifact": {"artifactType": {"name": type_}} if type_ else None}}


def CreateArtifact(state: State, v: Record) -> Record:
    given = v["input"]
    sequence = (given["entityName"], given["projectName"], given["artifactCollectionName"])
    collection = state.collection(*sequence, "ArtifactSequence", given["artifactTypeName"])
    latest = collection["members"][-1]["artifact"] if collection["members"] else None
    aliases = [alias["alias"] for alias in given.get("aliases") or []]
    same = (
        artifact
        for artifact in state.artifacts.values()
        if artifact["sequence"] == sequence and artifact["digest"] == given["digest"]
    )
    artifact = next(same, None) if given.get("enableDigestDeduplication") else None
    if artifact is None:
        artifact = {
            "id": new_id("Artifact"),
            "sequence": sequence,
            "type": given["artifactTypeName"],
            "digest": given["digest"],
            "description": given.get("description"),
            "metadata": given.get("metadata") or "{}",
            "state": "PENDING",
            "versionIndex": None,
            "aliases": aliases,
            "size": 0,
            "fileCount": 0,
            "createdAt": now(),
            "commitHash": uuid.uuid4().hex,
        }
        state.artifacts[artifact["id"]] = artifact
    elif artifact["state"] == "COMMITTED":
        state.add_member(collection, artifact["id"], aliases)
    state.clients[given["clientID"]] = artifact["id"]
    shown = {"id": artifact["id"], "state": artifact["state"]}
    return {
        "createArtifact": {
            "artifact": shown | {"artifactSequence": {"latestArtifact": latest and {"id": latest}}}
        }
    }


def CreateArtifactManifest(state: State, v: Record) -> Record:
    key = f"manifest/{uuid.uuid4().hex}.json"
    manifest = {"id": new_id("Manifest"), "key": key, "url": state.blob_url(key)}
    state.manifests[v["artifactID"]] = manifest
    file = {"id": new_id("File"), "uploadUrl": manifest["url"], "uploadHeaders": []}
    return {"createArtifactManifest": {"artifactManifest": {"id": manifest["id"], "file": file}}}


def CreateArtifactFiles(state: State, v: Record) -> Record:
    edges = []
    for file in v["artifactFiles"]:
        md5 = base64.b64decode(file["md5"]).hex()
        key = f"object/{md5}"
        node = {
            "storagePath": f"wandb_artifacts/{md5}",
            "id": new_id("File"),
            "name": file["name"],
            "uploadUrl": None if key in state.blobs else state.blob_url(key),
            "uploadHeaders": [],
            "uploadMultipartUrls": None,
            "artifact": {"id": file["artifactID"]},
        }
        edges.append({"node": node})
    return {"createArtifactFiles": {"files": {"edges": edges}}}


def CommitArtifact(state: State, v: Record) -> Record:
    artifact = state.artifacts[v["artifactID"]]
    manifest = json.loads(state.blobs[state.manifests[artifact["id"]]["key"]].read_text())
    contents = manifest["contents"]
    size = sum(entry.get("size", 0) for entry in contents.values())
    artifact |= {"state": "COMMITTED", "contents": contents, "size": size}
    artifact["fileCount"] = len(contents)
    collection = state.collections[artifact["sequence"]]
    member = state.add_member(collection, artifact["id"], artifact["aliases"])
    artifact["versionIndex"] = member["index"]
    return {"commitArtifact": {"artifact": {"id": artifact["id"], "digest": artifact["digest"]}}}


def ClientIDMapping(state: State, v: Record) -> Record:
    found = state.clients.get(v["clientID"])
    return {"clientIDMapping": {"serverID": found} if found else None}


def ArtifactByID(state: State, v: Record) -> Record:
    artifact = state.artifacts.get(v["id"])
    return {"artifact": state.artifact_json(artifact) if artifact else None}


FetchArtifactManifest = ArtifactByID


def ArtifactMembershipByName(state: State, v: Record) -> Record:
    if (v["entity"], v["project"]) not in state.projects:
        return {"project": None}
    found = state.find_member(v["entity"], v["project"], v["name"])
    return {"project": {"artifactCollectionMembership": found and state.member_json(*found)}}


def ProjectArtifacts(state: State, v: Record) -> Record:
    collection = state.collections.get((v["entity"], v["project"], v["collection"]))
    if collection is None:
        return {"project": {"artifactType": {"artifactCollection": None}}}
    edges = [
        {
            "version": f"v{member['index']}",
            "node": state.artifact_json(state.artifacts[member["artifact"]]),
        }
        for member in reversed(collection["members"])
    ]
    page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
    found = {"totalCount": len(edges), "pageInfo": page, "edges": edges}
    shown = {"__typename": collection["__typename"], "artifacts": found}
    return {"project": {"artifactType": {"artifactCollection": shown}}}


def ProjectArtifactCollection(state: State, v: Record) -> Record:
    collection = state.collections.get((v["entity"], v["project"], v["name"]))
    shown = collection and {
        **state.collection_json(collection),
        "description": None,
        "createdAt": now(),
        "updatedAt": None,
        "type": {"name": collection["type"]},
        "tags": {"edges": []},
    }
    return {"project": {"artifactType": {"artifactCollection": shown}}}


def GetArtifactMembershipFileUrls(state: State, v: Record) -> Record:
    found = state.find_member(v["entity"], v["project"], f"{v['collection']}:{v['alias']}")
    if found is None:
        return {"project": {"artifactCollection": None}}
    collection, member = found
    edges = [
        {"node": {"__typename": "File", "name": name, "directUrl": state.object_url(entry)}}
        for name, entry in state.artifacts[member["artifact"]]["contents"].items()
    ]
    page = {"__typename": "PageInfo", "endCursor": "", "hasNextPage": False}
    files = {"files": {"pageInfo": page, "edges": edges}}
    shown = {"__typename": collection["__typename"], "artifactMembership": files}
    return {"project": {"artifactCollection": shown}}


def UseArtifact(state: State, v: Record) -> Record:
    return {"useArtifact": {"artifact": state.artifact_json(state.artifacts[v["artifactID"]])}}


def FetchOrgInfoFromEntity(state: State, v: Record) -> Record:
    organisation = {"__typename": "Organization", "name": ORGANISATION}
    organisation["orgEntity"] = {"name": ORGANISATION_ENTITY}  # type: ignore[assignment]
    return {"entity": {"organization": organisation, "user": None}}


FetchOrgEntityFromEntity = FetchOrgInfoFromEntity


def LinkArtifact(state: State, v: Record) -> Record:
    given: Any = v.get("input") or v
    artifact = given.get("artifactID") or state.clients[given["clientID"]]
    entity, project = given["entityName"], given["projectName"]
    if project.startswith("wandb-registry-") and (entity, project) not in state.projects:
        raise Rejected(f"registry {entity}/{project} not found")
    name, type_ = given["artifactPortfolioName"], state.artifacts[artifact]["type"]
    collection = state.collection(entity, project, name, "ArtifactPortfolio", type_)
    aliases = [alias["alias"] for alias in given.get("aliases") or []]
    member = state.add_member(collection, artifact, aliases)
    linked = {
        "versionIndex": member["index"],
        "artifactMembership": state.member_json(collection, member),
    }
    return {"result": linked, "linkArtifact": linked}


def AddAliases(state: State, v: Record) -> Record:
    for alias in v["input"]["aliases"]:
        collection, member = _member(state, alias, v["input"]["artifactID"])
        state.move_aliases(collection, member, [alias["alias"]])
    return {"result": {"success": True}}


def DeleteAliases(state: State, v: Record) -> Record:
    for alias in v["input"]["aliases"]:
        _, member = _member(state, alias, v["input"]["artifactID"])
        if alias["alias"] in member["aliases"]:
            member["aliases"].remove(alias["alias"])
    return {"result": {"success": True}}


def IsProjectReadOnly(state: State, v: Record) -> Record:
    return {"project": {"readOnly": False}}


def UpdateArtifact(state: State, v: Record) -> Record:
    given = v.get("input") or v
    artifact = state.artifacts[given["artifactID"]]
    for fact in ("metadata", "description"):
        if given.get(fact) is not None:
            artifact[fact] = given[fact]
    shown = {"artifact": state.artifact_json(artifact)}
    return {"result": shown, "updateArtifact": {"artifact": {"id": artifact["id"]}}}


def _member(state: State, alias: Record, artifact: str) -> tuple[Record, Record]:
    where = (alias["entityName"], alias["projectName"], alias["artifactCollectionName"])
    collection = state.collections[where]
    return collection, next(m for m in collection["members"] if m["artifact"] == artifact)
