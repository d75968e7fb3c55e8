"""The contract against the running product: schemathesis plays every call of openapi.json, from outside.

It makes requests that fit the document and requests that do not, alone and in sequences, and compares what comes back:
no server error, no status, header, media type or body that the document does not have; what fits is accepted, what does
not is refused, and no call works without its key.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from wabery import Wabery

HERE = Path(__file__).parent
CONTRACT = json.loads((HERE.parent / "openapi.json").read_text())
CONFIG = (HERE / "schemathesis.toml").read_text()
ROOMY = {
    f"WABERY_{limit}": "1000000"
    for limit in (
        "SECRET_KEY_PER_SECOND",
        "PUBLISHABLE_KEY_PER_MINUTE",
        "PUBLISHABLE_IP_PER_MINUTE",
        "REFERENCE_PER_HOUR",
        "POLLS_PER_MINUTE",
        "CHANNEL_CHECKS_PER_MINUTE",
    )
} | {"WABERY_GRAPH_URL": "http://127.0.0.1:9"}
"""No limit hides the answer behind it, and nobody asks Meta."""


@dataclass
class Server:
    base_url: str
    api_key: str
    publishable_key: str
    left_alone: list[str]


@pytest.fixture
def server() -> Iterator[Server]:
    """`wabery dev` of its own: schemathesis leaves nothing as it was."""
    folder = Path(tempfile.mkdtemp(prefix="wabery-"))
    words = ["dev", "--port", "0", "--json", "--data-dir", str(folder / "data")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "wabery_server", *words],
            env=_environ() | ROOMY,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "log").read_text()
        told = json.loads(line)
        keys = dict(line.split("=", 1) for line in Path(told["env_file"]).read_text().splitlines())
        with Wabery(keys["WABERY_API_KEY"], told["base_url"]) as client:
            left_alone = [one.id for one in (*client.api_keys.list(), *client.channels.list())]
        yield Server(told["base_url"], keys["WABERY_API_KEY"], keys["WABERY_PUBLISHABLE_KEY"], left_alone)
    finally:
        process.terminate()
        process.communicate(timeout=20)
        shutil.rmtree(folder)


@pytest.mark.slow
def test_every_call_is_as_the_contract_says(server: Server, tmp_path: Path) -> None:
    key = f'secretKey = {{ bearer = "{server.api_key}" }}'

    played = play(server, tmp_path, key, operations_for("secretKey"))

    assert played.returncode == 0, played.stdout


@pytest.mark.slow
def test_every_call_of_a_browser_is_as_the_contract_says(server: Server, tmp_path: Path) -> None:
    key = f'publishableKey = {{ api_key = "{server.publishable_key}" }}'

    played = play(server, tmp_path, key, operations_for("publishableKey"))

    assert played.returncode == 0, played.stdout


def play(server: Server, folder: Path, key: str, operations: list[str]) -> "subprocess.CompletedProcess[str]":
    config = folder / "schemathesis.toml"
    config.write_text(f"{CONFIG}\n[auth.openapi]\n{key}\n")
    return subprocess.run(
        [
            *(Path(sys.executable).parent / "schemathesis", "--config-file", config, "run", "--no-color"),
            *(word for operation in operations for word in ("--include-operation-id", operation)),
            f"{server.base_url}/openapi.json",
        ],
        env=_environ()
        | {
            "SCHEMATHESIS_HOOKS": str(HERE / "schemathesis_hooks.py"),
            "LEFT_ALONE": ",".join(server.left_alone),
        },
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )


def operations_for(scheme: str) -> list[str]:
    """The calls that are open to a kind of key, or to anybody."""
    return [
        operation["operationId"]
        for path in CONTRACT["paths"].values()
        for operation in path.values()
        if not operation["security"] or any(scheme in choice for choice in operation["security"])
    ]


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("WABERY_")}
