"""Export a trained and evaluated model and check that it gives the same answers."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config.layout import SEEN_FILE, START, Layout
from textmill.config.sections.export import ExportConfig
from textmill.data.prepared import SPLITS, Prepared
from textmill.data.seen import write_seen
from textmill.errors import UserError
from textmill.export.parity import Parity, file_sizes, int8_verdict, measure_parity, require_parity
from textmill.files import read_optional, sha256_folder, write_json
from textmill.models.base import Model
from textmill.models.lora import merge_adapters, without_adapters
from textmill.predicting.exported import ExportedModel, write_manifest, write_specification
from textmill.tasks.abilities import ContinuesText, GeneratesText, examples_of, generates, natural_inputs
from textmill.tasks.base import Task

if TYPE_CHECKING:
    from textmill.metrics.base import Outputs

GRAPHS = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
HEAD = "head.onnx"
MODEL_FOLDER = "model"
PROVENANCE_FILE = "provenance.json"
EXAMPLES_FILE = "examples.json"
EXAMPLES = 32
_LEAST_AGREEMENT = 0.9


@dataclass(frozen=True)
class Export:
    """The result of an export.

    Attributes:
        parity: Differences between the exported model and the network.
        sizes: Size of each file, in MB.
        manifest_sha256: Digest of the manifest, which covers the whole exported folder.
        verdict: Line that says which graph serves, and why; empty for a model without graphs.
    """

    parity: dict[str, float]
    sizes: dict[str, float]
    manifest_sha256: str
    verdict: str = ""

    def metrics(self) -> dict[str, float]:
        """Return the content of `metrics.json`."""
        return self.parity | self.sizes


def fingerprint(config: ExportConfig, layout: Layout) -> str:
    """Return the SHA-256 over everything that decides the export: configuration, weights, state, tokenizer.

    Raises:
        UserError: There is no prepared data or no trained model.
    """
    prepared = Prepared(layout.prepared)
    weights = _existing(layout.trained / "model", "train")
    parts = [config.model_dump_json(), sha256_folder(weights), json.dumps(prepared.state, sort_keys=True)]
    parts += [sha256_folder(prepared.tokenizer_folder), prepared.digest("test")]
    parts += [json.dumps(start, sort_keys=True)] if (start := read_optional(layout.trained / f"{START}.json")) else []
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def export(config: ExportConfig, layout: Layout, folder: Path) -> Export:
    """Write the exported model to `folder`/model and check its answers against the trained model's.

    `examples.json` beside it has inputs and the exported model's answers: every later load of the
    model must reproduce them. `seen.parquet` records the rows that the model was made with, and those of the
    versions that it started from.

    Raises:
        UserError: An input is missing, or the fp32 graph exceeds its tolerance.
    """
    from textmill.evaluation.reference import write_reference
    from textmill.export.checkpoint import CHECKPOINT_FOLDER, check_encoder, write_checkpoint
    from textmill.export.model_card import render_card
    from textmill.training.loading import load_network

    task = Task.build(config.task)
    model = Model.build(config.model)
    prepared = Prepared(layout.prepared)
    expected = _evaluated_outputs(layout.evaluation / "outputs.npz")
    network: Any = load_network(task, model, prepared.state, layout.trained).float()
    merge_adapters(network)

    target = folder / MODEL_FOLDER
    exported = write_served(config, task, prepared, network, target)
    verdict = ""
    if isinstance(task, ContinuesText):
        parity = write_checkpoint(network, task, prepared, target / CHECKPOINT_FOLDER, config.checkpoint_tolerance)
        if config.gguf:
            exported, checked, verdict = write_gguf_files(config, task, prepared, exported, network, target)
            write_specification(target, exported)
            parity |= checked
    elif generates(task):
        parity = _agreement(task, prepared, exported, network.to("cpu"), expected)
    else:
        graphs, rows = _check_graphs(config, task, prepared, exported, target, expected)
        verdict = int8_verdict(graphs, config.int8_tolerance, rows)
        serves_int8 = graphs.serves_int8(config.int8_tolerance)
        exported = exported.model_copy(update={"precision": "int8" if serves_int8 else "fp32"})
        write_specification(target, exported)
        parity = graphs.numbers() | {"int8_serves": float(serves_int8)}
        parity |= check_encoder(network, task, prepared, target, config.checkpoint_tolerance)
        served = _served_names(task, exported) + ([network.pair_head.output_name] if exported.head else [])
        write_reference(task, prepared, expected if set(expected) == set(served) else {}, config.words, target)
    sizes = file_sizes(target, {"safetensors": "model.safetensors", **exported.graphs})
    card = render_card(config.title, task, prepared, layout, parity, sizes, verdict, target)
    (target / "README.md").write_text(card, encoding="utf-8")
    write_json(target / PROVENANCE_FILE, _provenance(layout, prepared))
    manifest_sha256 = write_manifest(target)
    _write_examples(task, prepared, target, folder / EXAMPLES_FILE)
    made_with = [prepared.split(name).select(list(task.text_columns)) for name in ("train", "validation")]
    key = prepared.digest("train") + prepared.digest("validation")
    earlier = layout.trained / SEEN_FILE
    write_seen(folder / SEEN_FILE, made_with, key, earlier if earlier.is_file() else None)
    return Export(parity, sizes, manifest_sha256, verdict)


def write_served(config: ExportConfig, task: Task, prepared: Prepared, network: Any, target: Path) -> ExportedModel:
    """Write the files that serve a model into a new folder.

    These are tokenizer, weights, specification, and ONNX graphs for a model that does not generate
    text. `network` is in evaluation mode, in float32, on the CPU, without adapters.
    """
    shutil.copytree(prepared.tokenizer_folder, target)
    if generates(task):
        from textmill.predicting.weights import write_weights

        write_weights(network, target)
        generation = task.generation if isinstance(task, GeneratesText) else config.generation
        exported = _specification(config, prepared, outputs=[], graphs={}, generation=generation)
    else:
        exported = _write_graphs(config, task, prepared, network, target)
    write_specification(target, exported)
    return exported


def _write_graphs(config: ExportConfig, task: Task, prepared: Prepared, network: Any, target: Path) -> ExportedModel:
    from textmill.export.checkpoint import write_encoder
    from textmill.export.graphs import output_names, write_fp32, write_head, write_int8

    names = output_names(network)
    write_fp32(network, names, target / GRAPHS["fp32"])
    write_int8(target / GRAPHS["fp32"], target / GRAPHS["int8"])
    max_length = min([config.max_length, *_positions(network)])
    write_encoder(network, task, prepared.state, target, max_length)
    exported = _specification(config, prepared, outputs=names, graphs=GRAPHS, max_length=max_length)
    if (head := getattr(network, "pair_head", None)) is None:
        return exported
    write_head(head, network.hidden_size, _served_names(task, exported), head.output_name, target / HEAD)
    return exported.model_copy(update={"head": HEAD})


def write_gguf_files(
    config: ExportConfig, task: Task, prepared: Prepared, exported: ExportedModel, network: Any, target: Path
) -> tuple[ExportedModel, dict[str, float], str]:
    """Write and check GGUF files, remove those that fail; return the specification, metrics and what to tell."""
    from textmill.data.tokenizing import load_tokenizer
    from textmill.export.checkpoint import CHECKPOINT_FOLDER
    from textmill.export.gguf_answers import questions
    from textmill.export.gguf_check import check_gguf, sample
    from textmill.export.gguf_writing import write_gguf

    tokenizer = load_tokenizer(prepared.tokenizer_folder)
    taken = sample(task, prepared, tokenizer)
    ends = {prepared.state["end_of_text"], *prepared.state.get("end_ids", ())}
    asked = questions(task, prepared, tokenizer, network, ends, config.gguf_answers)
    files: dict[str, str] = {}
    numbers: dict[str, float] = {}
    told: list[str] = []
    for kind in config.gguf:
        name = f"model-{kind}.gguf"
        write_gguf(target / CHECKPOINT_FOLDER, kind, target / name, config.title)
        verdict = check_gguf(target / name, kind, taken, tokenizer, network, ends, asked, config.gguf_margin)
        numbers |= {f"gguf_{kind}_{key}": value for key, value in verdict.numbers.items()}
        numbers[f"gguf_{kind}_passes"] = float(not verdict.problems)
        if verdict.problems:
            (target / name).unlink()
            told.append(f"GGUF {kind} is not exported: {'; '.join(verdict.problems)}")
        else:
            files[kind] = name
            told.append(f"GGUF {kind} passes: bits per byte {verdict.numbers['bits_per_byte_change']:+.2%}")
            if asked.prompts:
                equal, change = verdict.numbers["answers_equal"], verdict.numbers["answer_change"]
                told[-1] += f", F1 of {len(asked.prompts)} answers {change:+.3f}, {equal:.0%} of them equal"
    return exported.model_copy(update={"gguf": files}), numbers, ". ".join(told)


def _served_names(task: Task, exported: ExportedModel) -> list[str]:
    return [name + ending for ending in task.sequence_columns for name in exported.outputs]


def _check_graphs(
    config: ExportConfig, task: Task, prepared: Prepared, exported: ExportedModel, target: Path, expected: Outputs
) -> tuple[Parity, int]:
    """Compare both graphs with the evaluation on the whole test split; return the parity and the number of rows."""
    from tokenizers import Tokenizer

    from textmill.predicting.predictor import Predictor, open_session

    examples = examples_of(task, prepared.split("test"))
    frame, columns = examples.frame(), examples.columns()
    ids = {name: columns[name] for name in task.sequence_columns.values()}
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    head = open_session(target / exported.head) if exported.head is not None else None
    sessions = (open_session(target / exported.graphs[precision]) for precision in ("fp32", "int8"))
    fp32, int8 = (Predictor(exported, tokenizer, session, head=head).outputs_of_columns(ids) for session in sessions)
    parity = measure_parity(task, prepared.state, frame, expected, fp32, int8)
    require_parity(parity, config.onnx_tolerance)
    return parity, len(frame)


def _specification(config: ExportConfig, prepared: Prepared, **values: Any) -> ExportedModel:
    common = {"model": without_adapters(config.model), "state": prepared.state, "max_length": config.max_length}
    return ExportedModel(task=config.task, cleaning=config.cleaning, **common | values)


def _positions(network: Any) -> list[int]:
    """Return how many positions each encoder of the network has: a graph cannot read longer inputs."""
    positions = (getattr(module, "positions", None) for module in network.modules())
    return [count for count in positions if isinstance(count, int)]


def _provenance(layout: Layout, prepared: Prepared) -> dict[str, Any]:
    """Return the digests of the model's inputs, which identify them wherever the folder is copied."""
    return {
        "corpus": read_optional(layout.raw / "provenance.json"),
        "pretrained": read_optional(layout.pretrained / "provenance.json"),
        "prepared": {name: prepared.digest(name) for name in SPLITS},
        "trained": sha256_folder(layout.trained / "model"),
        **({START: start} if (start := read_optional(layout.trained / f"{START}.json")) else {}),
    }


