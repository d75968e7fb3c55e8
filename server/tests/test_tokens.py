"""Tokens in what people send: found in any common form, never invented, never stored or sent."""

import base64
import os
import re
import string
import unicodedata
from collections.abc import Callable
from random import Random
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from wabery_server import tokens
from wabery_server.ids import ALPHABET
from wabery_server.secrets import Subkeys, generate
from wabery_server.tokens import Found, find, prefilled_text_problem, redact

TOKEN = "wjr_7k3mq9xt2fhz4vbn8rcp5d6gja"
BODY = TOKEN[4:]
OTHER = "wjr_00000000000000000000000001"

INVISIBLE = (
    "\u200b\u200c\u200d\u200e\u200f\u202a\u202c\u2060\u2066\u2069\ufeff\u00ad"  # widths, joiners, directions
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180e\u2065\u3164\ufe00\ufe0f\uffa0\U000e0001\U000e0100"
)
DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d\u301c\u058a"
SPACES = " \u00a0\u2007\u2009\u202f\u205f\u3000\n\t"
CONFUSED = {"0": "0oO", "1": "1iIlL"}
DIGITS = {digit: digit + chr(0x660 + int(digit)) + chr(0x966 + int(digit)) for digit in string.digits}
"""As ASCII, Arabic-Indic and Devanagari."""
QUOTES = [
    "“{}”",
    "'{}'",
    "«{}»",
    "`{}`",
    "({})",
    "*{}*",
    "_{}_",
    "~{}~",
    "**{}**",
    "> {}",
    "<{}>",
    "{}.",
    "{}!",
    "{}_",
    "x{}",
    "7{}",
    "{}Sent from my phone",
    "%20{}",
    "%{}",
    '{{"text":"{}"}}',
    "[link]({})",
]

some_tokens = st.text(ALPHABET, min_size=26, max_size=26).map(tokens.PREFIX.__add__)
random_tokens = st.integers(0, 2**32).map(
    lambda seed: tokens.PREFIX + "".join(Random(seed).choices(ALPHABET, k=26))
)
"""Without the repetition that a text could share by chance."""
prose = st.text(st.characters(codec="utf-8"), max_size=200)
surroundings = st.text(
    st.characters(codec="utf-8", exclude_characters=string.ascii_letters + string.digits + "%"), max_size=40
).filter(lambda text: not re.search("[0-9A-Za-z%]", _folded(text)))
"""What cannot be part of a token or of percent-encoding, and in which a token is therefore the only one."""


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def full_width(text: str) -> str:
    return "".join(
        chr(ord(character) + 0xFEE0) if "!" <= character <= "~" else character for character in text
    )


def percent_encoded(text: str) -> str:
    """Every byte, as RFC 3986 permits and some link wrappers do."""
    return "".join(f"%{byte:02x}" for byte in text.encode())


def bent(token: str, rng: Random) -> str:
    """The token as a keyboard, a phone or a messenger may have changed it."""
    parts = ["".join(rng.choice([one, one.upper()]) for one in "wjr")]
    parts.append(rng.choice(["_", " ", "-", "", "_ ", "_\n", ":", "\\_", "__", ". ", " — "]))
    for character in token[4:]:
        forms = CONFUSED.get(character, character + character.upper()) + DIGITS.get(character, "")
        parts.append(rng.choice(forms))
        if rng.random() < 0.1:
            parts.append(rng.choice(INVISIBLE) * rng.randint(1, 2))
        if rng.random() < 0.15:
            parts.append(rng.choice(DASHES + SPACES) * rng.randint(1, 2))
    text = "".join(parts).rstrip(DASHES + SPACES + INVISIBLE)
    return full_width(text) if rng.random() < 0.5 else text


seeds = st.integers(0, 2**32).map(Random)


@given(seeds, some_tokens, surroundings, surroundings)
@settings(deadline=None, max_examples=300)
def test_a_changed_token_is_found_and_only_it_is_redacted(
    rng: Random, token: str, before: str, after: str
) -> None:
    text = before + bent(token, rng) + after

    assert find([text]).tokens == (token,)
    assert redact(text) == before + tokens.REDACTED + after


