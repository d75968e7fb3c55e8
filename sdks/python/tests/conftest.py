"""Fixtures: the small server, and one client that is sync in one run of a test and async in the next."""

import asyncio
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside the tests

from small_server import SmallServer, running

from wabery import AsyncWabery, Wabery
from wabery._views import AsyncPage, AsyncPages
from wabery.pytest_plugin import wabery_server

__all__ = ["wabery_server"]  # a fixture by being here, also where the package's entry point is not installed

CONFORMANCE = Path(__file__).parents[2] / "conformance"


class Blocking:
    """An AsyncWabery used as if it blocked, so that one test speaks for both clients."""

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target, self._loop = target, loop

    def _run(self, awaitable: Any) -> Any:
        async def awaited() -> Any:
            return await awaitable

        return self._wrap(asyncio.run_coroutine_threadsafe(awaited(), self._loop).result(20))

    def _wrap(self, value: Any) -> Any:
        return (
            Blocking(value, self._loop) if isinstance(value, AsyncPage | AsyncPages | AsyncWabery) else value
        )

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if type(value).__module__ == "wabery.resources":
            return Blocking(value, self._loop)
        if not callable(value) or isinstance(value, type):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            result = value(*args, **kwargs)
            if isinstance(result, AsyncPages):
                return Blocking(result, self._loop)
            return self._run(result) if inspect.isawaitable(result) else self._wrap(result)

        return call

    def __iter__(self) -> Iterator[Any]:
        async def everything() -> list[Any]:
            return [item async for item in self._target]

        return iter(asyncio.run_coroutine_threadsafe(everything(), self._loop).result(20))

    @property
    def first_page(self) -> Any:
        return self._run(self._target)


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, URL or configuration of the person who runs the tests."""
    for name in ("API_KEY", "PUBLISHABLE_KEY", "BASE_URL", "WEBHOOK_SECRET", "LOG", "PROFILE"):
        monkeypatch.delenv(f"WABERY_{name}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def server() -> Iterator[SmallServer]:
    with running() as server:
        yield server


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(params=["sync", "async"])
def make_client(request: pytest.FixtureRequest, server: SmallServer) -> Iterator[Callable[..., Any]]:
    """Make clients of the small server, of either kind, closed at the end."""
    made: list[Any] = []

    def make(api_key: str = server.secret_key, **options: Any) -> Any:
        arguments = {"api_key": api_key, "base_url": server.base_url, **options}
        if request.param == "sync":
            client: Any = Wabery(**arguments)
        else:
            loop = request.getfixturevalue("loop")
            client = Blocking(AsyncWabery(**arguments), loop)
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(make_client: Callable[..., Any]) -> Any:
    """A client with the secret key."""
    return make_client()


@pytest.fixture
def browser(make_client: Callable[..., Any], server: SmallServer) -> Any:
    """A client with the publishable key."""
    return make_client(server.publishable_key)
