"""What every section of a spec is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import or_
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, Strict, Tag
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.utils.registry import Registry


@dataclass(frozen=True)
class ErrorMessage:
    """What a value must be, in words; a person reads this in place of pydantic's message."""

    words: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.custom_error_schema(
            handler(source), custom_error_type="says", custom_error_message=self.words
        )


@dataclass(frozen=True)
class OmitDefaultFromDigest:
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
    ErrorMessage("must be a name of a-z, 0-9 and _, at most 40 characters, not beginning with _"),
]
"""A name that is usable in a path, a URL and a run id."""
FieldPath = Annotated[
    str,
    Field(pattern=r"^[a-z_]+(\.[a-z_]+)*$"),
    ErrorMessage("must be the dotted path of a field, such as template.beta"),
]
Scalar = Annotated[
    Flag | Integer | Number | Annotated[str, Strict()],
    ErrorMessage("must be one value: a number, text, or true or false"),
]


class Section(BaseModel):
    """Frozen, no unknown fields, field docstrings become the descriptions in the JSON Schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True)
class RegisteredKinds:
    """Makes a field a union of the sections of a registry, told apart by a `Literal` field.

    The registry is read when the model that has the field is created, not when it is declared, so that a package
    that adds a section can import the module of its base class.
    """

    field: str
    """Name of the field that holds the section's name in the registry, such as ``shape``."""
    registry: Registry
    base: type[Section]
    """Class that the sections of other packages must inherit from."""

    def sections(self) -> dict[str, type[Section]]:
        """Return the sections by name.

        Raises:
            IpcnnError: If an entry point is not a section of this kind.
        """
        return {name: self._checked(name, self.registry.load(name)) for name in self.registry.names()}

    def _checked(self, name: str, section: Any) -> type[Section]:
        provider = self.registry.provider(name)
        if not provider:
            return section  # type: ignore[no-any-return]
        entry = f"the entry point {self.registry.group} {name!r} of {provider}"
        if not isinstance(section, type) or not issubclass(section, self.base):
            base = f"{self.base.__module__}.{self.base.__name__}"
            raise IpcnnError(f"{entry} is {section!r}\nIt must be a subclass of {base}.")
        if kind_field(section) != (self.field, name):
            declared = getattr(section.model_fields.get(self.field), "annotation", None)
            fact = f"{entry} is {section.__name__}, whose field {self.field} is {declared}"
            raise IpcnnError(f"{fact}\nDeclare {self.field}: Literal[{name!r}], without a default.")
        return section

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        union = reduce(or_, self.sections().values())
        return handler.generate_schema(Annotated[union, Field(discriminator=self.field)])


Loc = tuple[int | str, ...]
"""Where a value is: keys of mappings and indices of lists, from the top of the spec."""


def dotted(loc: Loc) -> str:
    return ".".join(str(part) for part in loc)


def annotation_of(field: FieldInfo) -> Any:
    """Return the annotation of a field; pydantic keeps its registry apart from it."""
    kinds = [item for item in field.metadata if isinstance(item, RegisteredKinds)]
    return Annotated[field.annotation, kinds[0]] if kinds else field.annotation


def bare(annotation: Any) -> Any:
    """The annotation without its constraints and without `| None`."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        rest = [part for part in get_args(annotation) if part is not NoneType]
        if len(rest) == 1:
            return bare(rest[0])
    return annotation


def kind_field(section: type[Section]) -> tuple[str, str] | None:
    """Name and value of the field that tells this section from its alternatives, such as ('shape', 'uniform')."""
    for name, field in section.model_fields.items():
        if field.is_required() and get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
            return name, get_args(field.annotation)[0]
    return None


def sections(annotation: Any) -> dict[str, type[Section]]:
    """The sections that a value may be, by pydantic's tag in error locations; empty for anything else."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        for item in metadata:
            if isinstance(item, RegisteredKinds):
                return item.sections()
        found = sections(inner)
        tags = [item.tag for item in metadata if isinstance(item, Tag)]
        return {tag: section for tag in tags for section in found.values()} or found
    if get_origin(annotation) in (Union, UnionType):
        return {tag: section for part in get_args(annotation) for tag, section in sections(part).items()}
    if isinstance(annotation, type) and issubclass(annotation, Section):
        kind = kind_field(annotation)
        return {kind[1] if kind else "": annotation}
    return {}


def alternatives(annotation: Any) -> dict[str, Any]:
    """The annotations of a union whose parts are told apart by tags and are no sections, by tag."""
    inner = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if get_origin(inner) not in (Union, UnionType):
        return {}
    parts = [get_args(part) for part in get_args(inner) if get_origin(part) is Annotated]
    return {mark.tag: part[0] for part in parts for mark in part[1:] if isinstance(mark, Tag)}


def inside(annotation: Any, part: int | str) -> Any:
    """Annotation of one field, entry or value of a container; None where there is nothing."""
    options = sections(annotation)
    if options:
        fields = [option.model_fields[part] for option in options.values() if part in option.model_fields]
        return annotation_of(fields[0]) if fields else None
    container = bare(annotation)
    arguments = get_args(container)
    if get_origin(container) is dict:
        return arguments[1]
    if get_origin(container) is tuple:
        return arguments[0]
    return None


def locate(root: type[Section], loc: Loc) -> tuple[Loc, Any]:
    """Pydantic's location without the tags of unions, and the annotation of what holds its last part."""
    annotation: Any = root
    holder: Any = root
    plain: list[int | str] = []
    for part in loc:
        options = sections(annotation)
        if len(options) > 1 and part in options:
            annotation = options[str(part)]
        elif not options and part in alternatives(annotation):
            annotation = alternatives(annotation)[str(part)]
        elif part != "[key]":
            plain.append(part)
            holder, annotation = annotation, inside(annotation, part)
    return tuple(plain), holder


def at(root: type[Section], path: str) -> list[Any]:
    """Annotations of the field with this dotted path, one for each kind of section that has it."""
    found: list[Any] = [root]
    for name in path.split("."):
        owners = [section for annotation in found for section in sections(annotation).values()]
        found = [annotation_of(owner.model_fields[name]) for owner in owners if name in owner.model_fields]
    return found


def walk(section: type[Section], above: str = "") -> Iterator[str]:
    """Dotted paths of all fields below a section, sections included, each once for each kind that has it."""
    for name, field in section.model_fields.items():
        path = f"{above}{name}"
        yield path
        for option in sections(annotation_of(field)).values():
            yield from walk(option, f"{path}.")
