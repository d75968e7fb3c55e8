"""From a command's options to a client."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from wabery.cli._framework import Access
from wabery.cli._settings import Settings, resolve

if TYPE_CHECKING:
    from wabery import Wabery


@contextlib.contextmanager
def connected(access: Access) -> Iterator[Wabery]:
    """A client with the key and server in force. Raises CommandError before anything is sent."""
    from wabery import Wabery  # the HTTP library takes as long to load as all the rest

    settings = settings_of(access)
    with Wabery(settings.checked_key(), settings.base_url.value) as client:
        yield client


def settings_of(access: Access) -> Settings:
    return resolve(base_url=access.base_url, profile=access.profile, api_key_file=access.api_key_file)
