"""JSON Schemas of our types (msgspec makes them), with the explanations that stand in their source."""

import enum
import re
from collections.abc import Iterable, Mapping
from inspect import getdoc
from types import UnionType
from typing import TypeAlias, get_args, get_type_hints, is_typeddict

import msgspec

from wabery_server.accounts import (
    ApiKey,
    Channel,
    ChannelChanges,
    KeyChanges,
    KeyDraft,
    Project,
    ProjectChanges,
    PublicChannel,
    PublicKey,
    PublicProject,
)
from wabery_server.api.docstrings import explanations
from wabery_server.api.events import EventObject
from wabery_server.api.intent_types import Create

Json: TypeAlias = dict[str, object]

REFERENCE = "#/components/schemas/{name}"

_NAMES: Mapping[type, str] = {
    Create: "RegistrationIntentDraft",
    EventObject: "Event",
    PublicChannel: "Channel",
    PublicKey: "ApiKey",
    PublicProject: "Project",
}
"""What the contract calls a class of ours, where it does not use the class's own name."""

_ROWS: Mapping[type, type] = {
    PublicChannel: Channel,
    ChannelChanges: Channel,
    PublicKey: ApiKey,
    KeyDraft: ApiKey,
    KeyChanges: ApiKey,
    PublicProject: Project,
    ProjectChanges: Project,
}
"""Whose fields explain those of another class that has the same ones."""


_CHOICES: Mapping[type, list[Json]] = {
    KeyDraft: [
        {
            "description": "A secret key has scopes and no origins.",
            "properties": {
                "kind": {"enum": ["secret"]},
                "scopes": {"minItems": 1},
                "allowed_origins": {"maxItems": 0},
            },
            "required": ["scopes"],
        },
        {
            "description": "A publishable key may have origins, and has no scopes.",
            "properties": {"kind": {"enum": ["publishable"]}, "scopes": {"maxItems": 0}},
            "required": ["kind"],
        },
    ],
}
"""What fields ask of one another."""


class Schemas:
    """The schemas of these types, and of whatever they are made of."""

    def __init__(self, kinds: Iterable[object]) -> None:
        ordered = sorted(kinds, key=str)
        schemas, components = msgspec.json.schema_components(
            ordered, schema_hook=lambda _kind: {"description": "Any JSON value."}, ref_template=REFERENCE
        )
        classes: dict[str, type] = {}
        for kind in ordered:
            _collect(kind, classes)
        names = {name: _NAMES.get(kind, name) for name, kind in classes.items()}
        self._schemas = {kind: _renamed(schema, names) for kind, schema in zip(ordered, schemas, strict=True)}
        explained = {
            names[name]: _explained(classes[name], _renamed(schema, names))
            for name, schema in components.items()
        }
        self.components: Json = {name: explained[name] for name in sorted(explained)}
        """By the contract's name."""

    def schema(self, kind: object) -> Json:
        """The schema of one of the types; of a class, a reference to its component."""
        return self._schemas[kind]


def members(kind: object) -> tuple[object, ...]:
    """The types of `A | B`, or the one type there is. msgspec takes no union of two objects."""
    return get_args(kind) if isinstance(kind, UnionType) else (kind,)


def _collect(kind: object, found: dict[str, type]) -> None:
    """Every class with a component of its own that `kind` reaches, by its own name."""
    for part in get_args(kind):
        _collect(part, found)
    if not isinstance(kind, type) or kind.__name__ in found:
        return
    if issubclass(kind, msgspec.Struct | enum.Enum) or is_typeddict(kind):
        found[kind.__name__] = kind
        for hint in get_type_hints(kind).values():
            _collect(hint, found)


def _renamed(schema: Mapping[str, object], names: Mapping[str, str]) -> Json:
    """With the contract's names; without titles, which only repeat them."""
    made: Json = {}
    for key, value in schema.items():
        if isinstance(value, dict):
            made[key] = _renamed(value, names)
        elif isinstance(value, list):
            made[key] = [_renamed(item, names) if isinstance(item, dict) else item for item in value]
        elif key == "$ref":
            made[key] = REFERENCE.format(name=names[str(value).rpartition("/")[2]])
        elif key != "title":
            made[key] = value
    return made


def _explained(kind: type, schema: Json) -> Json:
    below = {**explanations(_ROWS[kind]), **explanations(kind)} if kind in _ROWS else explanations(kind)
    if issubclass(kind, enum.Enum):
        lines = [getdoc(kind) or "", ""]
        for member in kind:
            about = below.get(member.name) or getattr(member, "message", "")
            lines.append(f"- `{member.value}`: {about}".replace("\n", " "))
        return {"type": "string", "description": "\n".join(lines), "enum": [member.value for member in kind]}
    properties = schema["properties"]
    assert isinstance(properties, dict)
    described = {name: _property(name, properties[name], below.get(name)) for name in get_type_hints(kind)}
    choices = {"anyOf": _CHOICES[kind]} if kind in _CHOICES else {}
    return {**schema, "properties": described, **choices}


def _property(name: str, schema: Json, about: str | None) -> Json:
    if name.endswith("_at"):
        schema = _as_time(schema)
    if about is None:
        return schema
    about = re.sub(r"\bNone\b", "null", about)
    return {**schema, "description": about[0].upper() + about[1:]}


def _as_time(schema: Json) -> Json:
    """A name in `…_at` is a time; in answers it is written as text by `clock.iso`."""
    if schema.get("type") == "string":
        return {**schema, "format": "date-time"}
    choices = schema.get("anyOf", [])
    assert isinstance(choices, list)
    return {
        **schema,
        "anyOf": [_as_time(choice) if "string" in choice.values() else choice for choice in choices],
    }
