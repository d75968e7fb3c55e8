"""`judge`, row by row: what a message with a token does to the intent it names. Pure, so no database here."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wabery_server.accounts import Project
from wabery_server.contacts import Contact, Link
from wabery_server.intents import (
    Arrival,
    Attempt,
    Intent,
    RejectionReason,
    Status,
    Trust,
    Verdict,
    judge,
)
from wabery_server.tokens import Found

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
SOON = NOON + timedelta(minutes=30)
"""When the intent expires."""
GRACE = timedelta(minutes=5)
SECOND = timedelta(seconds=1)

SERVER, SIGNED, UNVERIFIED = Trust.SERVER, Trust.SIGNED, Trust.UNVERIFIED
TRUSTS = [SERVER, SIGNED, UNVERIFIED]
TRUSTED = [SERVER, SIGNED]

PLAIN = Project(id="proj_1", organization_id="org_1", name="Acme", livemode=False, created_at=NOON)
POLICIES = [
    msgspec.structs.replace(
        PLAIN, on_identity_linked=identity, on_reference_linked=reference, references_per_contact=most
    )
    for identity, most in [("reject", 1), ("replace", 1), ("allow", 1), ("allow", 2)]
    for reference in ("replace", "reject")
]


def intent(status: Status = Status.PENDING, **more: object) -> Intent:
    return Intent(
        **{  # type: ignore[arg-type]  # the struct's fields, by name
            "project_id": "proj_1",
            "id": "reg_1",
            "status": status,
            "customer_reference": "ada",
            "metadata": msgspec.Raw(b"{}"),
            "reference_trust": SERVER,
            "channel_id": "channel_1",
            "api_key_id": "key_1",
            "locale": None,
            "secret_version": 1,
            "created_at": NOON,
            "expires_at": SOON,
            **more,
        }
    )


def arrival(
    contact_id: str = "ana", *, sent: datetime = NOON, received: datetime | None = None, **more: str
) -> Arrival:
    contact = Contact(project_id="proj_1", id=contact_id, username=None, profile_name=None, country=None)
    return Arrival(
        message_id="msg_1",
        project_id="proj_1",
        channel_id=more.get("channel_id", "channel_1"),
        contact=contact,
        conversation_id="conv_1",
        found=Found(("wjr_7k3mq9xt2fhz4vbn8rcp5d6gja",)),
        sent_at=sent,
        received_at=received or sent,
        sender_limited=False,
    )


def link(contact_id: str, reference: str, trust: Trust = SERVER) -> Link:
    return Link(
        project_id="proj_1",
        id=f"link_{contact_id}_{reference}",
        contact_id=contact_id,
        customer_reference=reference,
        registration_intent_id="reg_0",
        reference_trust=trust,
        metadata=msgspec.Raw(b'{"kept":true}'),
        created_at=NOON,
    )


def judged(
    one: Intent,
    by: Arrival,
    links: Iterable[Link] = (),
    project: Project = PLAIN,
    *,
    key_revoked: bool = False,
    channel_deleted: bool = False,
) -> Verdict:
    """The verdict, given every active link of the project."""
    return judge(
        one,
        by,
        of_contact=[old for old in links if old.contact_id == by.contact.id],
        of_reference=next((old for old in links if old.customer_reference == one.customer_reference), None),
        project=project,
        key_revoked=key_revoked,
        channel_deleted=channel_deleted,
        grace=GRACE,
    )


JOINED = Verdict(Attempt.JOINED, Status.JOINED)


def rejected(reason: RejectionReason) -> Verdict:
    return Verdict(Attempt.REJECTED, Status.REJECTED, reason)


# Rows 6 to 10: before anybody looks at links


@pytest.mark.parametrize("status", Status)
def test_the_wrong_number_changes_nothing(status: Status) -> None:
    assert judged(intent(status), arrival(channel_id="channel_2")) == Verdict(Attempt.WRONG_CHANNEL)


def test_the_same_person_again_is_already_connected() -> None:
    joined = intent(Status.JOINED, contact_id="ana", joined_at=NOON, ended_at=NOON)

    assert judged(joined, arrival("ana")) == Verdict(Attempt.ALREADY_USED_SAME_SENDER)


def test_another_person_with_a_used_token_raises_an_alarm_and_changes_nothing() -> None:
    joined = intent(Status.JOINED, contact_id="ana", joined_at=NOON, ended_at=NOON)

    assert judged(joined, arrival("stranger")) == Verdict(Attempt.ALREADY_USED_OTHER_SENDER, reuse=True)


@pytest.mark.parametrize("late", [timedelta(0), timedelta(days=30)])
def test_a_used_token_stays_used_after_its_expiry(late: timedelta) -> None:
    joined = intent(Status.JOINED, contact_id="ana", joined_at=NOON, ended_at=NOON)

    assert judged(joined, arrival("ana", sent=SOON + late)).attempt is Attempt.ALREADY_USED_SAME_SENDER
    assert judged(joined, arrival("stranger", sent=SOON + late)).reuse


@pytest.mark.parametrize("reason", RejectionReason)
@pytest.mark.parametrize("who", ["ana", "stranger"])
def test_a_rejected_intent_stays_rejected(reason: RejectionReason, who: str) -> None:
    over = intent(Status.REJECTED, rejection_reason=reason, contact_id="ana", ended_at=NOON)

    assert judged(over, arrival(who)) == Verdict(Attempt.AFTER_CANCEL)


@pytest.mark.parametrize(
    ("sent", "received", "attempt"),
    [
        (NOON, NOON, Attempt.JOINED),
        (SOON, SOON, Attempt.JOINED),
        (SOON, SOON + GRACE, Attempt.JOINED),
        (NOON - timedelta(days=1), SOON + GRACE, Attempt.JOINED),
        (SOON, SOON + GRACE + SECOND, Attempt.ARRIVED_LATE),
        (NOON, SOON + timedelta(days=6), Attempt.ARRIVED_LATE),
        (SOON + SECOND, SOON + SECOND, Attempt.AFTER_EXPIRY),
        (SOON + SECOND, SOON + GRACE + SECOND, Attempt.AFTER_EXPIRY),
    ],
)
@pytest.mark.parametrize("trust", TRUSTS)
def test_what_was_sent_in_time_joins_until_the_grace_is_over(
    sent: datetime, received: datetime, attempt: Attempt, trust: Trust
) -> None:
    verdict = judged(intent(reference_trust=trust), arrival(sent=sent, received=received))

    assert verdict.attempt is attempt
    assert verdict.status is (Status.JOINED if attempt is Attempt.JOINED else None)


@pytest.mark.parametrize(
    ("sent", "attempt"), [(SOON, Attempt.ARRIVED_LATE), (SOON + SECOND, Attempt.AFTER_EXPIRY)]
)
def test_an_intent_that_the_sweeper_has_ended_stays_expired(sent: datetime, attempt: Attempt) -> None:
    expired = intent(Status.EXPIRED, ended_at=SOON + GRACE)

    assert judged(expired, arrival(sent=sent, received=SOON)) == Verdict(attempt)


# Between rows 10 and 15: what the app has taken back


@pytest.mark.parametrize(
    ("taken_back", "reason"),
    [("key_revoked", RejectionReason.KEY_REVOKED), ("channel_deleted", RejectionReason.CHANNEL_UNAVAILABLE)],
)
@pytest.mark.parametrize("trust", TRUSTS)
def test_a_revoked_key_or_a_deleted_channel_joins_nobody(
    taken_back: str, reason: RejectionReason, trust: Trust
) -> None:
    one = intent(reference_trust=trust)
    links = [link("ana", "ada")]

    verdict = judged(
        one,
        arrival(),
        links,
        key_revoked=taken_back == "key_revoked",
        channel_deleted=taken_back == "channel_deleted",
    )

    assert verdict == rejected(reason)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_project_that_refuses_unsigned_references_refuses_them_on_this_path_too(policy: Project) -> None:
    strict = msgspec.structs.replace(policy, unsigned_references="refuse")

    verdicts = {trust: judged(intent(reference_trust=trust), arrival(), [], strict) for trust in TRUSTS}

    assert verdicts[UNVERIFIED] == rejected(RejectionReason.REFERENCE_UNVERIFIED)
    assert verdicts[SIGNED] == verdicts[SERVER] == JOINED


# Row 20: nothing in the way


@pytest.mark.parametrize("trust", TRUSTS)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_new_person_and_a_new_reference_join(trust: Trust, policy: Project) -> None:
    others = [link("ben", "bo"), link("cleo", "cy", UNVERIFIED)]

    assert judged(intent(reference_trust=trust), arrival(), others, policy) == JOINED


# Row 15: the same person and the same reference


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("before", TRUSTS)
@pytest.mark.parametrize("trust", TRUSTED)
def test_a_trusted_registration_of_what_is_linked_takes_the_link_over(
    policy: Project, before: Trust, trust: Trust
) -> None:
    old = link("ana", "ada", before)

    verdict = judged(intent(reference_trust=trust), arrival(), [old, link("ana", "other")], policy)

    assert verdict == Verdict(Attempt.JOINED, Status.JOINED, already_linked=True, refreshed=old)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("before", TRUSTS)
def test_an_unverified_registration_of_what_is_linked_leaves_the_link_alone(
    policy: Project, before: Trust
) -> None:
    verdict = judged(intent(reference_trust=UNVERIFIED), arrival(), [link("ana", "ada", before)], policy)

    assert verdict == Verdict(Attempt.JOINED, Status.JOINED, already_linked=True)


# Row 16: the person is linked to another reference


class OtherReference(NamedTuple):
    """One line of the table: policy, trust of the old link, trust of the new intent, what happens."""

    policy: str
    before: Trust
    trust: Trust
    outcome: str


@pytest.mark.parametrize(
    "case",
    [
        OtherReference("reject", SERVER, SERVER, "rejected"),
        OtherReference("reject", SIGNED, SERVER, "rejected"),
        OtherReference("reject", SERVER, SIGNED, "rejected"),
        OtherReference("reject", UNVERIFIED, SERVER, "replaced"),
        OtherReference("reject", UNVERIFIED, SIGNED, "replaced"),
        OtherReference("replace", SERVER, SERVER, "replaced"),
        OtherReference("replace", SIGNED, SIGNED, "replaced"),
        OtherReference("replace", UNVERIFIED, SERVER, "replaced"),
        *(OtherReference(policy, before, UNVERIFIED, "rejected") for policy in ("reject", "replace") for before in TRUSTS),
    ],
    ids=lambda case: "-".join(case),
)  # fmt: skip
def test_a_person_who_is_linked_elsewhere(case: OtherReference) -> None:
    policy = msgspec.structs.replace(PLAIN, on_identity_linked=case.policy)
    old = link("ana", "other", case.before)

    verdict = judged(intent(reference_trust=case.trust), arrival(), [old], policy)

    if case.outcome == "replaced":
        assert verdict == Verdict(Attempt.JOINED, Status.JOINED, ended=(old,))
    else:
        assert verdict == rejected(RejectionReason.IDENTITY_ALREADY_LINKED)


def test_one_trusted_link_is_enough_to_reject() -> None:
    links = [link("ana", "other", UNVERIFIED), link("ana", "more", SIGNED)]

    verdict = judged(intent(), arrival(), links, PLAIN)

    assert verdict == rejected(RejectionReason.IDENTITY_ALREADY_LINKED)


def test_every_link_of_the_person_is_replaced() -> None:
    links = [link("ana", "other"), link("ana", "more", UNVERIFIED)]
    policy = msgspec.structs.replace(PLAIN, on_identity_linked="replace")

    assert judged(intent(), arrival(), links, policy).ended == tuple(links)


@pytest.mark.parametrize("trust", TRUSTS)
@pytest.mark.parametrize(("held", "joins"), [(0, True), (1, True), (2, True), (3, False), (4, False)])
def test_a_person_may_hold_as_many_references_as_the_project_allows(
    trust: Trust, held: int, *, joins: bool
) -> None:
    policy = msgspec.structs.replace(PLAIN, on_identity_linked="allow", references_per_contact=3)
    links = [link("ana", f"other{number}") for number in range(held)]

    verdict = judged(intent(reference_trust=trust), arrival(), links, policy)

    assert verdict == (JOINED if joins else rejected(RejectionReason.LINK_LIMIT_REACHED))


def test_above_the_limit_an_unverified_link_yields_to_a_trusted_registration() -> None:
    policy = msgspec.structs.replace(PLAIN, on_identity_linked="allow", references_per_contact=2)
    weak = link("ana", "weak", UNVERIFIED)
    links = [link("ana", "strong"), weak]

    trusted = judged(intent(reference_trust=SERVER), arrival(), links, policy)
    unverified = judged(intent(reference_trust=UNVERIFIED), arrival(), links, policy)

    assert trusted == Verdict(Attempt.JOINED, Status.JOINED, ended=(weak,))
    assert unverified == rejected(RejectionReason.LINK_LIMIT_REACHED)


# Row 17: the reference is linked to another person


@pytest.mark.parametrize("policy", ["replace", "reject"])
@pytest.mark.parametrize("before", TRUSTS)
@pytest.mark.parametrize("trust", TRUSTS)
def test_a_reference_that_is_linked_to_somebody_else(policy: str, before: Trust, trust: Trust) -> None:
    project = msgspec.structs.replace(PLAIN, on_reference_linked=policy)
    old = link("ben", "ada", before)
    yields = trust in TRUSTED and (policy == "replace" or before is UNVERIFIED)

    verdict = judged(intent(reference_trust=trust), arrival(), [old], project)

    if yields:
        assert verdict == Verdict(Attempt.JOINED, Status.JOINED, ended=(old,))
    else:
        assert verdict == rejected(RejectionReason.REFERENCE_ALREADY_LINKED)


def test_both_sides_may_yield_at_once() -> None:
    project = msgspec.structs.replace(PLAIN, on_identity_linked="replace")
    of_person, of_reference = link("ana", "other"), link("ben", "ada")

    verdict = judged(intent(), arrival(), [of_person, of_reference], project)

    assert verdict == Verdict(Attempt.JOINED, Status.JOINED, ended=(of_person, of_reference))


def test_the_persons_other_link_decides_before_the_references_link() -> None:
    project = msgspec.structs.replace(PLAIN, on_reference_linked="reject")

    verdict = judged(intent(), arrival(), [link("ana", "other"), link("ben", "ada")], project)

    assert verdict.reason is RejectionReason.IDENTITY_ALREADY_LINKED


# What holds whatever happens


class Message(NamedTuple):
    """Somebody sends the token of a fresh intent."""

    who: str
    reference: str
    trust: Trust
    policy: Project


messages = st.builds(
    Message,
    st.sampled_from(["ana", "ben", "cleo"]),
    st.sampled_from(["ada", "bo", "cy", "di"]),
    st.sampled_from(TRUSTS),
    st.sampled_from([*POLICIES, msgspec.structs.replace(PLAIN, unsigned_references="refuse")]),
)


@given(st.lists(messages, max_size=30))
def test_no_sequence_of_messages_breaks_a_link_that_an_unverified_one_found(story: list[Message]) -> None:
    links: list[Link] = []
    for number, (who, reference, trust, policy) in enumerate(story):
        one = intent(id=f"reg_{number}", customer_reference=reference, reference_trust=trust)
        before = list(links)

        verdict = judged(one, arrival(who), links, policy)

        if trust is UNVERIFIED:
            assert verdict.ended == ()
            assert verdict.refreshed is None
        assert set(ids(verdict.ended)) <= set(ids(before))
        assert (verdict.status is Status.REJECTED) == (verdict.reason is not None)
        if verdict.status is not Status.JOINED:
            assert verdict.ended == ()
            continue
        links = [old for old in links if old not in verdict.ended]
        if not verdict.already_linked:
            links.append(link(who, reference, trust))
        references = [old.customer_reference for old in links]
        assert len(references) == len(set(references))
        assert any((old.contact_id, old.customer_reference) == (who, reference) for old in links)
        assert (
            policy.on_identity_linked != "allow"
            or trust is UNVERIFIED
            or len(held_by(who, links)) <= max(policy.references_per_contact, len(held_by(who, before)))
        )


def ids(links: Iterable[Link]) -> list[str]:
    return [one.id for one in links]


def held_by(who: str, links: Iterable[Link]) -> list[Link]:
    return [one for one in links if one.contact_id == who]
