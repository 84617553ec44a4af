"""The bill of materials of a version in CycloneDX: packages, pretrained weights and their licences."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

from packaging.utils import canonicalize_name

from textmill.registry.runs.environment import requirement_graph

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

BILL_FILE = "sbom.cdx.json"
_MAX_LICENCE = 80  # some packages put the licence's whole text into the field of its name


def bill_of_materials(name: str, requirements: list[str], provenance: dict[str, Any]) -> str:
    """Return CycloneDX 1.6 JSON for a model: what it needs to answer, directly and indirectly.

    Args:
        name: Name of the registered model.
        requirements: Pinned distributions, `NAME==VERSION`.
        provenance: Content of the exported `provenance.json`; names the pretrained weights, if any.
    """
    from cyclonedx.contrib.hash.factories import HashTypeFactory
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    bom = Bom()
    model = Component(name=name, type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref="model")
    model.hashes.add(HashTypeFactory().from_composite_str(f"sha256:{provenance['trained']}"))
    bom.metadata.component = model
    roots = [canonicalize_name(requirement.partition("==")[0]) for requirement in requirements]
    graph = requirement_graph(roots)
    components = {package: _package(package) for package in graph}
    bom.components.update(components.values())
    for package, needs in graph.items():
        bom.register_dependency(components[package], [components[need] for need in needs])
    pretrained = provenance.get("pretrained") or {}
    direct = [components[root] for root in roots]
    if origin := pretrained.get("origin"):
        weights = Component(name=origin, type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref="pretrained")
        weights.version = pretrained.get("version")
        if digest := (pretrained.get("files") or {}).get("model.safetensors"):
            weights.hashes.add(HashTypeFactory().from_composite_str(f"sha256:{digest}"))
        if licence := pretrained.get("licence"):
            weights.licenses.add(LicenseFactory().make_from_string(licence))
        bom.components.add(weights)
        direct.append(weights)
    bom.register_dependency(model, direct)
    return str(JsonV1Dot6(bom).output_as_string(indent=2)) + "\n"


def _package(name: str) -> Component:
    """Describe an installed distribution."""
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    described = metadata.metadata(name)
    version = described["Version"]
    url = PackageURL("pypi", None, name, version)
    component = Component(name=name, version=version, type=ComponentType.LIBRARY, purl=url, bom_ref=url.to_string())
    licence = next((described[field] for field in ("License-Expression", "License") if field in described), "")
    if licence and len(licence) <= _MAX_LICENCE and "\n" not in licence:
        component.licenses.add(LicenseFactory().make_from_string(licence))
    return component
