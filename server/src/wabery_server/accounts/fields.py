"""Shapes that callers' inputs share."""

from datetime import datetime
from typing import Annotated, TypeAlias

from msgspec import Meta

# `(?!\n)$`: Python's `$` also matches before a final newline, JavaScript's does not; both read this alike.
Name: TypeAlias = Annotated[
    str,
    Meta(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f-\x9f]+(?!\n)$", description="For people."),
]
Digits: TypeAlias = Annotated[str, Meta(max_length=32, pattern=r"^[0-9]+(?!\n)$")]
Secret: TypeAlias = Annotated[str, Meta(min_length=8, max_length=1024, pattern=r"^[!-~]+(?!\n)$")]
Moment: TypeAlias = Annotated[datetime, Meta(tz=True)]
