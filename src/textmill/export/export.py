"""Make the exported folder of a trained and evaluated model, and prove that it answers the same."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config.layout import Layout
from textmill.config.sections.export import ExportConfig
from textmill.data.prepared import SPLITS, Prepared
from textmill.errors import UserError
from textmill.export import parity as parities
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
    """What an export measured.

    Attributes:
        parity: How far what was exported is from the network, as figures.
        sizes: Megabytes by file.
        manifest_sha256: The digest that stands for the whole exported folder.
    """

    parity: dict[str, float]
    sizes: dict[str, float]
    manifest_sha256: str

    def metrics(self) -> dict[str, float]:
        """All numbers as one flat record, for `metrics.json`."""
        return self.parity | self.sizes


def fingerprint(config: ExportConfig, layout: Layout) -> str:
    """SHA-256 of what decides the export: configuration, weights, state and tokenizer.

    Raises:
        UserError: There is no prepared data or no trained model.
    """
    prepared = Prepared(layout.prepared)
    weights = _existing(layout.trained / "model", "train")
    parts = [config.model_dump_json(), sha256_folder(weights), json.dumps(prepared.state, sort_keys=True)]
    parts += [sha256_folder(prepared.tokenizer_folder), prepared.digest("test")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def export(config: ExportConfig, layout: Layout, folder: Path) -> Export:
    """Write the exported model to `folder`/model and check that it answers as the trained one does.

    Beside it goes `examples.json`: some inputs and what the exported model answers to them. Whoever
    loads the model elsewhere must get the same answers.

    Raises:
        UserError: Something is missing, or a graph differs from PyTorch by more than allowed.
    """
    from textmill.training.loading import load_network

    task = Task.build(config.task)
    model = Model.build(config.model)
    prepared = Prepared(layout.prepared)
    _existing(layout.evaluation / "outputs.npz", "evaluate")
    network = load_network(task, model, prepared.state, layout.trained).float()
    merge_adapters(network)

    target = folder / MODEL_FOLDER
    exported = write_served(config, task, prepared, network, target)
    check = _check_generator if generates(task) else _check_graphs
    parity, sizes = check(config, task, prepared, exported, layout, network, target)
    write_json(target / PROVENANCE_FILE, _provenance(layout, prepared))
    manifest_sha256 = write_manifest(target)
    _write_examples(task, prepared, target, folder / EXAMPLES_FILE)
    return Export(parity, sizes, manifest_sha256)


def write_served(config: ExportConfig, task: Task, prepared: Prepared, network: Any, target: Path) -> ExportedModel:
    """Write what answers: tokenizer, weights, ONNX graphs of a network that does not write, the specification.

    Args:
        config: What the specification says.
        task: Whose network.
        prepared: Brings state and tokenizer.
        network: In evaluation mode, in float32, on the CPU, without adapters.
        target: A folder that is not there yet.
    """
    from textmill.predicting.weights import write_weights

    shutil.copytree(prepared.tokenizer_folder, target)
    write_weights(network, target)
    if generates(task):
        generation = task.generation if isinstance(task, GeneratesText) else config.generation
        exported = _specification(config, prepared, outputs=[], graphs={}).model_copy(update={"generation": generation})
    else:
        exported = _write_graphs(config, task, prepared, network, target)
    write_specification(target, exported)
    return exported


def _write_graphs(config: ExportConfig, task: Task, prepared: Prepared, network: Any, target: Path) -> ExportedModel:
    from textmill.export.graphs import output_names, write_fp32, write_head, write_int8

    names = output_names(network)
    write_fp32(network, names, target / GRAPHS["fp32"])
    write_int8(target / GRAPHS["fp32"], target / GRAPHS["int8"])
    exported = _specification(config, prepared, outputs=names, graphs=GRAPHS).model_copy(
        update={"max_length": min([config.max_length, *_positions(network)])}
    )
    if (head := getattr(network, "pair_head", None)) is None:
        return exported
    write_head(head, network.hidden_size, _served_names(task, exported), head.output_name, target / HEAD)
    return exported.model_copy(update={"head": HEAD})


def _served_names(task: Task, exported: ExportedModel) -> list[str]:
    return [name + ending for ending in task.sequence_columns for name in exported.outputs]


def _check_generator(
    config: ExportConfig,
    task: Task,
    prepared: Prepared,
    exported: ExportedModel,
    layout: Layout,
    network: Any,
    target: Path,
) -> tuple[dict[str, float], dict[str, float]]:
    """Parity and sizes, beside a checkpoint for transformers where it has the architecture, and the card."""
    from textmill.export.checkpoint import CHECKPOINT_FOLDER, write_checkpoint
    from textmill.export.model_card import render_generator_card

    if isinstance(task, ContinuesText):
        parity = write_checkpoint(network, task, prepared, target / CHECKPOINT_FOLDER, config.checkpoint_tolerance)
    else:
        parity = _agreement(task, prepared, exported, network.to("cpu"), layout.evaluation / "outputs.npz")
    sizes = parities.file_sizes(target, {"safetensors": "model.safetensors"})
    card = render_generator_card(config.title, task, prepared, layout, parity, sizes)
    (target / "README.md").write_text(card, encoding="utf-8")
    return parity, sizes


def _check_graphs(
    config: ExportConfig,
    task: Task,
    prepared: Prepared,
    exported: ExportedModel,
    layout: Layout,
    network: Any,
    target: Path,
) -> tuple[dict[str, float], dict[str, float]]:
    """The graphs held against the evaluation's outputs, and their sizes, beside the card and the reference."""
    from textmill.evaluation.reference import write_reference
    from textmill.export.model_card import render_card

    served = _served_names(task, exported)
    if exported.head is not None:
        served.append(network.pair_head.output_name)
    expected = _evaluated_outputs(layout.evaluation / "outputs.npz")
    found = _check(task, prepared, exported, target, expected)
    parities.require(found, config.onnx_tolerance, config.int8_tolerance)
    sizes = parities.file_sizes(target, {"safetensors": "model.safetensors", **GRAPHS})
    card = render_card(config.title, task, prepared, layout, found, sizes)
    (target / "README.md").write_text(card, encoding="utf-8")
    write_reference(task, prepared, expected if set(expected) == set(served) else {}, config.words, target)
    return {name: value for name, value in asdict(found).items() if name != "metric"}, sizes


