"""Settings of the server: address, limits, batching, intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from textmill.config.section import Section


class ServeSettings(Section):
    """Settings of `textmill serve`; every limit has a default that keeps memory bounded.

    Attributes:
        host: Address to listen on. Any but loopback requires a token.
        port: TCP port; 0 takes a free one.
        allowed_hosts: Names, besides those of loopback, by which clients may address the server; `*` for any.
            Without them, a server on another address than loopback answers to any name.
        precision: Graph that predicts; `auto` is the one that the model's export chose.
        engine: What computes a model that generates: `llama_cpp` (its GGUF file, on CPUs), `pytorch`, or `auto`.
        workers: Concurrent batches, one thread each; for a model that generates, its threads. None for one per core.
        max_body_bytes: Maximum size of a request body.
        max_held_bytes: Maximum size of the bodies of all open requests.
        max_inputs: Maximum inputs of a request.
        max_characters: Maximum characters of an input, all fields together.
        max_waiting: Maximum queued inputs; further ones get 503.
        max_generations: Maximum concurrent generations; further ones get 503. None for the engine's own number.
        max_new_tokens: Maximum tokens of a generation, unless the model's own option is higher.
        batch_tokens: Maximum estimated tokens of a batch, padding included.
        batch_rows: Maximum inputs of a batch.
        batch_delay_ms: Maximum delay in milliseconds to wait for more inputs while a worker is free.
        receive_seconds: Timeout for receiving the head of a request, and again its body.
        poll_seconds: Interval between checks of the registry.
        drain_seconds: Time to finish requests after SIGTERM.
        trial_seconds: Time in which a challenger must answer a request; else it counts as an error.
        capture: Folder to write requests and answers to; None writes none.
        capture_share: Share of the requests that are written.
        capture_max_mb: Maximum size of the folder in megabytes; nothing more is written above it.
        capture_days: Days after which captured requests are removed.
        new_labels: Whether feedback may have labels that the model does not know.
        capture_mask: Kinds of personal data to mask, or `MODULE:FUNCTION`; see `serving.capture.load_mask`.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    allowed_hosts: tuple[str, ...] = ()
    precision: Literal["auto", "int8", "fp32"] = "auto"
    engine: Literal["auto", "pytorch", "llama_cpp"] = "auto"
    workers: Annotated[int, Field(ge=1)] | None = None
    max_body_bytes: Annotated[int, Field(ge=1)] = 1 << 20
    max_held_bytes: Annotated[int, Field(ge=1)] = 64 << 20
    max_inputs: Annotated[int, Field(ge=1)] = 128
    max_characters: Annotated[int, Field(ge=1)] = 20_000
    max_waiting: Annotated[int, Field(ge=1)] = 2048
    max_generations: Annotated[int, Field(ge=1)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] = 1024
    batch_tokens: Annotated[int, Field(ge=1)] = 256
    batch_rows: Annotated[int, Field(ge=1)] = 32
    batch_delay_ms: Annotated[float, Field(ge=0)] = 0.0
    receive_seconds: Annotated[float, Field(gt=0)] = 10.0
    poll_seconds: Annotated[float, Field(gt=0)] = 5.0
    drain_seconds: Annotated[float, Field(ge=0)] = 30.0
    trial_seconds: Annotated[float, Field(gt=0)] = 10.0
    capture: Path | None = None
    capture_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    capture_max_mb: Annotated[int, Field(ge=1)] = 1024
    capture_days: Annotated[int, Field(ge=1)] = 90
    new_labels: bool = False
    capture_mask: str = "email,phone,card"