WRAPPINGS: list[Callable[[str], str]] = [
    lambda text: text,
    lambda text: f"https://wa.me/15550100?text={quote(text, safe='')}",
    lambda text: f"https://wa.me/15550100?text={quote_plus(text)}",
    lambda text: f"https://api.whatsapp.com/send?phone=15550100&amp;text={quote(text, safe='')}",
    lambda text: f"whatsapp://send?text={quote(text)}",
    lambda text: (
        "https://l.example.com/?u=" + quote(f"https://wa.me/15550100?text={quote(text, safe='')}", safe="")
    ),
    lambda text: (
        "https://a.example/?u="
        + quote(
            "https://b.example/?u=" + quote(f"https://wa.me/1555?text={quote(text, safe='')}", safe=""),
            safe="",
        )
    ),
    lambda text: f"<https://wa.me/15550100?text={quote(text, safe='')}>",
    lambda text: f"[here](https://wa.me/15550100?text={quote(text, safe='')})",
    lambda text: f'{{"link": "https:\\/\\/wa.me\\/15550100?text={quote(text, safe="")}"}}',
    percent_encoded,
    lambda text: quote(percent_encoded(text), safe=""),
    lambda text: text.replace("_", "\\_"),
    lambda text: f"Fwd: > {text}\n\nSent from my phone",
    lambda text: text + text,
    str.upper,
    full_width,
]


@st.composite
def prefilled_texts(draw: st.DrawFn) -> str:
    piece = st.text(
        st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters=":."),
        max_size=30,
    ) | st.sampled_from(
        ["wjr", "wjr_", "wjr ", "%", "%20", "100% ", "%2", "abcdefghjkmnpqrstvwxyz2345 ", "Konto: ", "حسابي "]
    )
    text = draw(piece) + draw(piece) + tokens.PLACEHOLDER + draw(piece) + draw(piece)
    assume(prefilled_text_problem(text) is None)
    return text


@given(prefilled_texts(), random_tokens, st.sampled_from(WRAPPINGS))
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.filter_too_much])
def test_an_accepted_prefilled_text_joins_in_every_wrapping_and_leaves_no_token_behind(
    template: str, token: str, wrap: Callable[[str], str]
) -> None:
    sent = wrap(template.replace(tokens.PLACEHOLDER, token))

    kept = redact(sent)

    assert token in find([sent]).tokens
    assert not find([kept]).tokens
    for text in (kept, percent_decoded(kept), percent_decoded(percent_decoded(kept))):
        plain = _folded(text).lower()
        assert not any(token[start : start + 12] in plain for start in range(len(token) - 11))


def percent_decoded(text: str) -> str:
    return re.sub(
        "(?:%[0-9A-Fa-f]{2})+",
        lambda run: bytes.fromhex(run[0].replace("%", "")).decode(errors="replace"),
        text,
    )


@pytest.mark.parametrize("frame", QUOTES)
def test_any_character_may_stand_before_and_after_a_token(frame: str) -> None:
    assert find([frame.format(TOKEN)]).tokens == (TOKEN,)


@pytest.mark.parametrize(
    "text",
    [
        "Connect my account: {}",
        "Verbinde mein Konto: {}\n\nGesendet von meinem iPhone",
        "حسابي: \u2067{}\u2069 شكرا",
        "wjr wjr_short {}",
        "wjr here is the code that i got today {}",
        "https://example.com/?t={}&x=1",
        "😀{}😀",
        "é{}é",
        "请{}谢谢",
        "код{}код",
    ],
)
def test_words_around_a_token_do_not_matter(text: str) -> None:
    assert TOKEN in find([text.format(TOKEN)]).tokens