def _specification(
    config: ExportConfig, prepared: Prepared, *, outputs: list[str], graphs: dict[str, str]
) -> ExportedModel:
    return ExportedModel(
        task=config.task,
        model=without_adapters(config.model),
        state=prepared.state,
        max_length=config.max_length,
        cleaning=config.cleaning,
        outputs=outputs,
        graphs=graphs,
    )


def _positions(network: Any) -> list[int]:
    """How many tokens the network's encoders have positions for: the graph must not be given more."""
    found = (getattr(module, "positions", None) for module in network.modules())
    return [positions for positions in found if isinstance(positions, int)]


def _provenance(layout: Layout, prepared: Prepared) -> dict[str, Any]:
    """What the model was made from, by digests that stay true wherever the folder goes."""
    return {
        "corpus": read_optional(layout.raw / "provenance.json"),
        "pretrained": read_optional(layout.pretrained / "provenance.json"),
        "prepared": {name: prepared.digest(name) for name in SPLITS},
        "trained": sha256_folder(layout.trained / "model"),
    }


def _write_examples(task: Task, prepared: Prepared, model: Path, target: Path) -> None:
    """Let the finished folder answer some test rows, or prompts, as a user would ask."""
    from textmill.predicting.loading import load_predictor

    rows = natural_inputs(task, prepared.split("test").slice(0, EXAMPLES))
    write_json(target, {"inputs": rows, "outputs": load_predictor(model).predict(rows)})


def _agreement(
    task: Task, prepared: Prepared, exported: ExportedModel, network: Any, evaluated: Path
) -> dict[str, float]:
    """`texts_agree`: the share of some test rows whose answer alone is the one that the evaluation was given.

    Sums in batches of other sizes differ in their last digits, which may tip a close choice.

    Raises:
        UserError: It is less than nine in ten.
    """
    from textmill.data.tokenizing import load_tokenizer
    from textmill.predicting.text_generator import TextGenerator

    test = prepared.split("test").slice(0, EXAMPLES)
    writer = TextGenerator(exported, load_tokenizer(prepared.tokenizer_folder), network.eval())
    found = writer.outputs(test.select(list(task.text_columns)).to_pandas())
    expected = _evaluated_outputs(evaluated)
    shares = {name: float((values == expected[name][: len(values)]).mean()) for name, values in found.items()}
    share = min(shares.values())
    if share < _LEAST_AGREEMENT:
        raise UserError(
            f"only {share:.0%} of {test.num_rows} answers are those that were evaluated",
            where=str(evaluated),
            fix="Run `dvc repro --force evaluate`",
        )
    return {"texts_agree": share}


def _check(task: Task, prepared: Prepared, exported: ExportedModel, folder: Path, expected: Outputs) -> parities.Parity:
    """Let both graphs answer the whole test split."""
    from tokenizers import Tokenizer

    from textmill.predicting.predictor import Predictor, open_session

    examples = examples_of(task, prepared.split("test"))
    frame, columns = examples.frame(), examples.columns()
    ids = {name: columns[name] for name in task.sequence_columns.values()}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    head = open_session(folder / exported.head) if exported.head is not None else None
    fp32, int8 = (
        Predictor(exported, tokenizer, open_session(folder / exported.graphs[precision]), head=head).outputs_of_columns(
            ids
        )
        for precision in ("fp32", "int8")
    )
    return parities.measure(task, prepared.state, frame, expected, fp32, int8)


def _evaluated_outputs(path: Path) -> Outputs:
    import numpy as np

    _existing(path, "evaluate")
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _existing(path: Path, stage: str) -> Path:
    if not path.exists():
        raise UserError(f"the stage {stage} has not run", where=str(path), fix=f"Run `dvc repro {stage}`")
    return path
