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
    gives: str
    """What --json prints: a schema of openapi.json or a class of `_shapes`, with `[]` a list of it; "" for no JSON."""


@dataclass(frozen=True)
class Group:
    """Commands under one word."""

    about: str
    examples: tuple[str, ...]
    commands: dict[str, Command]


def _command(body: str, about: str, *examples: str, gives: str = "") -> Command:
    return Command(body, about, examples, gives)


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
                gives="MintedRegistrationIntent",
            ),
            "get": _command(
                "_registration_intents:get",
                "Read an intent, or wait for its end.",
                'wabery registration-intents get "reg_…"',
                'wabery registration-intents get "reg_…" --wait --timeout 10m',
                "echo $?    # 0 joined, 10 expired, 11 cancelled or refused, 12 not in time",
                gives="RegistrationIntent",
            ),
            "list": _command(
                "_registration_intents:list_",
                "List intents, newest first.",
                "wabery registration-intents list --status PENDING --limit 50",
                "wabery registration-intents list --all --jsonl",
                gives="RegistrationIntent[]",
            ),
            "cancel": _command(
                "_registration_intents:cancel",
                "End a pending intent: nobody can join with its link any more.",
                'wabery registration-intents cancel "reg_…"',
                gives="RegistrationIntent",
            ),
            "extend": _command(
                "_registration_intents:extend",
                "Let a pending intent live longer.",
                'wabery registration-intents extend "reg_…" --expires-in 2h',
                gives="RegistrationIntent",
            ),
        },
    ),
    "projects": Group(
        "Found, read and change projects.",
        (
            "wabery projects list",
            'wabery projects update "proj_…" --webhook-url https://app.example.com/hooks',
        ),
        {
            "list": _command(
                "_projects:list_",
                "List the projects this key may see.",
                "wabery projects list",
                "project=$(wabery projects list | cut -f1)",
                gives="Project[]",
            ),
            "get": _command(
                "_projects:get",
                "Show a project, with its webhook secret.",
                'wabery projects get "proj_…" --json',
                gives="Project",
            ),
            "create": _command(
                "_projects:create",
                "Found a project and print its first key, once.",
                'wabery projects create --name "Shop, staging"',
                gives="FoundedProject",
            ),
            "update": _command(
                "_projects:update",
                "Change a project's settings.",
                'wabery projects update "proj_…" --webhook-url https://app.example.com/hooks',
                'wabery projects update "proj_…" --unsigned-references refuse --secret-expires-in 2h',
                gives="Project",
            ),
            "rotate-webhook-secret": _command(
                "_projects:rotate_webhook_secret",
                "Make a new signing secret and print it.",
                'wabery projects rotate-webhook-secret "proj_…"',
                gives="Project",
            ),
        },
    ),
    "keys": Group(
        "Make, change and end API keys.",
        (
            "wabery keys create --name ci --scope registrations:create",
            "wabery keys list",
            "wabery keys check - < key.txt",
        ),
        {
            "create": _command(
                "_keys:create",
                "Make a key and print it, once.",
                "wabery keys create --name ci --scope registrations:create",
                "wabery keys create --name web --publishable \\",
                "    --allowed-origin https://app.example.com",
                gives="ApiKey",
            ),
            "list": _command(
                "_keys:list_",
                "List keys, without the secret ones themselves.",
                "wabery keys list",
                gives="ApiKey[]",
            ),
            "get": _command(
                "_keys:get",
                "Show a key's name, scopes and use.",
                'wabery keys get "key_…"',
                gives="ApiKey",
            ),
            "update": _command(
                "_keys:update",
                "Change a key's name, origins or end.",
                'wabery keys update "key_…" --allowed-origin https://app.example.com',
                gives="ApiKey",
            ),
            "rotate": _command(
                "_keys:rotate",
                "Replace a key under its id and print the new one.",
                'wabery keys rotate "key_…"',
                'wabery keys rotate "key_…" --overlap 0    # it has leaked',
                gives="ApiKey",
            ),
            "revoke": _command(
                "_keys:revoke", "End a key at once.", 'wabery keys revoke "key_…" --yes', gives="ApiKey"
            ),
            "check": _command(
                "_keys:check",
                "Look for a typo in a key, offline.",
                "wabery keys check - < key.txt",
                gives="CheckedKey",
            ),
        },
    ),
    "channels": Group(
        "Connect WhatsApp numbers.",
        ("wabery channels list", 'wabery channels check "channel_…"'),
        {
            "list": _command("_channels:list_", "List channels.", "wabery channels list", gives="Channel[]"),
            "get": _command(
                "_channels:get",
                "Show a channel, with its verify token.",
                'wabery channels get "channel_…"',
                gives="Channel",
            ),
            "create": _command(
                "_channels:create",
                "Connect a number of the Meta Cloud API.",
                "wabery channels create --name Shop --phone-number-id 106540352242922 \\",
                "    --display-phone-number 15550100123 --waba-id 102290129340398 \\",
                "    --app-secret-file app-secret.txt",
                gives="Channel",
            ),
            "update": _command(
                "_channels:update",
                "Change a channel's name, number or credentials.",
                'wabery channels update "channel_…" --access-token-file token.txt',
                gives="Channel",
            ),
            "check": _command(
                "_channels:check",
                "Ask Meta whether the number and its credentials work.",
                'wabery channels check "channel_…"',
                gives="ChannelCheck",
            ),
            "delete": _command(
                "_channels:delete",
                "Disconnect a number.",
                'wabery channels delete "channel_…" --yes',
                gives="Channel",
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
                'wabery events list --registration-intent-id "reg_…"',
                gives="Event[]",
            ),
            "get": _command(
                "_events:get",
                "Show an event with its payload.",
                'wabery events get "evt_…" --json',
                gives="Event",
            ),
        },
    ),
    "config": Group(
        "See which settings apply, and why.",
        ("wabery config list --show-origin",),
        {
            "list": _command(
                "_config:list_",
                "List the settings in force.",
                "wabery config list --show-origin",
                gives="Configuration",
            )
        },
    ),
    "completion": Group(
        "Complete commands with the tab key.",
        ("wabery completion install", "wabery completion bash > wabery.bash"),
        {
            "install": _command(
                "_completion:install",
                "Install it for this user's shell.",
                "wabery completion install",
                gives="InstalledCompletion",
            ),
            "bash": _command(
                "_completion:bash", "Print the script for bash.", "source <(wabery completion bash)"
            ),
            "zsh": _command(
                "_completion:zsh", "Print the script for zsh.", "wabery completion zsh > _wabery"
            ),
            "fish": _command(
                "_completion:fish", "Print the script for fish.", "wabery completion fish | source"
            ),
        },
    ),
}

