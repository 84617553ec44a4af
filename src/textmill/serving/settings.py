"""What a server may be told: where it listens, what it accepts, how it batches, when it looks again."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from textmill.config.section import Section


class ServeSettings(Section):
    """Settings of `textmill serve`; every limit has a default that keeps memory bounded.

    Attributes:
        host: Address to listen on. Any but loopback needs a token.
        port: TCP port; 0 takes a free one.
        precision: Which graph answers.
        workers: Batches computed at the same time, each in one thread; None takes one for each core.
        max_body_bytes: Size of a request's body.
        max_held_bytes: Bodies of all requests that are being read or answered.
        max_inputs: Inputs of one request.
        max_characters: Characters of one input, all its fields together.
        max_waiting: Inputs that may wait for a worker; more are answered with 503.
        max_generations: Texts generated at the same time; more are answered with 503.
        max_new_tokens: Tokens of a generated text, unless the model itself is set to more.
        batch_tokens: Estimated tokens of a batch, padding counted.
        batch_rows: Inputs of a batch.
        batch_delay_ms: How long an input may wait, in milliseconds, for others to share its batch
            while a worker is free.
        receive_seconds: How long a client may take to send the head of a request, and again its body.
        poll_seconds: Time between two looks at the registry.
        drain_seconds: How long requests in progress may take after SIGTERM.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    precision: Literal["int8", "fp32"] = "int8"
    workers: Annotated[int, Field(ge=1)] | None = None
    max_body_bytes: Annotated[int, Field(ge=1)] = 1 << 20
    max_held_bytes: Annotated[int, Field(ge=1)] = 64 << 20
    max_inputs: Annotated[int, Field(ge=1)] = 128
    max_characters: Annotated[int, Field(ge=1)] = 20_000
    max_waiting: Annotated[int, Field(ge=1)] = 2048
    max_generations: Annotated[int, Field(ge=1)] = 2
    max_new_tokens: Annotated[int, Field(ge=1)] = 1024
    batch_tokens: Annotated[int, Field(ge=1)] = 256
    batch_rows: Annotated[int, Field(ge=1)] = 32
    batch_delay_ms: Annotated[float, Field(ge=0)] = 0.0
    receive_seconds: Annotated[float, Field(gt=0)] = 10.0
    poll_seconds: Annotated[float, Field(gt=0)] = 5.0
    drain_seconds: Annotated[float, Field(ge=0)] = 30.0
