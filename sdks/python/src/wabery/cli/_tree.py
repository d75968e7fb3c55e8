"""Every command of the SDK: where its body is, what it does, and how it is used.

Kept apart from the bodies, so that help and parsing need none of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command. `body` is `module:function` below `wabery.cli`; the examples open its help."""

    body: str
    about: str
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Commands under one word."""

    about: str
    examples: tuple[str, ...]
    commands: dict[str, Command]


def _command(body: str, about: str, *examples: str) -> Command:
    return Command(body, about, examples)


EXAMPLES = (
    "wabery dev",
    'wabery registration-intents create --customer-reference "user_123" --wait',
    'wabery registration-intents get "reg_…"',
    "wabery login --base-url https://wabery.example.com/v1",
    "wabery doctor",
)

GROUPS = {
    "registration-intents": Group(
        "Mint WhatsApp links, and learn who pressed send.",
        (
            'wabery registration-intents create --customer-reference "user_123" \\',
            '    --metadata \'{"plan":"starter"}\'',
            'wabery registration-intents get "reg_…" --wait',
        ),
        {
            "create": _command(
                "_registration_intents:create",
                "Mint an intent and print its link.",
                'wabery registration-intents create --customer-reference "user_123" --wait',
                'link=$(wabery registration-intents create --customer-reference "user_123")',
            ),
            "get": _command(
                "_registration_intents:get",
                "Read an intent, or wait for its end.",
                'wabery registration-intents get "reg_…"',
                'wabery registration-intents get "reg_…" --wait --timeout 10m',
                "echo $?    # 0 joined, 10 expired, 11 cancelled or refused, 12 not in time",
            ),
            "list": _command(
                "_registration_intents:list_",
                "List intents, newest first.",
                "wabery registration-intents list --status PENDING --limit 50",
                "wabery registration-intents list --all --jsonl",
            ),
            "cancel": _command(
                "_registration_intents:cancel",
                "End a pending intent: nobody can join with its link any more.",
                'wabery registration-intents cancel "reg_…"',
            ),
            "extend": _command(
                "_registration_intents:extend",
                "Let a pending intent live longer.",
                'wabery registration-intents extend "reg_…" --expires-in 2h',
            ),
        },
    ),
    "projects": Group(
        "Read and change projects.",
        ('wabery projects get "proj_…"',),
        {
            "list": _command(
                "_projects:list_", "List the projects this key may see.", "wabery projects list"
            ),
            "get": _command(
                "_projects:get",
                "Show a project, with its webhook secret.",
                'wabery projects get "proj_…" --json',
            ),
            "update": _command(
                "_projects:update",
                "Change a project's settings.",
                'wabery projects update "proj_…" --webhook-url https://app.example.com/hooks',
            ),
        },
    ),
    "keys": Group(
        "Make, list and end API keys.",
        ("wabery keys create --name ci --scope registrations:create", "wabery keys check wab_live_…"),
        {
            "create": _command(
                "_keys:create",
                "Make a key and print it, once.",
                "wabery keys create --name ci --scope registrations:create",
                "wabery keys create --name web --publishable --allowed-origin https://app.example.com",
            ),
            "list": _command(
                "_keys:list_", "List keys, without the secret ones themselves.", "wabery keys list"
            ),
            "rotate": _command(
                "_keys:rotate",
                "Replace a key under its id and print the new one.",
                'wabery keys rotate "key_…"',
            ),
            "revoke": _command("_keys:revoke", "End a key at once.", 'wabery keys revoke "key_…" --yes'),
            "check": _command(
                "_keys:check", "Look for a typo in a key, offline.", "wabery keys check - < key.txt"
            ),
        },
    ),
    "channels": Group(
        "Connect WhatsApp numbers.",
        ("wabery channels list",),
        {
            "list": _command("_channels:list_", "List channels.", "wabery channels list"),
            "get": _command(
                "_channels:get", "Show a channel, with its verify token.", 'wabery channels get "channel_…"'
            ),
            "create": _command(
                "_channels:create",
                "Connect a number of the Meta Cloud API.",
                "wabery channels create --name Shop --phone-number-id 106540352242922 \\",
                "    --display-phone-number 15550100123 --waba-id 102290129340398",
            ),
            "delete": _command(
                "_channels:delete", "Disconnect a number.", 'wabery channels delete "channel_…" --yes'
            ),
        },
    ),
    "events": Group(
        "See what happened.",
        ("wabery events list --type participant.joined",),
        {
            "list": _command(
                "_events:list_",
                "List events, newest first.",
                "wabery events list --type participant.joined --jsonl",
            ),
            "get": _command(
                "_events:get", "Show an event with its payload.", 'wabery events get "evt_…" --json'
            ),
        },
    ),
    "config": Group(
        "See which settings apply, and why.",
        ("wabery config list --show-origin",),
        {
            "list": _command(
                "_config:list_", "List the settings in force.", "wabery config list --show-origin"
            )
        },
    ),
    "completion": Group(
        "Complete commands with the tab key.",
        ("wabery completion install", "wabery completion bash > wabery.bash"),
        {
            "install": _command(
                "_completion:install", "Install it for this user's shell.", "wabery completion install"
            ),
            "bash": _command("_completion:bash", "Print the script for bash.", "wabery completion bash"),
            "zsh": _command("_completion:zsh", "Print the script for zsh.", "wabery completion zsh"),
            "fish": _command("_completion:fish", "Print the script for fish.", "wabery completion fish"),
        },
    ),
}

SINGLE = {
    "login": _command(
        "_account:login",
        "Store a key and its server in a profile.",
        "wabery login --base-url https://wabery.example.com/v1",
        "wabery login --profile shop < key.txt",
    ),
    "logout": _command("_account:logout", "Forget a profile.", "wabery logout"),
    "whoami": _command("_account:whoami", "Show which key and server are used.", "wabery whoami"),
    "env": _command(
        "_account:env",
        "Print a project's settings as WABERY_… lines, secrets included.",
        'wabery env --project-id "proj_…" > .env',
    ),
    "doctor": _command("_diagnose:doctor", "Check key, network, TLS, clock and server.", "wabery doctor"),
    "verify": _command(
        "_diagnose:verify",
        "Say why a webhook's signature is good or bad.",
        "wabery verify --body body.json --headers headers.txt --secret-file secret",
    ),
    "help": _command(
        "_help:help", "Explain a command, or: exit-codes, environment.", "wabery help exit-codes"
    ),
}
