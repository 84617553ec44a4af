"""Compare the packages installed for a run with those installed now."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from textmill.registry.runs.origin import installed_packages

_ROOT = "textmill"


def package_differences(listing: str) -> tuple[list[str], int]:
    """Return the changes since `listing` of packages that Textmill needs, and the number of other changed packages.

    `listing` has the form of `origin.installed_packages`.
    """
    then, now = _versions(listing), _versions(installed_packages())
    needed = _needed()
    changed = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    shown = [f"{name} {then.get(name, 'absent')} -> {now.get(name, 'absent')}" for name in changed if name in needed]
    return shown, len(changed) - len(shown)


def _versions(listing: str) -> dict[str, str]:
    pairs = (line.partition("==") for line in listing.splitlines())
    return {canonicalize_name(name): version for name, _, version in pairs if name}


def _needed() -> set[str]:
    """Return Textmill and its direct and indirect requirements, without extras."""
    needed: set[str] = set()
    waiting = [_ROOT]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in needed:
            continue
        needed.add(name)
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, requirements):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return needed
