"""Makes the README's pictures from the running product: what a terminal has shown, as SVG, and the fake phone in Chromium.

python docs/pictures.py     writes docs/images/; needs /usr/bin/chromium

Nothing in them is drawn by hand: the commands run on a pseudo-terminal against `wabery dev`, and the QR code can be scanned.
"""

import json
import os
import pty
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from wabery import Wabery
from wabery.pytest_plugin import WaberyServer, _running
from wabery.webhooks import sign_for_test

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs/images"
WABERY = Path(sys.executable).parent / "wabery"
SECRET = "whsec_bWFkZSBmb3IgYSBwaWN0dXJlLCBubyBzZWNyZXQ="

WIDTH, LINE, CELL, MODULE, MARGIN = 900, 20, 8.4, 6, 20
SECONDS = 12
_STYLE = f"""\
rect.screen {{ fill: #1e1e1e }} text {{ font: 14px ui-monospace, monospace; fill: #e6e6e6; white-space: pre }}
.typed {{ fill: #fff; font-weight: bold }} .soft {{ fill: #9aa0a6 }}
@media (prefers-reduced-motion: no-preference) {{ .step {{ animation: {SECONDS}s infinite backwards }} }}
"""


@dataclass
class Step:
    """Something that appears on the screen, and when; `until`, where it gives way to the next."""

    at: float
    text: str = ""
    kind: str = ""
    modules: tuple[tuple[bool, ...], ...] = ()
    until: float = SECONDS

    @property
    def height(self) -> int:
        return len(self.modules) * MODULE + 10 if self.modules else LINE


def svg(steps: list[Step], *, title: str, moving: bool) -> str:
    """A terminal with these steps below each other; one with an end shares its line with the next."""
    parts, rules, y = [], [], MARGIN
    for number, step in enumerate(steps):
        if moving:
            rules.append(_appearance(number, step))
        name = (
            f'class="step {step.kind}" style="animation-name:s{number}"' if moving else f'class="{step.kind}"'
        )
        if step.modules:
            side = len(step.modules) * MODULE
            dark = "".join(
                f"M{MARGIN + x * MODULE} {y + row * MODULE}h{MODULE}v{MODULE}h-{MODULE}z"
                for row, line in enumerate(step.modules)
                for x, module in enumerate(line)
                if module
            )
            parts.append(f'<g {name}><rect x="{MARGIN}" y="{y}" width="{side}" height="{side}" fill="#fff"/>')
            parts.append(f'<path d="{dark}"/></g>')
        else:
            parts.append(f'<text {name} x="{MARGIN}" y="{y + 15}">{escape(step.text)}</text>')
        y += step.height if step.until == SECONDS or not moving else 0
    height = y + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">',
            f"<title>{escape(title)}</title><style>{_STYLE}{''.join(rules)}</style>",
            f'<rect class="screen" width="{WIDTH}" height="{height}" rx="8"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _appearance(number: int, step: Step) -> str:
    begin, end = (f"{moment / SECONDS:.2%}" for moment in (step.at, step.until))
    hidden, shown = "{visibility:hidden}", "{visibility:visible}"
    after = f"{end},100%{hidden}" if step.until < SECONDS else f"100%{shown}"
    return f"@keyframes s{number}{{0%{hidden}{begin}{shown}{after}}}"


def connecting(server: WaberyServer) -> str:
    """`create --wait`, from the command to the join."""
    words = ["registration-intents", "create", "--customer-reference", "user_123", "--wait"]
    shown = ""
    for chunk in _on_terminal(server, words):
        sent, shown = "press send" in shown, shown + chunk
        if "press send" in shown and not sent:
            link = re.findall(r"https://wa\.me/\S+", shown)[0]
            threading.Thread(target=server.press_send, args=(link,)).start()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    waiting = re.findall(r"Waiting for the person.*?leaves\)", plain)[0]
    (connected,) = re.findall(r"Connected: .*", plain)
    return svg(
        [
            Step(0.3, f"$ wabery {' '.join(words)}", "typed"),
            Step(1.8, link),
            Step(2.2, modules=_modules(shown)),
            Step(2.6, waiting, "soft", until=8),
            Step(8, connected.strip()),
        ],
        title="wabery registration-intents create --wait draws a QR code and says when the person has pressed send",
        moving=True,
    )


