"""`textmill serve`: serve a model over HTTP."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from textmill.cli.output import MODEL_HELP, print_json
from textmill.errors import UserError

if TYPE_CHECKING:
    from textmill.serving.loading import ModelSource
    from textmill.serving.trial import Trials


def _limit(text: str, least: float = 1, show_default: bool | str = True) -> Any:
    return Option(min=least, rich_help_panel="Limits", help=text, show_default=show_default)


def _capturing(text: str, **options: Any) -> Any:
    return Option(rich_help_panel="Capture", help=text, **options)


def _trying(text: str, **options: Any) -> Any:
    return Option(rich_help_panel="Challenger", help=text, **options)


def _batches(text: str, least: float = 1, show_default: bool | str = True) -> Any:
    return Option(min=least, rich_help_panel="Batches", help=text, show_default=show_default)


def serve(
    address: Annotated[
        str | None,
        Argument(
            metavar="MODEL",
            help=MODEL_HELP,
            show_default="the project's champion",
        ),
    ] = None,
    model: Annotated[str | None, Option(help="The same as MODEL; give only one of them.")] = None,
    host: Annotated[str, Option(help="Address to listen on; any but loopback requires a token.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token_file: Annotated[Path | None, Option(help="File with the bearer token. Default: $TEXTMILL_TOKEN.")] = None,
    allowed_host: Annotated[
        list[str] | None,
        Option(help="Further name by which clients address the server, as behind a proxy; * for any. Repeatable."),
    ] = None,
    precision: Annotated[str, Option(help="Graph that predicts: int8, fp32, or auto (chosen by export).")] = "auto",
    engine: Annotated[
        str,
        Option(help="Engine of a model that generates: llama_cpp (its GGUF file, on CPUs), pytorch, or auto."),
    ] = "auto",
    poll_seconds: Annotated[float, Option(min=0.1, help="Interval between checks of the alias.")] = 5.0,
    drain_seconds: Annotated[float, Option(min=0, help="Time to finish requests after SIGTERM.")] = 30.0,
    max_body_bytes: Annotated[int, _limit("Maximum size of a request body.")] = 1_048_576,
    receive_seconds: Annotated[float, _limit("Timeout for receiving the head, and again the body.", least=0.1)] = 10.0,
    max_inputs: Annotated[int, _limit("Maximum inputs of a request.")] = 128,
    max_characters: Annotated[int, _limit("Maximum characters of an input.")] = 20_000,
    max_waiting: Annotated[int, _limit("Maximum queued inputs; further ones get 503.")] = 2048,
    max_generations: Annotated[
        int | None,
        _limit("Maximum concurrent generations; further ones get 503.", show_default="16 with llama_cpp, else 2"),
    ] = None,
    max_new_tokens: Annotated[int, _limit("Maximum tokens of a generation.")] = 1024,
    workers: Annotated[
        int | None, _batches("Concurrent batches; threads of a model that generates.", show_default="one per core")
    ] = None,
    batch_tokens: Annotated[int, _batches("Maximum tokens of a batch, padding included.")] = 256,
    batch_rows: Annotated[int, _batches("Maximum inputs of a batch.")] = 32,
    batch_delay_ms: Annotated[float, _batches("Wait for more inputs while a worker is free.", least=0)] = 0.0,
    capture: Annotated[
        Path | None, _capturing("Folder to write requests, answers and feedback to; none is written without it.")
    ] = None,
    capture_share: Annotated[
        float, _capturing("Share of the requests to write.", min=0, max=1, show_default="0.1")
    ] = 0.1,
    capture_max_mb: Annotated[int, _capturing("Maximum size of the folder.", min=1)] = 1024,
    capture_days: Annotated[int, _capturing("Days after which captured requests are removed.", min=1)] = 90,
    capture_mask: Annotated[
        str, _capturing("Personal data to mask: email, phone, card, ip; or none; or MODULE:FUNCTION.")
    ] = "email,phone,card",
    new_labels: Annotated[
        bool,
        Option(
            "--new-labels",
            rich_help_panel="Capture",
            help="Accept feedback with labels that the model does not know.",
        ),
    ] = False,
    shadow: Annotated[
        str | None, _trying("Version or alias that computes the same requests in idle time and is judged.")
    ] = None,
    canary: Annotated[
        str | None, _trying("Share of the requests that the alias challenger answers, such as 5%.")
    ] = None,
    trial_seconds: Annotated[
        float, _trying("Time in which the challenger must answer a request; else it counts as an error.", min=0.1)
    ] = 10.0,
    beside: Annotated[
        str | None, _trying("Version, alias or folder served too, by its name; the page at / asks both.")
    ] = None,
    as_json: Annotated[
        bool, Option("--json", help="Print one JSON document with the address once the server listens.")
    ] = False,
) -> None:
    """Serve a model on http://127.0.0.1:8000; a new champion is loaded without a restart.

    SIGTERM or Ctrl-C stops it after the accepted requests are answered (exit status 0).

    Example: textmill serve models:/movie-reviews@champion --port 8080
    """
    arguments: dict[str, Any] = locals()
    if address is not None and model is not None:
        raise UserError("MODEL and --model are both given", where="--model", fix="Give one of them")
    if precision not in ("auto", "int8", "fp32"):
        raise UserError(f"no precision {precision!r}", where="--precision", fix="Use auto, int8 or fp32")
    if engine not in ("auto", "pytorch", "llama_cpp"):
        raise UserError(f"no engine {engine!r}", where="--engine", fix="Use auto, pytorch or llama_cpp")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    from textmill.serving.access import read_token
    from textmill.serving.server import serve as run
    from textmill.serving.settings import ServeSettings

    options = {name: arguments[name] for name in ServeSettings.model_fields if name in arguments}
    options["allowed_hosts"] = tuple(allowed_host or ())
    announce = _announce if as_json else lambda _: None
    source = _source(address or model)
    trial = _trial(source, shadow, canary)
    run(source, ServeSettings(**options), read_token(token_file), announce, trial, _beside(source, beside))


def _trial(source: ModelSource, shadow: str | None, canary: str | None) -> Trials | None:
    """Return the trials of a challenger, None without the options."""
    if shadow is None and canary is None:
        return None
    if shadow is not None and canary is not None:
        raise UserError("--shadow and --canary are both given", where="--canary", fix="Give one of them")
    from textmill.config.layout import find_layout
    from textmill.registry.promotion.take_back import TakeBacks
    from textmill.registry.versions.registered_source import RegisteredSource
    from textmill.serving.trial import Trials

    kind: Literal["shadow", "canary"] = "shadow" if canary is None else "canary"
    share = 0.0 if canary is None else _share(canary)
    if not isinstance(source, RegisteredSource):
        fix = "Serve a registered model, such as models:/NAME@champion"
        raise UserError("a folder has no challenger", where=f"--{kind}", fix=fix)
    layout = find_layout()
    records = TakeBacks(source.name, kind, layout)
    other = RegisteredSource(_other(source.name, shadow or "challenger"), layout)
    return Trials(kind, share, source, other, records.record, records.refuse)


def _beside(source: ModelSource, other: str | None) -> ModelSource | None:
    """Return the source of the model that is served too."""
    from textmill.registry.versions.registered_source import RegisteredSource

    if other is not None and isinstance(source, RegisteredSource) and not {*"/."} & {*other}:
        other = _other(source.name, other)
    if other is None:
        return None
    found = _source(other)
    found.latest()  # refuses one that is not there before the server listens
    return found


def _other(name: str, version: str) -> str:
    """Return the address of another version of a model, by its number or alias."""
    return f"models:/{name}/{version}" if version.isdigit() else f"models:/{name}@{version}"


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UserError(f"no share: {text!r}", where="--canary", fix="Give a share above 0, such as 5% or 0.05")
    return share


def _announce(address: str) -> None:
    print_json({"address": address, "ready": f"{address}/ready", "docs": f"{address}/docs", "pid": os.getpid()})


def _source(model: str | None) -> ModelSource:
    """Return the source of the model; by default the champion of the project's registered model."""
    from textmill.config.layout import find_layout
    from textmill.config.resolved import trust_project
    from textmill.predicting.exported import read_specification
    from textmill.registry.versions.registered_source import RegisteredSource
    from textmill.registry.versions.versions import CHAMPION
    from textmill.serving.loading import FolderSource

    if model is None:
        from textmill.config import resolved

        layout = find_layout()
        return RegisteredSource(f"models:/{resolved.read(layout.resolved).registration.name}@{CHAMPION}", layout)
    if model.startswith("models:/"):
        return RegisteredSource(model, find_layout())
    trust_project()
    if not Path(model).is_dir():
        fix = f"Give a folder, or a registered version, such as models:/{model}@champion"
        raise UserError("no such folder", where=model, fix=fix)
    read_specification(Path(model))
    return FolderSource(Path(model))
