"""What other people's machines put around the server: variables, files, locales, streams, proxies."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_admin import Terminal
from world import App, Tenant

import wabery
import wabery_server
from wabery_server import metrics
from wabery_server.db import Source
from wabery_server.settings import BadSetting, Settings, not_ours

KUBERNETES = {
    "WABERY_SERVICE_HOST": "10.96.0.12",
    "WABERY_SERVICE_PORT": "8420",
    "WABERY_SERVICE_PORT_HTTP": "8420",
    "WABERY_PORT": "tcp://10.96.0.12:8420",
    "WABERY_PORT_8420_TCP": "tcp://10.96.0.12:8420",
    "WABERY_PORT_8420_TCP_PROTO": "tcp",
    "WABERY_PORT_8420_TCP_PORT": "8420",
    "WABERY_PORT_8420_TCP_ADDR": "10.96.0.12",
    "WABERY_WORKER_SERVICE_HOST": "10.96.0.13",
    "WABERY_WORKER_SERVICE_PORT": "80",
    "WABERY_WORKER_PORT": "udp://10.96.0.13:80",
    "WABERY_WORKER_PORT_80_UDP_ADDR": "10.96.0.13",
}
SECRET = "an installation secret of enough bytes"


# Settings


def test_variables_of_kubernetes_services_are_ignored() -> None:
    assert Settings.load(KUBERNETES).port == 8420
    assert not_ours(KUBERNETES) == list(KUBERNETES)
    assert not_ours({"WABERY_PORT": "8421", "WABERY_HOST": "::", "PORT": "tcp://x"}) == []
    assert Settings.load({**KUBERNETES, "WABERY_PORT": "8421"}).port == 8421


def test_white_space_around_a_value_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"\ufeff {SECRET}\r\n", "utf-8")
    (tmp_path / "wabery.toml").write_text(f'secret_key = " {SECRET}\\n"\nport = " 8421 "', "utf-8")
    written = [
        {"WABERY_SECRET_KEY": f"{SECRET}\n", "WABERY_PORT": " 8421\n"},
        {"WABERY_SECRET_KEY_FILE": f" {tmp_path / 'key'}\n", "WABERY_PORT": "8421\r\n"},
        {"WABERY_CONFIG": f"{tmp_path / 'wabery.toml'}\n"},
    ]

    loaded = [Settings.load(one) for one in written]

    assert {(one.secret_key, one.port) for one in loaded} == {(SECRET, 8421)}


def test_an_empty_value_is_not_set() -> None:
    names = [f"WABERY_{name.upper()}" for name in Settings.__dataclass_fields__]

    assert Settings.load({**dict.fromkeys(names, " "), "DATABASE_URL": ""}) == Settings()


@pytest.mark.parametrize(
    ("given", "networks"),
    [
        ("10.0.0.1/8", ["10.0.0.0/8"]),
        ("10.0.0.1", ["10.0.0.1/32"]),
        (" 10.0.0.0/8 , fd00::1/8,", ["10.0.0.0/8", "fd00::/8"]),
    ],
)
def test_an_address_in_a_network_names_the_network(given: str, networks: list[str]) -> None:
    assert [str(one) for one in Settings.load({"WABERY_TRUSTED_PROXIES": given}).trusted_proxies] == networks


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"WABERY_TRUSTED_PROXIES": "*"}, "Name the networks, such as 10.0.0.0/8"),
        ({"WABERY_TRUSTED_PROXIES": "proxy.internal"}, "a list of networks such as 10.0.0.0/8"),
        ({"WABERY_DELIVERY_ALLOW_NETWORKS": "*"}, "WABERY_DELIVERY_ALLOW_NETWORKS: * would be every address"),
        ({"WABERY_PROT": "8421"}, "Did you mean WABERY_PORT?"),
        ({"WABERY_SECRET_KEY_FILES": "x"}, "WABERY_SECRET_KEY_FILES is not a setting"),
        ({"WABERY_QUITE_ANOTHER_THING": "1"}, "WABERY_QUITE_ANOTHER_THING is not a setting of Wabery. The"),
        ({"WABERY_PORT": "tcp:8420"}, "WABERY_PORT: 'tcp:8420' is not a whole number."),
        ({"WABERY_PORT": "99999"}, "WABERY_PORT must be a port"),
        ({"WABERY_WORKERS": "0"}, "WABERY_WORKERS must be at least 1"),
        ({"WABERY_DELIVER": "maybe"}, "WABERY_DELIVER: 'maybe' is not true or false."),
        ({"WABERY_SWEEP_EVERY": "inf"}, "is not a number of seconds"),
        ({"WABERY_SWEEP_EVERY": "nan"}, "is not a number of seconds"),
        ({"WABERY_PUBLIC_URL": "https//wabery.example.com"}, "WABERY_PUBLIC_URL must be a URL"),
        ({"WABERY_PUBLIC_URL": "https://[::"}, "WABERY_PUBLIC_URL must be a URL"),
        ({"WABERY_LOG_LEVEL": "loud"}, "WABERY_LOG_LEVEL must be"),
        ({"WABERY_SECRET_KEY": "\udcff\udcfe"}, "WABERY_SECRET_KEY contains bytes that are not UTF-8"),
        ({"WABERY_SECRET_KEY": "a\0b"}, "control characters"),
        ({"WABERY_SECRET_KEY_FILE": "/nonexistent"}, "/nonexistent cannot be read: No such file"),
        ({"WABERY_SECRET_KEY_FILE": "/"}, "/ cannot be read: Is a directory"),
        ({"WABERY_SECRET_KEY_FILE": sys.executable}, "it is not UTF-8 text"),
        ({"WABERY_CONFIG": "/nonexistent"}, "WABERY_CONFIG: /nonexistent cannot be read"),
        ({"WABERY_CONFIG": sys.executable}, "it is not UTF-8 text"),
        ({"WABERY_SECRET_KEY": "x", "WABERY_SECRET_KEY_FILE": "/etc/hostname"}, "set one of them"),
    ],
)
def test_a_setting_that_cannot_be_read_is_named_in_one_sentence(environ: dict[str, str], says: str) -> None:
    with pytest.raises(BadSetting) as refused:
        Settings.load(environ)

    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "Traceback" not in str(refused.value)


@pytest.mark.parametrize("line", ['secret_key = ["s3cr3t"]', "secret_key = 53237", 'prot = "s3cr3t"'])
def test_a_secret_of_the_wrong_type_is_not_shown(tmp_path: Path, line: str) -> None:
    (tmp_path / "wabery.toml").write_text(line, "utf-8")

    with pytest.raises(BadSetting) as refused:
        Settings.load({"WABERY_CONFIG": str(tmp_path / "wabery.toml")})

    assert "s3cr3t" not in str(refused.value)
    assert "53237" not in str(refused.value)


# Files


def without_encoding(path: Path) -> list[str]:
    """Calls that would read or write text in the encoding of the locale."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        keywords = {one.arg for one in node.keywords}
        mode = next(
            (
                one.value
                for one in node.args
                if isinstance(one, ast.Constant)
                and isinstance(one.value, str)
                and set(one.value) <= set("rwabx+t")
            ),
            None,
        )
        opens = name == "fdopen" or (name == "open" and (mode is not None or isinstance(node.func, ast.Name)))
        if "encoding" not in keywords and (
            (name == "read_text" and not node.args)
            or (name == "write_text" and len(node.args) < 2)
            or (opens and "b" not in (mode or "r"))
            or (name in ("run", "Popen", "check_output") and keywords & {"text", "universal_newlines"})
        ):
            found.append(f"{path.name}:{node.lineno}")
    return found


