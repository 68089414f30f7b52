"""Base class and field types of the sections of a spec, their issues, and the inspection of their fields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from inspect import isabstract
from operator import or_
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, Strict, Tag
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.utils.registry import Registry
from ipcnn_ray.utils.text import did_you_mean


@dataclass(frozen=True)
class ErrorMessage:
    """Replaces pydantic's message for a wrong value."""

    text: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.custom_error_schema(
            handler(source), custom_error_type="error_message", custom_error_message=self.text
        )


@dataclass(frozen=True)
class NameIn:
    """Restricts a field to the names in a registry."""

    registry: Registry
    besides: tuple[str, ...] = ()
    """Further names, listed first."""
    without: tuple[str, ...] = ()
    """Names that are not allowed."""
    why_without: str = ""
    """What the message says of such a name."""

    def names(self) -> list[str]:
        return [*self.besides, *(name for name in self.registry.names() if name not in (*self.besides, *self.without))]

    def _check(self, value: object) -> str:
        names = self.names()
        if isinstance(value, str) and value in names:
            return value
        if value in self.without and self.why_without:
            raise PydanticCustomError("error_message", "{text}", {"text": self.why_without})
        text = f"must be one of {', '.join(names)}.{did_you_mean(value, names)}".removesuffix(".")
        raise PydanticCustomError("error_message", "{text}", {"text": text})

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"enum": self.names(), "type": "string"}


@dataclass(frozen=True)
class OmitDefaultFromDigest:
    """Marks a field added after the first runs; specs without it keep their digest."""


# Numbers and flags are strict: YAML has types, and `epochs: "10"` is a mistake.
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
"""A name that can be part of a path, a URL and a run id."""
FieldPath = Annotated[
    str,
    Field(pattern=r"^[a-z_]+(\.[a-z_]+)*$"),
    ErrorMessage("must be the dotted path of a field, such as template.beta"),
]
Scalar = Annotated[
    Flag | Integer | Number | Annotated[str, Strict()],
    ErrorMessage("must be one value: a number, text, or true or false"),
]


Loc = tuple[int | str, ...]
"""Location of a value: keys of mappings and indices of lists, from the top of the spec."""


def dotted(loc: Loc) -> str:
    return ".".join(map(str, loc))


@dataclass(frozen=True)
class FieldIssue:
    """An issue with a field of a spec, before its line in the file is known."""

    loc: Loc
    what: str
    """The fact with its offending value, such as `train.epochs = -1`."""
    advice: str
    """What is allowed, and the ways out."""
    follows_from: tuple[str, ...] = ()
    """Dotted paths of other fields. If one of them is wrong itself, this issue is left out."""


def value_issue(loc: Loc, value: object, advice: str, *follows_from: str) -> FieldIssue:
    """Return the issue of a value that is not allowed."""
    return FieldIssue(loc, f"{dotted(loc)} = {as_yaml(value)}", advice, follows_from)


def as_yaml(value: object, limit: int = 60) -> str:
    """Return a value as a person writes it in YAML, shortened to `limit` characters."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{key}: {as_yaml(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(map(as_yaml, value)) + "]"
    elif isinstance(value, Section):
        text = as_yaml(value.model_dump(mode="json"))
    else:
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 4] + " ..."


class Section(BaseModel):
    """A frozen model without unknown fields. The docstring of a field is its description in the JSON Schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    location: ClassVar[Loc] = ()
    """Location of the section in a spec."""

    def issue(self, field: str, advice: str, *follows_from: str) -> FieldIssue:
        """Return the issue of one field.

        advice: what is allowed; it continues a sentence that begins with the field's value. follows_from: paths of
        other fields, those of this section without its name. If one of them is wrong itself, the issue is left out.
        """
        paths = [path if "." in path else dotted((*self.location, path)) for path in follows_from]
        return value_issue((*self.location, field), getattr(self, field), advice, *paths)


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
        """Return the sections by name. Raises IpcnnError if an entry point is not a section of this kind."""
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
        if isabstract(section):
            missing = ", ".join(sorted(section.__abstractmethods__))
            fact = f"{entry} is {section.__name__}, which lacks {missing}"
            raise IpcnnError(f"{fact}\nDefine what its base class asks for.")
        return section

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        union = reduce(or_, self.sections().values())
        return handler.generate_schema(Annotated[union, Field(discriminator=self.field)])


def annotation_of(field: FieldInfo) -> Any:
    """Return the annotation of a field; pydantic keeps its registry apart from it."""
    kinds = [item for item in field.metadata if isinstance(item, RegisteredKinds)]
    return Annotated[field.annotation, kinds[0]] if kinds else field.annotation


def unwrapped(annotation: Any) -> Any:
    """Return the annotation without its constraints and without `| None`."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        others = [option for option in get_args(annotation) if option is not NoneType]
        if len(others) == 1:
            return unwrapped(others[0])
    return annotation


def kind_field(section: type[Section]) -> tuple[str, str] | None:
    """Return name and value of the field that names the kind of a section, such as ('shape', 'uniform')."""
    for name, field in section.model_fields.items():
        if field.is_required() and get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
            return name, get_args(field.annotation)[0]
    return None


def options(annotation: Any) -> dict[str, Any]:
    """Return the sections that a value can be and the options of a tagged union, by the tag in pydantic's error
    locations; empty for other values."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        for item in metadata:
            if isinstance(item, RegisteredKinds):
                return dict(item.sections())
            if isinstance(item, Tag):
                return {item.tag: inner}
        return options(inner)
    if get_origin(annotation) in (Union, UnionType):
        return {tag: option for inner in get_args(annotation) for tag, option in options(inner).items()}
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, Section):
        kind = kind_field(annotation)
        return {kind[1] if kind else "": annotation}
    return {}


def sections(annotation: Any) -> dict[str, type[Section]]:
    """Return the sections that a value can be, by tag; empty for other values."""
    choices = options(annotation).items()
    return {tag: option for tag, option in choices if isinstance(option, type) and issubclass(option, Section)}


def child_annotation(annotation: Any, key: int | str) -> Any:
    """Return the annotation of a field, a list entry or a mapping's value; None if there is no such child."""
    owners = sections(annotation).values()
    if owners:
        fields = [owner.model_fields[str(key)] for owner in owners if key in owner.model_fields]
        return annotation_of(fields[0]) if fields else None
    container = unwrapped(annotation)
    if get_origin(container) is dict:
        return get_args(container)[1]
    return get_args(container)[0] if get_origin(container) is tuple else None


def locate(root: type[Section], loc: Loc) -> tuple[Loc, Any]:
    """Return pydantic's location without the tags of unions, and the annotation of the parent of its last key."""
    annotation: Any = root
    parent: Any = root
    plain: list[int | str] = []
    for key in loc:
        tagged = options(annotation)
        if len(tagged) > 1 and key in tagged:
            annotation = tagged[str(key)]
        elif key != "[key]":
            plain.append(key)
            parent, annotation = annotation, child_annotation(annotation, key)
    return tuple(plain), parent


def annotations_at(root: type[Section], path: str) -> list[Any]:
    """Return the annotations of the field at a dotted path, one for each kind of section that has it."""
    annotations: list[Any] = [root]
    for name in path.split("."):
        owners = [section for annotation in annotations for section in sections(annotation).values()]
        annotations = [annotation_of(owner.model_fields[name]) for owner in owners if name in owner.model_fields]
    return annotations


def field_paths(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Yield the dotted paths of all fields below a section, sections included, once for each kind that has them."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        for option in sections(annotation_of(field)).values():
            yield from field_paths(option, f"{prefix}{name}.")
