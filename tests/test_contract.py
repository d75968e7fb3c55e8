"""The three snippets of the public registration-intents page, as they stand there, against a server of ours.

Only the base URL and the keys are filled in; the rest is byte for byte what the page says.
"""

import json
import os
import re
import subprocess
from pathlib import Path

from wabery.pytest_plugin import WaberyServer

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sdks/typescript"

CURL = r"""curl https://api.wabery.com/v1/registration-intents \
  -H "x-wabery-publishable-key: $WABERY_PUBLISHABLE_KEY" \
  -H "Content-Type: application/json" \
  -d '{
    "customer_reference": "user_123",
    "metadata": { "plan": "starter" }
  }'
"""

CLI = r"""WABERY_API_KEY="wab_pub_..." wabery registration-intents create \
  --customer-reference "user_123" \
  --metadata '{"plan":"starter"}'
"""

TYPESCRIPT = """import { Wabery } from "@wabery/sdk";

const wabery = new Wabery({ apiKey: "wab_pub_..." });

const intent = await wabery.registrationIntents.create({
	customerReference: "user_123",
	metadata: { plan: "starter" },
});

console.log(intent.wa_link);
"""

POLL = """const status = await wabery.registrationIntents.get(intent.id);
console.log(status.status === "JOINED");
"""

LINK = re.compile(r"https://wa\.me/[1-9]\d+\?text=Connect%20my%20account%3A%20wjr_[0-9a-hjkmnp-tv-z]{26}")


def environ(server: WaberyServer, home: Path) -> dict[str, str]:
    return {
        "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}",
        "HOME": str(home),
        "WABERY_BASE_URL": server.base_url,
        "WABERY_API_KEY": server.api_key,
        "WABERY_PUBLISHABLE_KEY": server.publishable_key,
    }


def run(command: list[str], server: WaberyServer, home: Path, folder: Path = ROOT) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        env=environ(server, home),
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def bash(script: str, server: WaberyServer, home: Path) -> str:
    return run(["bash", "-euo", "pipefail", "-c", script], server, home)


def node(script: str, server: WaberyServer, home: Path) -> str:
    """Where `@wabery/sdk` is installed, as it is in a project that uses it."""
    return run(["node", "--input-type=module", "-e", script], server, home, PACKAGE)


def test_the_curl_snippet_answers_with_what_the_page_shows(
    wabery_server: WaberyServer, tmp_path: Path
) -> None:
    script = CURL.replace("https://api.wabery.com/v1", wabery_server.base_url)

    intent = json.loads(bash(script, wabery_server, tmp_path))

    assert intent["object"] == "registration_intent"
    assert re.fullmatch(r"reg_[0-9a-hjkmnp-tv-z]{26}", intent["id"])
    assert re.fullmatch(r"wjr_[0-9a-hjkmnp-tv-z]{26}", intent["token"])
    assert intent["status"] == "PENDING"
    assert LINK.fullmatch(intent["wa_link"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", intent["expires_at"])


def test_the_cli_snippet_prints_the_link(wabery_server: WaberyServer, tmp_path: Path) -> None:
    script = CLI.replace("wab_pub_...", wabery_server.publishable_key)

    printed = bash(script, wabery_server, tmp_path)

    assert LINK.fullmatch(printed.strip())


def test_the_cli_gets_an_intent_by_its_id(wabery_server: WaberyServer, tmp_path: Path) -> None:
    made = json.loads(
        bash(CURL.replace("https://api.wabery.com/v1", wabery_server.base_url), wabery_server, tmp_path)
    )

    printed = bash(f'wabery registration-intents get "{made["id"]}" --json', wabery_server, tmp_path)

    assert json.loads(printed)["status"] == "PENDING"


def test_the_typescript_snippet_prints_the_link_and_polls(
    wabery_server: WaberyServer, tmp_path: Path
) -> None:
    assert (PACKAGE / "dist/esm/index.js").exists(), "`make test` installs and builds the npm packages"
    script = (TYPESCRIPT + POLL).replace("wab_pub_...", wabery_server.publishable_key)

    printed = node(script, wabery_server, tmp_path)

    link, joined = printed.splitlines()
    assert LINK.fullmatch(link)
    assert joined == "false"


def test_plain_fetch_mints_and_polls(wabery_server: WaberyServer, tmp_path: Path) -> None:
    script = """
    const base = process.env.WABERY_BASE_URL;
    const headers = { "x-wabery-publishable-key": process.env.WABERY_PUBLISHABLE_KEY };
    const made = await fetch(`${base}/registration-intents`, {
      method: "POST", headers: { ...headers, "content-type": "application/json" },
      body: JSON.stringify({ customer_reference: "user_456" }),
    });
    const intent = await made.json();
    const polled = await fetch(`${base}/registration-intents/${intent.id}`, { headers });
    console.log(made.status, polled.status, (await polled.json()).status, polled.headers.get("wabery-version"));
    """

    printed = node(script, wabery_server, tmp_path)

    assert re.fullmatch(r"200 200 PENDING \d{4}-\d\d-\d\d\n", printed)