def test_our_own_files_are_utf_8_whatever_the_locale() -> None:
    packages = [Path(one.__file__).parent for one in (wabery_server, wabery)]
    modules = [path for package in packages for path in package.rglob("*.py")]

    assert len(modules) > 100
    assert [call for path in modules for call in without_encoding(path)] == []


@pytest.mark.parametrize(
    "code",
    ["p.read_text()", "p.write_text(x)", "open(x)", "p.open('w')", "os.fdopen(h, 'w')", "run(x, text=True)"],
)
def test_a_file_in_the_encoding_of_the_locale_is_noticed(tmp_path: Path, code: str) -> None:
    (tmp_path / "module.py").write_text(code, "utf-8")

    assert len(without_encoding(tmp_path / "module.py")) == 1


@pytest.fixture
def japanese(tmp_path: Path) -> dict[str, str]:
    """A locale whose encoding is not UTF-8."""
    if shutil.which("localedef") is None:
        pytest.skip("localedef is not installed")
    made = subprocess.run(
        ["localedef", "-i", "ja_JP", "-f", "EUC-JP", tmp_path / "ja_JP.EUC-JP"],
        capture_output=True,
        check=False,
    )
    if not (tmp_path / "ja_JP.EUC-JP").exists():
        pytest.skip(f"this machine has no sources of locales: {made.stderr.decode(errors='replace')[:100]}")
    return {"LOCPATH": str(tmp_path), "LC_ALL": "ja_JP.EUC-JP"}


async def test_commands_work_in_another_locale(source: Source, japanese: dict[str, str]) -> None:
    secret = {"WABERY_SECRET_KEY": f"{SECRET} grün"}
    await Terminal(source, **secret).run("projects", "create", "--name", "Grün 😀", "--test")

    listed = await Terminal(source, **secret, **japanese).read("projects", "list")

    assert listed[0]["name"] == "Grün 😀"


# The commands


