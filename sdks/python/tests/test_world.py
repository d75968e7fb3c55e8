"""What other people's machines do to a command: proxies, certificates, streams, files. One sentence, and a code of its kind."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_server import SmallServer

from wabery import AsyncWabery, UsageError, Wabery
from wabery.cli._exit import CommandError, Exit
from wabery.cli._world import explained

ELSEWHERE = "https://wabery.invalid/v1"
PASSWORD = "pr0xy-p4ss"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in os.environ if one.upper().endswith("_PROXY") or one.startswith("SSL_CERT_")]:
        monkeypatch.delenv(name)


def wabery(server: SmallServer, line: str, **environ: str) -> "subprocess.CompletedProcess[bytes]":
    """Runs a shell's line in which `wabery` is our command."""
    return subprocess.run(
        line.replace("wabery", f"{sys.executable} -m wabery.cli", 1),
        shell=True,
        env={
            **os.environ,
            "WABERY_API_KEY": server.secret_key,
            "WABERY_BASE_URL": server.base_url,
            **environ,
        },
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"ALL_PROXY": f"socks5://u:{PASSWORD}@127.0.0.1:9"}, "ALL_PROXY names a SOCKS proxy"),
        ({"all_proxy": f"socks5h://u:{PASSWORD}@127.0.0.1:9"}, "all_proxy names a SOCKS proxy"),
        ({"HTTPS_PROXY": f"ftp://u:{PASSWORD}@proxy"}, "HTTPS_PROXY is not a proxy"),
        ({"ALL_PROXY": f"http://u:{PASSWORD}@proxy:port"}, "ALL_PROXY is not a proxy"),
        ({"SSL_CERT_FILE": "/nonexistent"}, "SSL_CERT_FILE cannot be read as certificates"),
        ({"SSL_CERT_FILE": __file__}, "SSL_CERT_FILE cannot be read as certificates"),
    ],
)
@pytest.mark.parametrize("kind", [Wabery, AsyncWabery])
def test_a_client_names_the_variable_that_the_http_library_rejects(
    monkeypatch: pytest.MonkeyPatch,
    server: SmallServer,
    environ: dict[str, str],
    names: str,
    kind: type[Wabery],
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(UsageError, match=names) as refused:
        kind(server.secret_key, ELSEWHERE)

    assert PASSWORD not in f"{refused.value} {refused.value.hint}"
    local = kind(server.secret_key, server.base_url)  # a server on this machine needs none of these
    local.close() if isinstance(local, Wabery) else asyncio.run(local.close())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"api_key": b"wab_test_x"}, "api_key must be str, not bytes"),
        ({"api_key": bytearray(b"wab_test_x")}, "api_key must be str, not bytearray"),
        ({"api_key": ["wab_test_x"]}, "api_key must be str, not list"),
        ({"base_url": b"http://127.0.0.1/v1"}, "base_url must be str, not bytes"),
        ({"base_url": Path("/v1")}, "base_url must be str, not PosixPath"),
        ({"timeout": "30"}, "timeout must be int or float, not str"),
        ({"timeout": True}, "timeout must be int or float, not bool"),
        ({"max_retries": "2"}, "max_retries must be int, not str"),
    ],
)
@pytest.mark.parametrize("kind", [Wabery, AsyncWabery])
def test_an_argument_of_another_type_is_named(
    server: SmallServer, given: dict[str, Any], says: str, kind: type[Wabery]
) -> None:
    with pytest.raises(UsageError, match=says):
        kind(**{"api_key": server.secret_key, **given})