def explaining(server: WaberyServer) -> str:
    """`doctor`, and `verify` on a body that a framework has parsed."""
    with tempfile.TemporaryDirectory() as folder:
        body, headers = sign_for_test(
            {"event": "participant.joined", "payload": {"event_id": "evt_1"}}, SECRET
        )
        Path(folder, "body.json").write_text(json.dumps(json.loads(body), indent=2))
        Path(folder, "headers.txt").write_text(
            "".join(f"{name}: {value}\n" for name, value in headers.items())
        )
        Path(folder, "secret").write_text(SECRET)
        verify = ["verify", "--body", "body.json", "--headers", "headers.txt", "--secret-file", "secret"]
        steps = []
        for words in (["doctor"], verify):
            steps.append(Step(0, f"$ wabery {' '.join(words)}", "typed"))
            shown = "".join(_on_terminal(server, words, folder)).replace("\r", "")
            steps += [Step(0, line) for line in shown.rstrip().split("\n")]
            steps.append(Step(0))
    return svg(steps[:-1], title="wabery doctor and wabery verify say what is wrong", moving=False)


def phone(server: WaberyServer) -> None:
    """The fake phone, after Ana has pressed send."""
    link = server.client.registration_intents.create(customer_reference="user_123").wa_link
    script = """
      import { chromium } from "playwright-core";
      const [base, link, path] = process.argv.slice(1);
      const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
      const page = await browser.newPage({ viewport: { width: 900, height: 860 } });
      await page.goto(`${base}/phone#link=${encodeURIComponent(link)}`);
      await page.getByRole("button", { name: "Send" }).click();
      await page.getByText("Sent as Ana").waitFor();
      await page.getByText("participant.joined").nth(1).waitFor();
      await page.evaluate(() => scrollTo(0, 0));
      await page.screenshot({ path });
      await browser.close();
    """
    words = ["node", "--input-type=module", "-e", script, server.base_url.removesuffix("/v1"), link]
    subprocess.run([*words, IMAGES / "phone.png"], cwd=ROOT, check=True)


def _on_terminal(server: WaberyServer, words: list[str], folder: str | None = None) -> Iterator[str]:
    """What a command shows on a terminal, as it comes."""
    ours, theirs = pty.openpty()
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": "/nowhere",
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
        "COLUMNS": "100",
        "LINES": "50",
        "WABERY_API_KEY": server.api_key,
        "WABERY_BASE_URL": server.base_url,
    }
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen([WABERY, *words], cwd=folder, env=environ, **streams) as process:  # type: ignore[call-overload]
        os.close(theirs)
        kept = b""
        while True:
            try:
                kept += os.read(ours, 65536)
            except OSError:  # Linux says so when the last writer has closed the terminal
                break
            text = kept.decode(errors="ignore")
            if text.encode() == kept:
                yield text
                kept = b""
        process.wait()
    os.close(ours)


def _modules(shown: str) -> tuple[tuple[bool, ...], ...]:
    """The QR code, read back from its half blocks and colours."""
    rows = []
    for line in shown.splitlines():
        runs = re.findall(r"\x1b\[38;5;(\d+);48;5;(\d+)m(▀+)", line)
        for half in (0, 1) if runs else ():
            rows.append(tuple(run[half] == "16" for run in runs for _ in run[2]))
    return tuple(rows)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wp-") as folder, _running(Path(folder)) as told:
        keys = dict(line.split("=", 1) for line in Path(told["env_file"]).read_text().splitlines())
        with Wabery(keys["WABERY_API_KEY"], told["base_url"]) as client:
            client.projects.update(told["project_id"], on_identity_linked="allow")
            server = WaberyServer(
                base_url=told["base_url"],
                api_key=keys["WABERY_API_KEY"],
                publishable_key=keys["WABERY_PUBLISHABLE_KEY"],
                project_id=told["project_id"],
                client=client,
            )
            (IMAGES / "connecting.svg").write_text(connecting(server))
            (IMAGES / "explaining.svg").write_text(explaining(server))
            phone(server)


if __name__ == "__main__":
    main()
