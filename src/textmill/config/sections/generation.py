"""Generation options: part of the `export` section, and the options of `textmill generate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError

from textmill.config.section import Section
from textmill.errors import UserError

_LEAST_TEMPERATURE = 0.001


def _not_tiny(temperature: float) -> float:
    if 0 < temperature < _LEAST_TEMPERATURE:  # scores divided by it are infinite
        raise ValueError(f"use 0 for the most likely token, or at least {_LEAST_TEMPERATURE:g}")
    return temperature


class GenerationConfig(Section):
    """How tokens are chosen.

    Attributes:
        max_new_tokens: Largest number of generated tokens.
        temperature: Divisor of the logits, 0.001 to 100; 0 always takes the most likely token (greedy).
        top_k: Sample from the k most likely tokens only (Fan et al. 2018).
        top_p: Sample from the most likely tokens with this total probability (Holtzman et al. 2020).
        min_p: Sample from tokens with at least this fraction of the highest probability (Nguyen et al. 2024).
        repetition_penalty: Divisor of the scores of tokens in the text (Keskar et al. 2019), 0.01 to 100.
        beams: Number of beams; 1 disables beam search. Sampling options do not apply to beam search.
        length_penalty: Exponent of the length; beam search ranks texts by log-likelihood / length ^
            exponent (Wu et al. 2016): 0 or less favours short texts, more than 1 long ones.
        early_stopping: When beam search ends: true as soon as `beams` texts have ended; false when open
            beams are unlikely to become better; `never` when they cannot. None is the default of a
            pretrained model's own code, else true.
        stop: Texts that end generation; they are not part of the answer.
        seed: Seed of the samples.
    """

    max_new_tokens: Annotated[int, Field(ge=1)] = 200
    temperature: Annotated[float, Field(ge=0, le=100), AfterValidator(_not_tiny)] = 0.8
    top_k: Annotated[int, Field(ge=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    beams: Annotated[int, Field(ge=1)] = 1
    length_penalty: Annotated[float, Field(ge=-100, le=100)] = 1.0
    early_stopping: bool | Literal["never"] | None = None
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    seed: int = 0

    def changed(self, changes: Mapping[str, Any], naming: Callable[[str], str] = str) -> Self:
        """Return a copy with changed options.

        Args:
            changes: Values by name.
            naming: Converts a name to the one that the user typed, such as `--top-k`.

        Raises:
            UserError: An option is unknown or out of range.
        """
        try:
            return type(self).model_validate(self.model_dump() | dict(changes))
        except ValidationError as error:
            first = error.errors()[0]
            name = naming(str(first["loc"][0]))
            if first["type"] == "extra_forbidden":
                raise UserError("unknown option", where=name) from error
            raise UserError(f"{first['input']!r}: {first['msg']}", where=name) from error
