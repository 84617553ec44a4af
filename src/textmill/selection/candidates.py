"""The candidates: files of `conf/candidate/`, and models that the user names; each composed on its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from pydantic import ValidationError

from textmill.config.layout import Layout
from textmill.config.schema import PipelineConfig
from textmill.config.sections.candidate import CandidateConfig
from textmill.errors import UserError, did_you_mean

FOLDER = "candidate"
_TEMPLATE = "minilm"  # what a model that the user names is treated like


@dataclass(frozen=True)
class Candidate:
    """A candidate in a throw-away copy of the project.

    Attributes:
        name: Of its file, or made from what the user named.
        title: In words.
        baseline: The task's baseline that it is, or None for a network.
        lines: What `params.yaml` holds once it is adopted.
        config: What they make, with the rest of `conf/`.
        layout: The copy.
    """

    name: str
    title: str
    baseline: str | None
    lines: dict[str, Any]
    config: PipelineConfig
    layout: Layout


def known_candidates(layout: Layout) -> dict[str, CandidateConfig]:
    """The files of `conf/candidate/` by name.

    Raises:
        UserError: One is no candidate.
    """
    found = {}
    for path in sorted((layout.conf / FOLDER).glob("*.yaml")):
        where = f"conf/{FOLDER}/{path.name}"
        try:
            found[path.stem] = CandidateConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except yaml.YAMLError as error:
            raise UserError(f"not YAML ({' '.join(str(error).split())[:200]})", where=where) from error
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "the file"
            allowed = f"Its keys are {', '.join(CandidateConfig.model_fields)}"
            raise UserError(f"{key}: {first['msg']}", where=where, fix=allowed) from error
    return found


def chosen_candidates(
    layout: Layout, task: str, only: Sequence[str] = (), added: Sequence[str] = ()
) -> dict[str, CandidateConfig]:
    """The candidates for a task: those of `conf/` (or `only` some of them) and those that the user `added`.

    Raises:
        UserError: A name is unknown, or none is left.
    """
    known = known_candidates(layout)
    for name in only:
        if name not in known:
            fix = f"{did_you_mean(name, known)}conf/{FOLDER}/ has {', '.join(known)}"
            raise UserError(f"no candidate {name!r}", where="--only", fix=fix)
    found = {
        name: candidate
        for name, candidate in known.items()
        if (name in only if only else candidate.tasks is None or task in candidate.tasks)
    }
    for source in added:
        found |= {source: known[source]} if source in known else {_name_of(source): _named(source, known)}
    if not found:
        raise UserError(
            f"no candidate fits {task}", where=f"conf/{FOLDER}", fix="Add a file there, or give --candidate"
        )
    return found


def _named(source: str, known: dict[str, CandidateConfig]) -> CandidateConfig:
    """A hub id, a folder or a package, trained as the pretrained encoder that is there."""
    if _TEMPLATE not in known:
        raise UserError(f"is needed for --candidate {source}", where=f"conf/{FOLDER}/{_TEMPLATE}.yaml")
    lines = known[_TEMPLATE].params
    model = {"pretrained": source}
    return CandidateConfig(title=source, params={**{k: v for k, v in lines.items() if k != "model"}, "model": model})


def _name_of(source: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", source.rstrip("/").rpartition("/")[2]).strip("_").lower() or "model"


def lay_out(
    project: Layout, root: Path, name: str, candidate: CandidateConfig, lines: dict[str, Any], changes: dict[str, Any]
) -> Candidate:
    """Make the throw-away copy of a candidate below `root`, and compose its configuration.

    Args:
        project: Whose `conf/` counts.
        root: A folder below `Layout.choosing`.
        name: Of the candidate.
        candidate: What it changes.
        lines: That say what is asked.
        changes: Lines that count more than the candidate's own.

    Raises:
        UserError: The configuration is wrong.
    """
    from textmill.config.compose import compose

    layout = Layout(root / name)
    layout.root.mkdir(parents=True)
    layout.conf.symlink_to(project.conf, target_is_directory=True)
    own = merged(merged(lines, candidate.params), changes)
    layout.params.write_text(yaml.safe_dump(own, sort_keys=False, allow_unicode=True), encoding="utf-8")
    try:
        config = compose(layout)
    except UserError as error:
        raise UserError(f"candidate {name}: {error}") from error
    return Candidate(name, candidate.title, candidate.baseline, own, config, layout)


def merged(lines: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Both records as one; where both have a value, that of `more` counts."""
    both = OmegaConf.to_container(OmegaConf.merge(lines, more))
    return cast("dict[str, Any]", both)
