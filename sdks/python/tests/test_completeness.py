"""The SDK beside openapi.json: every call has a method, every parameter an argument, every field a type."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from wabery import _models as models
from wabery import resources, webhooks
from wabery._core import Call

CONTRACT = json.loads((Path(__file__).parents[3] / "openapi.json").read_text())
SCHEMAS = CONTRACT["components"]["schemas"]
GROUPS = {
    "registration_intents": resources.RegistrationIntents,
    "projects": resources.Projects,
    "api_keys": resources.APIKeys,
    "channels": resources.Channels,
    "events": resources.Events,
}
NO_METHOD = {"registration_intents.stream"}
"""`wait` tells an app the same, and goes on after an interruption."""
OTHERWISE = {"If-None-Match": "extra_headers", "Idempotency-Key": "idempotency_key"}
OBJECTS = {
    "RegistrationIntent": models.RegistrationIntent,
    "BrowserRegistrationIntent": models.RegistrationIntent,
    "MintedRegistrationIntent": models.RegistrationIntent,
    "ItemError": models.ItemError,
    "MaskedIdentity": models.Identity,
    "WhatsAppIdentity": models.WhatsAppIdentity,
    "QrCode": models.QR,
    "Project": models.Project,
    "FoundedProject": models.Project,
    "ApiKey": models.APIKey,
    "Channel": models.Channel,
    "ChannelCheck": models.ChannelCheck,
    "Finding": models.Finding,
    "Event": models.Event,
    "FailedAttempt": webhooks.Attempt,
}


def calls() -> list[Any]:
    found = []
    for path, methods in CONTRACT["paths"].items():
        for method, operation in methods.items():
            group = operation["operationId"].partition(".")[0] if "operationId" in operation else ""
            if path.startswith("/v1/") and group in GROUPS and operation["operationId"] not in NO_METHOD:
                found.append(pytest.param(method.upper(), path, operation, id=operation["operationId"]))
    return found


@pytest.mark.parametrize(("method", "path", "operation"), calls())
def test_every_call_has_a_method_with_all_its_parameters(
    method: str, path: str, operation: dict[str, Any]
) -> None:
    group, _, name = operation["operationId"].partition(".")
    wanted = {parameter["name"] for parameter in operation.get("parameters", [])} - {"id"}
    body = next(iter(operation.get("requestBody", {"content": {}})["content"].values()), {"schema": {}})
    wanted |= set(resolved(body["schema"]).get("properties", {}))

    declared = getattr(GROUPS[group], name)._declare
    taken = inspect.signature(declared).parameters
    arguments = {
        argument.name: "x"
        for argument in taken.values()
        if argument.default is argument.empty and argument.name not in ("self", "options")
    }
    call: Call[Any] = declared(None, **arguments)

    known = set(taken) | {"idempotency_key", "extra_headers"}
    missing = {field for field in wanted if OTHERWISE.get(field, argument_of(field)) not in known}
    assert missing == set()
    assert (call.method, "/v1" + call.path) == (method, path.replace("{id}", "x"))


def test_every_object_has_its_fields_typed() -> None:
    missing = {
        f"{name}.{field}"
        for name, model in OBJECTS.items()
        for field in SCHEMAS[name]["properties"]
        if field not in annotations(model)
    }

    assert missing == set()


def test_every_event_has_a_class_whose_payload_is_typed() -> None:
    missing = set()
    for name, webhook in CONTRACT["webhooks"].items():
        schema = webhook["post"]["requestBody"]["content"]["application/json"]["schema"]
        event = webhooks._EVENTS.get(name) or webhooks._FAMILIES[name.partition(".")[0]]
        payload = type(event({"event": name, "payload": {}}).payload)
        fields = set(resolved(resolved(schema)["properties"]["payload"])["properties"])
        # A person's fields are in intents' events where a message brought them about.
        optional = set(annotations(webhooks.PersonPayload)) if "registration_intent" in name else set()
        known = {field.rstrip("_") for field in annotations(payload)} | {
            field.rstrip("_") for field in optional
        }
        missing |= {f"{name}: {field}" for field in fields - known}

    assert missing == set()


def test_every_known_status_and_phase_is_known_here() -> None:
    assert set(SCHEMAS["Status"]["enum"]) <= set(re.findall(r"'(\w+)'", str(models.IntentStatus)))
    assert set(SCHEMAS["Phase"]["enum"]) <= set(re.findall(r"'(\w+)'", str(models.IntentPhase)))


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    return SCHEMAS[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def annotations(model: type) -> dict[str, Any]:
    named = {name for one in model.__mro__ for name in vars(one).get("__annotations__", {})}
    return dict.fromkeys(named | {name for name, value in vars(model).items() if isinstance(value, property)})


def argument_of(field: str) -> str:
    return field.removeprefix("x-wabery-").replace("-", "_")
