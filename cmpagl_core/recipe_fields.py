"""The building blocks of recipe parts: strict models, words, and bounded numbers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

# Every number is bounded, far outside the useful range but where arithmetic is still exact.
AsTuple = Field(strict=False)  # YAML's lists become tuples
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
StageNumber = Annotated[int, Field(ge=1, le=4)]
Weight = Annotated[float, Field(ge=0.0, le=1_000.0)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Epochs = Annotated[int, Field(ge=0, le=100_000)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
Layers = Annotated[int, Field(ge=1, le=100)]
SidePx = Annotated[int, Field(ge=32, le=1024)]
_Count = Annotated[int, Field(ge=0, le=512)]
FourCounts = Annotated[tuple[_Count, _Count, _Count, _Count], AsTuple]


def _word_not_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a word, not true or false: write none, or quote the word")
    return value


Word = BeforeValidator(_word_not_boolean)


class Part(BaseModel):
    """Strict: no conversion between text, booleans and numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