def test_a_server_that_is_not_reached_through_a_proxy_names_the_proxy(server: SmallServer) -> None:
    ran = wabery(
        server,
        "wabery projects list",
        WABERY_BASE_URL=ELSEWHERE,
        HTTPS_PROXY=f"http://u:{PASSWORD}@127.0.0.1:9",
    )

    assert ran.returncode == Exit.SERVER
    assert b"HTTPS_PROXY" in ran.stderr
    assert PASSWORD.encode() not in ran.stderr


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (
            "wabery registration-intents list > /dev/full",
            Exit.UNEXPECTED,
            b"stdout cannot be written: No space left",
        ),
        ("wabery registration-intents list >&-", Exit.UNEXPECTED, b"stdout cannot be written"),
        ("wabery registration-intents list <&- >/dev/null", Exit.OK, b""),
        ("wabery projects nonsense 2>/dev/full", Exit.USAGE, b""),
        ("wabery projects nonsense 2>&-", Exit.USAGE, b""),
        ("wabery registration-intents create --customer-reference $(printf '\\377')", Exit.USAGE, b"error: "),
        ("wabery projects list --api-key-file /nonexistent/key", Exit.USAGE, b"/nonexistent/key"),
        ("XDG_CONFIG_HOME=/dev/null wabery projects list", Exit.USAGE, b"/dev/null/wabery/profiles.json"),
        ("COLUMNS=abc wabery --help >/dev/null", Exit.OK, b""),
    ],
)
def test_what_the_shell_does_to_a_command_is_no_bug(
    server: SmallServer, line: str, code: int, says: bytes
) -> None:
    server.intents["reg_1"] = {"id": "reg_1", "status": "PENDING", "customer_reference": "a"}

    ran = wabery(server, line)

    assert b"bug" not in ran.stderr
    assert b"Traceback" not in ran.stderr
    assert b"Exception ignored" not in ran.stderr
    assert says in ran.stderr
    assert ran.returncode == code, ran.stderr


@pytest.mark.parametrize(
    ("failure", "code", "says"),
    [
        (
            PermissionError(13, "Permission denied", "/a/b"),
            Exit.USAGE,
            "/a/b cannot be used: Permission denied.",
        ),
        (
            OSError(30, "Read-only file system", b"/a"),
            Exit.USAGE,
            "/a cannot be used: Read-only file system.",
        ),
        (
            OSError(28, "No space left on device", "/a"),
            Exit.UNEXPECTED,
            "/a cannot be used: No space left on device.",
        ),
        (
            OSError(28, "No space left on device"),
            Exit.UNEXPECTED,
            "stdout cannot be written: No space left on device.",
        ),
        (OSError(24, "Too many open files"), Exit.UNEXPECTED, "The system refused: Too many open files."),
        (RuntimeError("Could not determine home directory."), Exit.USAGE, "There is no home directory."),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), Exit.USAGE, "not UTF-8"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), Exit.USAGE, "not UTF-8"),
    ],
)
def test_failures_of_the_world_are_explained(failure: Exception, code: Exit, says: str) -> None:
    found = explained(failure)

    assert isinstance(found, CommandError)
    assert (found.code, says in found.message) == (code, True)


@pytest.mark.parametrize(
    "failure", [ValueError("x"), KeyError("x"), RuntimeError("x"), OSError("x"), TypeError("x")]
)
def test_a_bug_of_ours_is_not_explained_away(failure: Exception) -> None:
    assert explained(failure) is None


@pytest.mark.parametrize("encoding", ["ascii", "euc-jp", "utf-8"])
def test_a_pipe_gets_utf_8_whatever_the_locale(server: SmallServer, encoding: str) -> None:
    server.intents["reg_1"] = {"id": "reg_1", "status": "PENDING", "customer_reference": "Grün 😀"}

    ran = wabery(server, "wabery registration-intents list --jsonl", PYTHONIOENCODING=encoding)

    assert "Grün 😀".encode() in ran.stdout, ran.stderr


def test_a_profile_in_a_folder_that_cannot_be_written_is_named(server: SmallServer, tmp_path: Path) -> None:
    (tmp_path / "wabery").touch()

    ran = wabery(server, f"echo {server.secret_key} | wabery login", XDG_CONFIG_HOME=str(tmp_path))

    assert ran.returncode == Exit.USAGE
    assert str(tmp_path / "wabery").encode() in ran.stderr
    assert b"bug" not in ran.stderr
