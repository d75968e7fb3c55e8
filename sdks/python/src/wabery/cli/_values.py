"""What a person writes on a command line: durations, moments, JSON."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any, TypeVar

from wabery import NOT_GIVEN, NotGiven
from wabery.cli._exit import CommandError

T = TypeVar("T")

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(option: str, text: str | None, *, least: int = 1) -> int | None:
    """A duration such as 900, 30m, 24h or 7d. Raises CommandError."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,6})([smhd]?)", text, re.ASCII)
    if found is None or int(found[1]) * _UNITS[found[2]] < least:
        raise CommandError(f"{option} {text!r} is not a duration.", "It looks like 900, 30m, 24h or 7d.")
    return int(found[1]) * _UNITS[found[2]]


def moment(option: str, text: str | None) -> datetime | None:
    """A time in ISO 8601, in UTC when it says nothing else. Raises CommandError."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as cause:
        raise CommandError(
            f"{option} {text!r} is not a time.", "It looks like 2026-06-27T12:00:00Z."
        ) from cause
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def json_object(option: str, text: str | None, example: str) -> dict[str, Any] | None:
    """A JSON object. Raises CommandError."""
    if text is None:
        return None
    hint = f"It looks like '{example}', in single quotes so that the shell leaves it alone."
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise CommandError(f"{option} is not JSON: {cause}.", hint) from cause
    if not isinstance(value, dict):
        raise CommandError(f"{option} must be a JSON object.", hint)
    return value


def if_given(value: T | None) -> T | NotGiven:
    """An option that was left out, as the SDK takes it."""
    return NOT_GIVEN if value is None else value