@pytest.mark.parametrize(
    ("environ", "code", "says"),
    [
        ({"WABERY_PROT": "1"}, 2, "Did you mean WABERY_PORT?"),
        ({"DATABASE_URL": "mysql://h/d"}, 2, "postgresql://"),
        ({"DATABASE_URL": "postgresql://u:s3cr3t@h/d?frobnicate=1"}, 2, "'frobnicate'"),
        ({"DATABASE_URL": "postgresql://u:s3cr3t@127.0.0.1:1/d"}, 7, "cannot be reached"),
        ({"DATABASE_URL": "", "WABERY_DATA_DIR": "/dev/null"}, 7, "/dev/null"),
        ({"WABERY_SECRET_KEY": "short"}, 7, "WABERY_SECRET_KEY needs at least 32 bytes"),
        ({"WABERY_SECRET_KEY_OLD": "s3cr3t"}, 7, "WABERY_SECRET_KEY_OLD"),
    ],
)
def test_a_mistake_of_the_environment_is_one_line(environ: dict[str, str], code: int, says: str) -> None:
    usual = {"DATABASE_URL": "postgresql://u@127.0.0.1:1/d", "WABERY_SECRET_KEY": SECRET}
    ran = run("migrate", **{**usual, **environ})

    assert ran.returncode == code, ran.stderr
    assert says in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
    assert "s3cr3t" not in ran.stderr


@pytest.mark.parametrize(("command", "target"), [("openapi", "/dev/full"), ("admin new-secret", "&-")])
def test_a_stdout_that_cannot_be_written_is_one_line(command: str, target: str) -> None:
    ran = subprocess.run(
        f"{sys.executable} -m wabery_server {command} >{target}",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ran.returncode == 1
    assert len(ran.stderr.strip().splitlines()) == 1
    assert "stdout cannot be written" in ran.stderr


def test_a_data_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    ran = run("dev", "--port", "0", "--data-dir", str(tmp_path / "file"), DATABASE_URL="")

    assert ran.returncode in (2, 7)
    assert str(tmp_path / "file") in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1


def run(*words: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WABERY_")}
    return subprocess.run(
        [sys.executable, "-m", "wabery_server", *words],
        env={**kept, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# Proxies


async def test_a_forwarded_address_from_a_proxy_that_is_not_trusted_is_noted(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    before = metrics.value("forwarded_headers_untrusted")

    plain = await app.call("GET", "/livez")
    proxied = [await app.call("GET", "/livez", headers={"X-Forwarded-For": "192.0.2.1"}) for _ in range(3)]

    assert "wabery-forwarded" not in plain.headers
    assert [one.headers["wabery-forwarded"] for one in proxied] == ["untrusted"] * 3
    assert metrics.value("forwarded_headers_untrusted") == before + 3


async def test_doctor_warns_of_a_public_url_without_trusted_proxies(source: Source, app: App) -> None:
    url = {"WABERY_PUBLIC_URL": "https://127.0.0.1:1"}
    trusted = {"WABERY_TRUSTED_PROXIES": "10.0.0.1/8"}

    without = await _findings(Terminal(source, WABERY_SECRET_KEY=_secret(app), **url))
    with_them = await _findings(Terminal(source, WABERY_SECRET_KEY=_secret(app), **url, **trusted))

    assert without["trusted proxies"]["state"] == "warning"
    assert "trusted proxies" not in with_them


async def test_doctor_names_what_it_ignores(source: Source, app: App) -> None:
    found = await _findings(Terminal(source, WABERY_SECRET_KEY=_secret(app), **KUBERNETES))

    assert "WABERY_SERVICE_HOST" in found["settings"]["found"]


def _secret(app: App) -> str:
    return app.service.keyring.current._secret.decode()


async def _findings(terminal: Terminal) -> dict[str, dict[str, str]]:
    ran = await terminal.run("--json", command="doctor")
    return {one["name"]: one for one in json.loads(ran.out)["checks"]}


# Wrong types


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"customer_reference": 123}, "customer_reference must be a string, not a whole number."),
        ({"customer_reference": None}, "customer_reference must be a string, not null."),
        ({"customer_reference": ["a"]}, "customer_reference must be a string, not an array."),
        ({"customer_reference": "a", "metadata": "x"}, "metadata must be"),
        ({"customer_reference": "a", "expires_in": "60"}, "expires_in must be"),
        ({"customer_reference": "a", "locale": 1}, "locale must be a string or null, not a whole number."),
        ({"customer_reference": "a", "include": {"qr": 1}}, "include must be an array, not an object."),
        (["customer_reference"], "The body must be an object, not an array."),
    ],
)
async def test_a_wrong_type_names_the_expected_one(app: App, acme: Tenant, body: object, says: str) -> None:
    reply = await app.call("POST", "/v1/registration-intents", acme.secret_key, json=body)

    assert reply.status == 400
    assert says in reply.body["message"]
    assert "`" not in reply.body["message"]