def _write_examples(task: Task, prepared: Prepared, model: Path, target: Path) -> None:
    """Load the finished folder as a user does and write its answers to some test inputs."""
    from textmill.predicting.loading import load_predictor

    rows = natural_inputs(task, prepared.split("test").slice(0, EXAMPLES))
    write_json(target, {"inputs": rows, "outputs": load_predictor(model).predict(rows)})


def _agreement(
    task: Task, prepared: Prepared, exported: ExportedModel, network: Any, expected: Outputs
) -> dict[str, float]:
    """Return `texts_agree`: the share of some test rows with the same answer as in the evaluation.

    Batches of other sizes round differently, which may change a token with close alternatives.

    Raises:
        UserError: The share is less than 0.9.
    """
    from textmill.data.tokenizing import load_tokenizer
    from textmill.predicting.text_generator import TextGenerator

    test = prepared.split("test").slice(0, EXAMPLES)
    generator = TextGenerator(exported, load_tokenizer(prepared.tokenizer_folder), network.eval())
    outputs = generator.outputs(test.select(list(task.text_columns)).to_pandas())
    share = min(float((values == expected[name][: len(values)]).mean()) for name, values in outputs.items())
    if share < _LEAST_AGREEMENT:
        raise UserError(
            f"only {share:.0%} of {test.num_rows} answers are equal to the evaluated ones",
            where="data/evaluation/outputs.npz",
            fix="Run `dvc repro --force evaluate`",
        )
    return {"texts_agree": share}


def _evaluated_outputs(path: Path) -> Outputs:
    import numpy as np

    _existing(path, "evaluate")
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _existing(path: Path, stage: str) -> Path:
    if not path.exists():
        raise UserError(f"the stage {stage} has not run yet", where=str(path), fix=f"Run `dvc repro {stage}`")
    return path
