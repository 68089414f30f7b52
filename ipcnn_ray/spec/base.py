"""What every section of a spec is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, Strict
from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True)
class Says:
    """What a value must be, in words; a person reads this in place of pydantic's message."""

    words: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.custom_error_schema(
            handler(source), custom_error_type="says", custom_error_message=self.words
        )


@dataclass(frozen=True)
class Later:
    """Marks a field that came when there were runs already: while it has its default, digests leave it out, so that
    their specs keep the digests that they had."""


# Numbers and flags are strict: YAML knows their types, and `epochs: "10"` or `weight: 1e-4` (text to YAML) is a slip.
Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Flag = Annotated[bool, Strict()]
Share = Annotated[Number, Field(ge=0, le=1)]
OpenShare = Annotated[Number, Field(gt=0, lt=1)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Count = Annotated[Integer, Field(ge=1)]
Slug = Annotated[
    str,
    Field(pattern=r"^[a-z0-9][a-z0-9_]{0,39}$"),
    Says("must be a name of a-z, 0-9 and _, at most 40 characters, not beginning with _"),
]
"""A name that is usable in a path, a URL and a run id."""
FieldPath = Annotated[
    str, Field(pattern=r"^[a-z_]+(\.[a-z_]+)*$"), Says("must be the dotted path of a field, such as template.beta")
]
Scalar = Annotated[
    Flag | Integer | Number | Annotated[str, Strict()],
    Says("must be one value: a number, text, or true or false"),
]


class Section(BaseModel):
    """Frozen, no unknown fields, field docstrings become the descriptions in the JSON Schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