SINGLE = {
    "login": _command(
        "_account:login",
        "Store a key and its server in a profile.",
        "wabery login --base-url https://wabery.example.com/v1",
        "wabery login --profile shop < key.txt",
        gives="LoggedIn",
    ),
    "logout": _command("_account:logout", "Forget a profile.", "wabery logout", gives="LoggedOut"),
    "whoami": _command(
        "_account:whoami", "Show which key and server are used.", "wabery whoami", gives="Whoami"
    ),
    "env": _command(
        "_account:env",
        "Print a project's settings as WABERY_… lines, secrets included.",
        'wabery env --project-id "proj_…" > .env',
        gives="Environment",
    ),
    "doctor": _command(
        "_diagnose:doctor",
        "Check key, network, TLS, clock and server.",
        "wabery doctor",
        "wabery doctor --json | jq '.checks[] | select(.state != \"ok\")'",
        gives="Examination",
    ),
    "verify": _command(
        "_diagnose:verify",
        "Say why a webhook's signature is good or bad.",
        "wabery verify --body body.json --headers headers.txt --secret-file secret",
        gives="Verdict",
    ),
    "help": _command(
        "_help:help",
        "Explain a command, or: exit-codes, environment.",
        "wabery help exit-codes",
        "wabery help registration-intents create",
        gives="Explanation[]",
    ),
}
