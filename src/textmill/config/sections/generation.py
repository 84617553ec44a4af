"""How a language model writes: part of the `export` section, and the options of `textmill generate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError

from textmill.config.section import Section
from textmill.errors import UserError


class GenerationConfig(Section):
    """How tokens are chosen.

    Attributes:
        max_new_tokens: Tokens written at most.
        temperature: Logits are divided by it; 0 always takes the likeliest token (greedy).
        top_k: Draw among the k likeliest only (Fan et al. 2018).
        top_p: Draw among the likeliest that together have this probability (Holtzman et al. 2020).
        min_p: Draw among those at least this times as likely as the likeliest (Nguyen et al. 2024).
        repetition_penalty: Divides the scores of tokens that stand there already (Keskar et al. 2019).
        beams: Beams of a beam search; 1 for none. It takes the likeliest text, so the options of
            drawing do not apply to it.
        length_penalty: A beam search ranks texts by log-likelihood / length to this power (Wu et al.
            2016): 0 favours short texts, more than 1 long ones.
        stop: Texts at which writing ends; they are not part of the answer.
        seed: Of the draws.
    """

    max_new_tokens: Annotated[int, Field(ge=1)] = 200
    temperature: Annotated[float, Field(ge=0)] = 0.8
    top_k: Annotated[int, Field(ge=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    beams: Annotated[int, Field(ge=1)] = 1
    length_penalty: Annotated[float, Field(ge=0)] = 1.0
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    seed: int = 0

    def changed(self, changes: Mapping[str, Any], naming: Callable[[str], str] = str) -> Self:
        """These options with changes.

        Args:
            changes: Values by name.
            naming: How whoever gave an option calls it, by its name here.

        Raises:
            UserError: There is no such option, or it is out of range.
        """
        try:
            return type(self).model_validate(self.model_dump() | dict(changes))
        except ValidationError as error:
            first = error.errors()[0]
            name = naming(str(first["loc"][0]))
            if first["type"] == "extra_forbidden":
                raise UserError("there is no such option", where=name) from error
            raise UserError(f"{first['input']!r}: {first['msg']}", where=name) from error
