"""Registration intents: one person, one link, one answer.

    mint                   a message carries the token: redeem            cancel, sweep
      |
      v          judge() says yes
    PENDING ------------------------------------------------> JOINED
      |  |       judge() says no, cancelled, superseded, key revoked
      |  +---------------------------------------------------> REJECTED (rejection_reason)
      |          expires_at + grace, by the sweeper
      +------------------------------------------------------> EXPIRED

Only PENDING is not final. One conditional update decides every race: the row is settled `where status = 'PENDING'`.
Between `expires_at` and the end of the grace a read says EXPIRED with phase `grace`, and a message that was sent in
time still joins.

    intent.py  the row and its views        mint.py    many at once      end.py   cancel, expire, revoke
    redeem.py  judge and settle             tell.py    the events
"""

from wabery_server.intents.end import (
    MAX_LIFETIME,
    Minter,
    cancel,
    end_orphans,
    ended_minters,
    expire_due,
    extend,
    note_opened,
    projects_with_due,
    reject,
    retire_channel,
    revoke_key,
)
from wabery_server.intents.intent import (
    Attempt,
    Filter,
    Intent,
    Listed,
    Phase,
    RejectionReason,
    Shown,
    Status,
    Trust,
    View,
    find,
    listed,
    shown,
    wa_link,
)
from wabery_server.intents.mint import MAX_PENDING, Mint, Minted, mint, plain
from wabery_server.intents.redeem import (
    Arrival,
    Openings,
    Redeemed,
    Verdict,
    judge,
    lock,
    redeem,
    scopes,
    yielding,
)

__all__ = [
    "MAX_LIFETIME",
    "MAX_PENDING",
    "Arrival",
    "Attempt",
    "Filter",
    "Intent",
    "Listed",
    "Mint",
    "Minted",
    "Minter",
    "Openings",
    "Phase",
    "Redeemed",
    "RejectionReason",
    "Shown",
    "Status",
    "Trust",
    "Verdict",
    "View",
    "cancel",
    "end_orphans",
    "ended_minters",
    "expire_due",
    "extend",
    "find",
    "judge",
    "listed",
    "lock",
    "mint",
    "note_opened",
    "plain",
    "projects_with_due",
    "redeem",
    "reject",
    "retire_channel",
    "revoke_key",
    "scopes",
    "shown",
    "wa_link",
    "yielding",
]
