"""`wabery dev`: the product on one machine, without account, Docker, WhatsApp number or public URL."""

import contextlib
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from socket import socket
from urllib.parse import urlsplit

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from wabery_server import __version__, accounts, errors, logs, main
from wabery_server.accounts import DevAccount
from wabery_server.api.app import refusing
from wabery_server.api.service import Service
from wabery_server.cli import load, say
from wabery_server.cli import run as run_loop
from wabery_server.clock import MovableClock
from wabery_server.db import Tx
from wabery_server.db.embedded import Folder, UntrustedFolder
from wabery_server.phone import RECEIVER_PATH, Channel, DevPhone, routes
from wabery_server.phone.receiver import Delivery

_LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
_ENV = "dev.env"


def run(*, port: int | None, data_dir: Path, as_json: bool) -> None:
    """Serves until interrupted. Raises main.CannotStart."""
    settings = load()
    logs.configure("warning" if settings.log_level == "info" else settings.log_level)
    prepare_folder(data_dir)
    with main.listening("127.0.0.1", settings.port if port is None else port) as listener:
        settings = replace(
            settings,
            database_url=None,
            data_dir=data_dir,
            host="127.0.0.1",
            port=listener.getsockname()[1],
            deliver=True,
            workers=1,
            delivery_allow_networks=(*settings.delivery_allow_networks, *_LOOPBACK),
            delivery_allow_ports=None,
        )
        with main.ground(settings) as ground:
            run_loop(_Session(ground, data_dir, as_json=as_json).serve(listener))


def prepare_folder(data_dir: Path) -> None:
    """Creates the data folder, and keeps it out of the commits of a project that it lies in. Raises main.CannotStart."""
    with main.data_folder(data_dir) as folder:
        _write(folder, ".gitignore", "*\n")


class _Session:
    """One run of `wabery dev`."""

    def __init__(self, ground: main.Ground, data_dir: Path, *, as_json: bool) -> None:
        self._ground = ground
        self._env_file = data_dir / _ENV
        self._data_dir = data_dir
        self._as_json = as_json
        self._base_url = f"http://127.0.0.1:{ground.settings.port}"
        self._clock = MovableClock()

    async def serve(self, listener: socket) -> None:
        async with main.opened(self._ground, clock=self._clock) as installation:

            async def prepare(tx: Tx) -> tuple[DevAccount, accounts.Credentials | None]:
                account = await accounts.bootstrap_dev(
                    tx,
                    keyring=installation.keyring,
                    webhook_url=self._base_url + RECEIVER_PATH,
                    secret_key=_last_key(self._data_dir),
                    at=self._clock.now(),
                )
                if account.channel is None:
                    return account, None
                sealed = account.channel
                return account, await accounts.unseal_credentials(tx, sealed, keyring=installation.keyring)

            account, credentials = await installation.database.run(prepare)
            self._write_env(account)

            def extra(service: Service) -> list[BaseRoute]:
                if account.channel is None or credentials is None:
                    say(
                        "The sandbox channel was deleted: no fake phone. Delete the data folder to start anew."
                    )
                    return []
                return [*routes(self._phone(service, account, account.channel, credentials))]

            await main.serve(
                self._ground,
                installation,
                sockets=[listener],
                extra=extra,
                wrap=lambda app: refusing(_loopback_only(app), self._ground.settings),
                on_ready=lambda _service: self._announce(account),
            )

    def _phone(
        self,
        service: Service,
        account: DevAccount,
        channel: accounts.Channel,
        credentials: accounts.Credentials,
    ) -> DevPhone:
        project_id = account.project.id

        async def signing_secrets() -> Sequence[str]:
            endpoint = await service.database.run(lambda tx: accounts.default_endpoint(tx, project_id))
            return accounts.unseal_endpoint_secrets(endpoint, service.keyring)

        return DevPhone(
            base_url=self._base_url,
            channel=Channel(
                phone_number_id=channel.phone_number_id,
                display_phone_number=channel.display_phone_number,
                waba_id=channel.waba_id,
                app_secret=credentials.app_secrets[0].encode(),
            ),
            signing_secrets=signing_secrets,
            on_delivery=self._tell,
            clock=self._clock,
        )

    def _write_env(self, account: DevAccount) -> None:
        lines = {
            "WABERY_BASE_URL": f"{self._base_url}/v1",
            "WABERY_API_KEY": account.secret_key,
            "WABERY_PUBLISHABLE_KEY": account.publishable_key,
            "WABERY_WEBHOOK_SECRET": account.webhook_secret,
        }
        with main.data_folder(self._data_dir) as folder:
            _write(folder, _ENV, "".join(f"{name}={value}\n" for name, value in lines.items()), replace=True)

    def _announce(self, account: DevAccount) -> None:
        if self._as_json:
            facts = {
                "base_url": f"{self._base_url}/v1",
                "phone_url": f"{self._base_url}/phone",
                "env_file": str(self._env_file),
                "project_id": account.project.id,
                "webhook_url": account.webhook_url,
            }
            print(json.dumps(facts), flush=True)
            return
        say(f"""\
Wabery {__version__}  dev mode  (data: {self._data_dir}, delete to reset)
  API        {self._base_url}/v1
  Fake phone {self._base_url}/phone
  Webhooks   {"shown here and on the fake phone" if self._built_in(account) else account.webhook_url}
  Test keys  wab_pub_… / wab_test_…          written to {self._env_file} (0600)
Try it:  wabery registration-intents create --customer-reference demo --wait
         then press Send on the fake phone.   (Ctrl-C quits)""")

    def _built_in(self, account: DevAccount) -> bool:
        return account.webhook_url == self._base_url + RECEIVER_PATH

    def _tell(self, delivery: Delivery) -> None:
        if not self._as_json:
            say(f"webhook {delivery.event:32} {delivery.payload.get('customer_reference') or ''}")


def _write(folder: Folder, name: str, text: str, *, replace: bool = False) -> None:
    try:
        folder.write(name, text, replace=replace)
    except (UntrustedFolder, OSError) as failure:
        raise main.CannotStart(str(failure)) from failure


def _last_key(data_dir: Path) -> str | None:
    """The secret key of the last run, so that a script that has it goes on working."""
    try:
        with main.data_folder(data_dir) as folder:
            lines = folder.read(_ENV, private=True).splitlines()
    except FileNotFoundError:
        return None
    except (UntrustedFolder, OSError, UnicodeDecodeError) as failure:
        raise main.CannotStart(f"{data_dir / _ENV}: {failure}") from failure
    return next((line.partition("=")[2] for line in lines if line.startswith("WABERY_API_KEY=")), None)


def _loopback_only(app: ASGIApp) -> ASGIApp:
    """Refuses a foreign Host (DNS rebinding) and an Origin that is not a page on this machine."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        for name, value in scope.get("headers", ()):
            if name == b"host" and not _is_loopback(f"//{value.decode('latin-1')}"):
                raise errors.ForeignHost(param="Host")
            if name == b"origin" and not _is_loopback(value.decode("latin-1")):
                raise errors.ForeignHost(param="Origin")
        await app(scope, receive, send)

    return guarded


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False