@pytest.mark.parametrize(
    "text",
    [
        TOKEN.upper(),
        TOKEN.replace("_", " "),
        TOKEN.replace("_", "-"),
        TOKEN.replace("_", ""),
        TOKEN.replace("_", "\\_"),
        TOKEN.replace("_", ":"),
        TOKEN.replace("_", "."),
        TOKEN.replace("_", "%5F"),
        TOKEN.replace("_", "%255F"),
        "wjr_\n7k3mq9xt2fhz4vbn8rcp5d6gja",
        "wjr _7k3mq9xt2fhz4vbn8rcp5d6gja",
        "wjr_7k3mq9xt2fhz\r\n4vbn8rcp5d6gja",
        "wjr_7k3m q9xt 2fhz 4vbn 8rcp 5d6g ja",
        "wjr_7k3m  q9xt  2fhz  4vbn  8rcp  5d6g  ja",
        "wjr_7k3m–q9xt–2fhz–4vbn–8rcp–5d6g–ja",
        "wjr_7k3mq9xt2fhz\u00ad4vbn8rcp5d6gja",
        "wjr_7\u212a3mq9xt2fhz4vbn8rcp5d6gja",
        "wjr_٧k३mq9xt2fhz4vbn8rcp5d6gja",
        "𝐰𝐣𝐫_𝟕𝐤𝟑𝐦𝐪𝟗𝐱𝐭𝟐𝐟𝐡𝐳𝟒𝐯𝐛𝐧𝟖𝐫𝐜𝐩𝟓𝐝𝟔𝐠𝐣𝐚",
        full_width(TOKEN),
        percent_encoded(TOKEN),
        "%ff%77jr_7k3mq9xt2fhz4vbn8rcp5d6gj%61%zz",
        TOKEN + "a",
    ],
)
def test_these_hold_the_token(text: str) -> None:
    assert find([text]).tokens == (TOKEN,)


@pytest.mark.parametrize("letter", ["o", "O", "0"])
def test_letters_that_look_like_digits_are_read_as_digits(letter: str) -> None:
    assert find(["wjr_" + letter * 25 + "l"]).tokens == (OTHER,)


@pytest.mark.parametrize("frame", ["{}", "my code is {}", "_{}_", "“{}”", "%20{}%20", "(code:{})"])
def test_a_bare_run_that_stands_alone_is_a_candidate(frame: str) -> None:
    text = frame.format(BODY.upper())

    assert find([text]) == Found((), (TOKEN,))
    assert redact(text) == text
    assert redact(text, [TOKEN]) == frame.format(tokens.REDACTED)


@pytest.mark.parametrize(
    "text", [BODY[1:], BODY + "a", "x" + BODY, BODY[:13] + " " + BODY[13:], BODY[:25] + "u"]
)
def test_a_bare_run_of_another_length_or_with_separators_is_no_candidate(text: str) -> None:
    assert find([text]) == tokens.NONE_FOUND


def test_a_matched_bare_run_is_redacted_beside_one_that_was_not_matched() -> None:
    text = f"{BODY} and {OTHER[4:]}"

    assert redact(text, [TOKEN]) == f"{tokens.REDACTED} and {OTHER[4:]}"


def test_100_000_random_ids_hold_no_token_and_stay_unchanged() -> None:
    for size in range(1, 41):
        for _ in range(2_500):
            text = base64.urlsafe_b64encode(os.urandom(size)).decode().rstrip("=")
            if "wjr" in text.lower():
                continue  # one in a few thousand long ids: it may really look like a token
            assert not find([text]).tokens
            assert redact(text) == text


@given(prose)
@settings(deadline=None)
@example("my wjr key")
@example("what is wjr_?")
@example("wjr_abc")
@example("https://wa.me/4915112345678?text=Hello%20there%2C%20100%25")
def test_text_without_a_token_stays_unchanged(text: str) -> None:
    assume(not re.search("wjr.{12}", re.sub(r"[^0-9A-Za-z%]", "", _folded(text)), re.IGNORECASE))
    assume("%" not in text or len(text) < 60)

    assert not find([text]).tokens
    assert redact(text) == text


