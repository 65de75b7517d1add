"""Whether the installed libraries are ones that Unsloth says it works with."""

from collections.abc import Callable, Iterable
from importlib import metadata

from packaging.requirements import Requirement

from trainyard.errors import InputError

PACKAGES = ("unsloth", "unsloth_zoo")
PATCHED = frozenset(
    ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "triton")
)
"""What Unsloth changes while it is imported: another version than it expects breaks in odd ways."""


def check_unsloth(version_of: Callable[[str], str] = metadata.version) -> None:
    """Raises InputError, with the line to type, when Unsloth and its libraries do not fit."""
    versions = {name: version_of(name) for name in PACKAGES}
    if len(set(versions.values())) > 1:
        found = " and ".join(f"{name} {version}" for name, version in versions.items())
        newest = max(versions.values())
        raise InputError(
            f"{found} are of different days: pip install --no-deps "
            + " ".join(f"{name}=={newest}" for name in PACKAGES)
        )
    wanted = [text for name in PACKAGES for text in metadata.requires(name) or ()]
    wrong = misfits(wanted, version_of)
    if wrong:
        ranges = " ".join(f"'{name}{wanted}'" for name, (_, wanted) in wrong.items())
        found = ", ".join(f"{name} {version}" for name, (version, _) in wrong.items())
        raise InputError(
            f"unsloth {versions['unsloth']} does not work with {found}: pip install {ranges}, or "
            "set backend: trl"
        )


def misfits(
    requirements: Iterable[str], version_of: Callable[[str], str]
) -> dict[str, tuple[str, str]]:
    """Map each patched library outside its range to its version and the range."""
    wrong = {}
    for text in requirements:
        requirement = Requirement(text)
        if requirement.name not in PATCHED:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = version_of(requirement.name)
        if not requirement.specifier.contains(version, prereleases=True):
            wrong[requirement.name] = (version, str(requirement.specifier))
    return wrong
