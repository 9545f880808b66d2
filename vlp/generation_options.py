"""How captions are written: options that a command can show without loading what writes them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, model_validator

_BEAMS = 3


class GenerationOptions(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How captions are written. Lengths are in ids of the tokenizer, the start and the end of the text included."""

    beams: int | None = Field(
        None,
        ge=1,
        description=f"texts that are followed at once to find a likely one ({_BEAMS} where nothing is said); 1 takes "
        "the likeliest id each time",
    )
    max_length: int = Field(
        30, ge=3, description="where a text ends at the latest; the model's context if that is less"
    )
    min_length: int = Field(3, ge=2, description="before which no text ends; 3 is a caption of one id")
    length_penalty: float | None = Field(
        None,
        description="beams are compared by log-likelihood / length^penalty (1 where nothing is said); more favours "
        "long texts, 0 short ones",
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="draw each id from the likeliest that together have this probability; no beams"
    )
    temperature: float | None = Field(
        None, gt=0, description="logits are divided by it before an id is drawn (1 where nothing is said)"
    )
    seed: int | None = Field(None, description="of what is drawn (0 where nothing is said)")
    repetition_penalty: float = Field(
        1.0, ge=1, description="log-probabilities of ids that the text has already are multiplied by it"
    )
    no_repeat_ngram: int | None = Field(
        None, ge=1, description="so many ids in a row stand in a text once; 1 lets no id come twice"
    )
    prompt: str = Field("", description="what each caption begins with, such as `a photo of`")

    @model_validator(mode="after")
    def _all_have_an_effect(self) -> GenerationOptions:
        if self.top_p is not None:
            if (self.beams or 1) > 1:
                raise ValueError(f"beams {self.beams} and top_p {self.top_p} exclude each other: leave out one of them")
        else:
            for name in ("temperature", "seed"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is of drawn captions: set top_p, such as 0.9, or leave {name} out")
        if self.length_penalty is not None and self.num_beams == 1:
            raise ValueError("length_penalty compares beams: set beams, such as 3, or leave it out")
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} is more than max_length {self.max_length}")
        return self

    def resolved(self) -> dict[str, Any]:
        """All that captions depend on, with what is meant where nothing is said; None where it has no effect."""
        meant: dict[str, Any] = {"beams": self.num_beams}
        if self.top_p is not None:
            meant |= {"temperature": self.temperature or 1.0, "seed": self.seed or 0}
        if self.num_beams > 1 and self.length_penalty is None:
            meant["length_penalty"] = 1.0
        return {**self.model_dump(mode="json"), **meant}

    @property
    def num_beams(self) -> int:
        return self.beams or (_BEAMS if self.top_p is None else 1)
