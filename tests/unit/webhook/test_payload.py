from typing import Any

import pytest

from trainyard.errors import InputError
from trainyard.webhook.payload import Nothing, Proposal, Push, read

SHA, OTHER, ZERO = "a" * 40, "b" * 40, "0" * 40
PUSH = {"ref": "refs/heads/main", "before": OTHER, "after": SHA}
HUB = PUSH | {"repository": {"full_name": "acme/models"}}
LAB = PUSH | {"project": {"path_with_namespace": "acme/group/models"}}


@pytest.mark.parametrize(
    ("provider", "event", "body", "name"),
    [
        ("github", "push", HUB, "acme/models"),
        ("forgejo", "push", HUB, "acme/models"),
        ("gitlab", "Push Hook", LAB, "acme/group/models"),
    ],
)
def test_a_push_is_the_same_from_everybody(
    provider: Any, event: str, body: dict[str, Any], name: str
) -> None:
    found = read(provider, event, body)
    assert found == Push(repository=name, branch="main", before=OTHER, after=SHA)


def test_new_and_deleted_branches_have_one_side_only() -> None:
    new = read("github", "push", HUB | {"before": ZERO})
    gone = read("github", "push", HUB | {"after": ZERO})
    assert isinstance(new, Push)
    assert isinstance(gone, Push)
    assert (new.before, gone.after) == (None, None)


def pull(**head: Any) -> dict[str, Any]:
    found = {"head": {"sha": SHA, "repo": {"full_name": "acme/models"}} | head,
             "base": {"ref": "main"}}  # fmt: skip
    return {"action": "opened", "number": 3, "pull_request": found} | {
        "repository": {"full_name": "acme/models"}
    }


@pytest.mark.parametrize(
    ("head", "fork"),
    [
        ({}, False),
        ({"repo": {"full_name": "mallory/models"}}, True),
        ({"repo": None}, True),  # the fork was deleted
    ],
)
def test_a_pull_request_of_another_repository_is_a_fork(head: dict[str, Any], fork: bool) -> None:
    found = read("github", "pull_request", pull(**head))
    assert isinstance(found, Proposal)
    assert found.fork is fork


def merge_request(**attributes: Any) -> dict[str, Any]:
    known = {"iid": 3, "action": "open", "target_branch": "main", "source_project_id": 1,
             "target_project_id": 1, "last_commit": {"id": SHA}}  # fmt: skip
    return {"project": {"path_with_namespace": "a/b"}, "object_attributes": known | attributes}


@pytest.mark.parametrize(
    ("attributes", "kind"),
    [
        ({}, Proposal),
        ({"action": "update", "oldrev": OTHER}, Proposal),
        ({"action": "update"}, Nothing),  # a label, a title
        ({"action": "merge"}, Nothing),  # the push that follows releases
        ({"action": None}, Nothing),
    ],
)
def test_only_new_content_of_a_merge_request_is_planned(
    attributes: dict[str, Any], kind: type
) -> None:
    assert isinstance(read("gitlab", "Merge Request Hook", merge_request(**attributes)), kind)


@pytest.mark.parametrize(
    "wrong",
    [
        {"after": "HEAD"},
        {"after": None},
        {"before": SHA[:39]},
        {"ref": "refs/heads/--upload-pack=touch"},
        {"ref": "refs/heads/a b"},
        {"ref": "refs/heads/a..b"},
        {"ref": "refs/heads/"},
        {"repository": None},
        {"repository": []},
    ],
)
def test_what_git_would_misread_is_malformed(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        read("github", "push", HUB | wrong)


def test_tags_and_other_events_are_nothing() -> None:
    assert isinstance(read("github", "push", HUB | {"ref": "refs/tags/v1"}), Nothing)
    assert isinstance(read("github", "star", HUB), Nothing)
    assert isinstance(read("github", "ping", {"zen": "Keep it simple"}), Nothing)