@given(st.text(st.sampled_from("wjr_WJR -0aZuU\u200b“\n%57"), max_size=80))
@settings(deadline=None, max_examples=200)
@example("wjr_" + "a" * 27)
@example("xwjr_" + "a" * 26)
def test_a_token_is_never_invented(text: str) -> None:
    for token in find([text]).candidates:
        decoded = percent_decoded(percent_decoded(text))
        kept = re.sub("[^0-9a-z]", "", decoded.lower()).translate(str.maketrans("oil", "011"))

        assert re.fullmatch(f"wjr_[{ALPHABET}]{{26}}", token)
        assert token[4:] in kept


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("wjr_7k3mq9xt2fhz4vbn8rcp5d6gj", "wjr_…"),
        ("it is wjr_7k3mq9xt2fhz4vb, I think", "it is wjr_…, I think"),
        ("wjr_7k3mq9xt2fhz4vbu8rcp5d6gja now", "wjr_… now"),
        ("wjr_7k3mu9xt2fhz4vbn8rcp5d6gja", "wjr_…"),
        ("WJR-7K3MQ9XT2FHZ4", "wjr_…"),
        ("wjr:7k3mq9xt2fhz4", "wjr_…"),
        ("wjr\\7k3mq9xt2fhz4", "wjr_…"),
        ("wjr%5F7k3mq9xt2fhz4%20yes", "wjr_…%20yes"),
        ("wjr_7k3mq9xt2fh", "wjr_7k3mq9xt2fh"),
        ("wjr 7k3mq9xt2fhz4", "wjr 7k3mq9xt2fhz4"),
    ],
)
def test_near_matches_are_redacted_and_are_no_attempts(text: str, kept: str) -> None:
    assert find([text]) == tokens.NONE_FOUND
    assert redact(text) == kept


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"Hi! {TOKEN} ☎️ ﬁn ½", "Hi! wjr_… ☎️ ﬁn ½"),
        (f"{TOKEN} {OTHER}", "wjr_… wjr_…"),
        (f"“{full_width(TOKEN)}”", "“wjr_…”"),
        ("wjr_7k3m q9xt 2fhz 4vbn 8rcp 5d6g ja now", "wjr_… now"),
        ("." * 5000 + TOKEN, "." * 5000 + "wjr_…"),
        (f"https://wa.me/1?text=Hi%2C%20{TOKEN}%C3%A9", "https://wa.me/1?text=Hi%2C%20wjr_…%C3%A9"),
    ],
)
def test_these_are_redacted(text: str, kept: str) -> None:
    assert redact(text) == kept


@given(prose, some_tokens, prose)
@settings(deadline=None, max_examples=300)
def test_redaction_is_stable_and_leaves_no_token(before: str, token: str, after: str) -> None:
    kept = redact(f"{before} {token} {after}")

    assert token not in kept
    assert redact(kept) == kept
    assert not find([kept]).tokens


def test_each_token_is_listed_once_and_in_order() -> None:
    assert find([f"{TOKEN} {TOKEN.upper()}", BODY]) == Found((TOKEN,))
    assert find([f"{OTHER} or {TOKEN}?"]).tokens == (OTHER, TOKEN)


def test_only_the_first_4096_characters_are_searched() -> None:
    inside = "." * (4096 - len(TOKEN)) + TOKEN

    assert find([inside]).tokens == (TOKEN,)
    assert find(["." + inside]).tokens == ()


def test_a_message_never_has_more_than_16_candidates() -> None:
    many = " ".join(TOKEN[:-3] + f"{number:03d}" for number in range(130))
    bare = " ".join(BODY[:-3] + f"{number:03d}" for number in range(130))

    assert len(find([many]).candidates) == len(find([bare]).candidates) == 16


def test_every_created_token_has_the_form_that_is_searched_for() -> None:
    subkeys = Subkeys(generate())

    for number in range(500):
        token = subkeys.token(f"reg_{number}")
        assert len(token) == tokens.LENGTH
        assert find([token]) == Found((token,))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Connect my account", "exactly once"),
        ("{token} {token}", "exactly once"),
        ("{token}" + "." * 111, "141 characters"),
        ("a\n{token}", "line breaks"),
        ("see example.com {token}", "URL"),
        ("https://a {token}", "URL"),
        ("code{token}", "directly before or after"),
        ("{token}4", "directly before or after"),
        ("４{token}", "directly before or after"),
        ("wjr abcdefghjkmnpqrstvwxyz2345 {token}", "second token"),
    ],
)
def test_a_prefilled_text_is_rejected_with_its_problem(text: str, problem: str) -> None:
    assert problem in (prefilled_text_problem(text) or "")


PIECES = ["wjr_", "wjr", "wjr_a-", "a" * 25, "a" * 26, "-", " -", "_", "u", "\u200b", "\u3164", "\u0301"]
PIECES += ["ﷺ", "Ⅷ", "%", "%25", "%77", "%2577"]


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.integers(1, 4096))
@settings(deadline=None, max_examples=300)
def test_no_text_is_too_much_work(pieces: list[str], times: int) -> None:
    """Quadratic work would take minutes here, and the test's time limit would end it."""
    text = ("".join(pieces) * times)[:65_536]

    assert len(find([text]).candidates) <= tokens.MAX_TOKENS
    assert len(redact(text)) <= len(text)
