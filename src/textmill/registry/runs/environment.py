"""What was installed then, held against what is installed now."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from textmill.registry.runs.origin import installed_packages

_ROOT = "textmill"


def differences(listing: str) -> tuple[list[str], int]:
    """Packages that Textmill needs and that are not as in `listing`; and how many others are not.

    Args:
        listing: `name==version`, a line each, as `origin.installed_packages` gives it.
    """
    then, now = _versions(listing), _versions(installed_packages())
    needed = _needed()
    changed = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    told = [f"{name} {then.get(name, 'absent')} -> {now.get(name, 'absent')}" for name in changed if name in needed]
    return told, len(changed) - len(told)


def _versions(listing: str) -> dict[str, str]:
    pairs = (line.partition("==") for line in listing.splitlines())
    return {canonicalize_name(name): version for name, _, version in pairs if name}


def _needed() -> set[str]:
    """Textmill and what it requires, directly or not, without extras."""
    found: set[str] = set()
    waiting = [_ROOT]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, requirements):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found
