"""Candidates: files of `conf/candidate/` and models named by the user, each composed separately."""

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
from textmill.config.schema import PipelineConfig, with_start
from textmill.config.sections.candidate import CandidateConfig, ChatConfig
from textmill.errors import UserError, did_you_mean

FOLDER = "candidate"
_TEMPLATE = "minilm"  # a model named by the user is trained with the settings of this candidate


@dataclass(frozen=True)
class Candidate:
    """A candidate in its own temporary project folder.

    Attributes:
        name: Name of its file, or derived from the model that the user named.
        baseline: Name of the task's baseline, or None for a network.
        chat: A chat model to ask, or None.
        params: The content of `params.yaml` that adopts the candidate.
        config: The composed configuration: `params` on top of `conf/`.
        layout: The temporary project folder.
    """

    name: str
    title: str
    baseline: str | None
    params: dict[str, Any]
    config: PipelineConfig
    layout: Layout
    chat: ChatConfig | None = None

    @property
    def is_network(self) -> bool:
        """Whether the pipeline trains and exports it."""
        return self.baseline is None and self.chat is None


def read_candidates(layout: Layout) -> dict[str, CandidateConfig]:
    """Read the files of `conf/candidate/`: name -> content; raise UserError for an invalid one."""
    candidates = {}
    for path in sorted((layout.conf / FOLDER).glob("*.yaml")):
        where = f"conf/{FOLDER}/{path.name}"
        try:
            candidates[path.stem] = CandidateConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except yaml.YAMLError as error:
            raise UserError(f"not YAML ({' '.join(str(error).split())[:200]})", where=where) from error
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "the file"
            allowed = f"Use the keys {', '.join(CandidateConfig.model_fields)}"
            raise UserError(f"{key}: {first['msg']}", where=where, fix=allowed) from error
    return candidates


def select_candidates(
    layout: Layout, task: str, only: Sequence[str] = (), added: Sequence[str] = ()
) -> dict[str, CandidateConfig]:
    """Return the candidates for a task: those of `conf/` (or `only` these) and the `added` ones.

    Raises:
        UserError: A name is unknown, or no candidate fits the task.
    """
    known = read_candidates(layout)
    for name in only:
        if name not in known:
            fix = f"{did_you_mean(name, known)}conf/{FOLDER}/ has {', '.join(known)}"
            raise UserError(f"no candidate {name!r}", where="--only", fix=fix)
    selected = {
        name: candidate
        for name, candidate in known.items()
        if (name in only if only else candidate.tasks is None or task in candidate.tasks)
    }
    for source in added:
        selected |= {source: known[source]} if source in known else {_name_of(source): _from_model(source, known)}
    if not selected:
        fix = "Add a file there, or use --candidate"
        raise UserError(f"no candidate fits the task {task}", where=f"conf/{FOLDER}", fix=fix)
    return selected


def _from_model(source: str, known: dict[str, CandidateConfig]) -> CandidateConfig:
    """Return a candidate that trains a hub id, folder or package with the settings of the template."""
    if _TEMPLATE not in known:
        raise UserError(f"file missing; --candidate {source} needs it", where=f"conf/{FOLDER}/{_TEMPLATE}.yaml")
    params = {**known[_TEMPLATE].params, "model": {"pretrained": source}}
    return CandidateConfig(title=source, params=params)


def _name_of(source: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", source.rstrip("/").rpartition("/")[2]).strip("_").lower() or "model"


def compose_candidate(
    project: Layout, root: Path, name: str, candidate: CandidateConfig, params: dict[str, Any], changes: dict[str, Any]
) -> Candidate:
    """Create the candidate's temporary project folder `root/name` and compose its configuration.

    The folder uses `conf/` of `project`. `params` select data and task, the candidate's own override
    them, and `changes` override both.

    Raises:
        UserError: The configuration is invalid.
    """
    from textmill.config.compose import compose

    layout = Layout(root / name)
    layout.root.mkdir(parents=True)
    layout.conf.symlink_to(project.conf, target_is_directory=True)
    own = merge_params(merge_params(params, candidate.params), changes)
    layout.params.write_text(yaml.safe_dump(own, sort_keys=False, allow_unicode=True), encoding="utf-8")
    try:
        config = compose(layout)
        # All candidates begin alike: another architecture cannot start from the champion
        config = with_start(config.model_copy(update={"train": config.train.model_copy(update={"start": None})}))
    except UserError as error:
        raise UserError(f"candidate {name}: {error}") from error
    return Candidate(name, candidate.title, candidate.baseline, own, config, layout, candidate.chat)


def merge_params(params: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return `params` deeply updated by `overrides`."""
    return cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.merge(params, overrides)))
