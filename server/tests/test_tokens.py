"""The token in what a person sends: found however it was bent, never made up, and never kept."""

import re
import string
import unicodedata

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from wabery_server.ids import ALPHABET, LENGTH
from wabery_server.intents import Found, find_tokens, redact_tokens
from wabery_server.secrets import Subkeys, generate

TOKEN = "wjr_7k3mq9xt2fhz4vbn8rcp5d6gja"
OTHER = "wjr_00000000000000000000000001"
NOTHING = Found((), malformed=False)

INVISIBLE = (
    "\u200b\u200c\u200d\u200e\u200f\u202a\u202c\u2060\u2066\u2069\ufeff"  # widths, joiners, directions
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180e\u2065\u3164\ufe00\ufe0f\uffa0\U000e0001\U000e0100"
)
DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2212\u00ad\ufe63\uff0d"
SPACES = " \u00a0\u2007\u2009\u202f\u205f\u3000\n\t"
CONFUSED = {"0": "0oO", "1": "1iIlL"}
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
]

tokens = st.text(ALPHABET, min_size=LENGTH, max_size=LENGTH).map("wjr_".__add__)
letters_and_digits = string.ascii_letters + string.digits
words = st.text(st.characters(codec="utf-8", exclude_characters=letters_and_digits), max_size=40).filter(
    lambda text: not re.search("[0-9A-Za-z]", _folded(text))
)
"""What may stand right beside a token: anything but a letter or digit of ASCII, or what folds to one."""
prose = st.text(st.characters(codec="utf-8"), max_size=200)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def full_width(text: str) -> str:
    return "".join(
        chr(ord(character) + 0xFEE0) if "!" <= character <= "~" else character for character in text
    )


@st.composite
def bent(draw: st.DrawFn, token: str) -> str:
    """The token as a keyboard, a phone or a messenger may have changed it."""
    parts = ["".join(draw(st.sampled_from([one, one.upper()])) for one in "wjr")]
    parts.append(draw(st.sampled_from(["_", " ", "-", "", "_ ", "_\n"])))
    for character in token[4:]:
        parts.append(draw(st.sampled_from(CONFUSED.get(character, character + character.upper()))))
        if draw(st.integers(0, 9)) == 0:
            parts.append(draw(st.text(INVISIBLE, max_size=2)))
        if draw(st.integers(0, 5)) == 0:
            parts.append(draw(st.sampled_from(DASHES + SPACES)))
    text = "".join(parts).rstrip(DASHES + SPACES)
    return full_width(text) if draw(st.booleans()) else text


@given(st.data(), tokens, words, words)
@settings(deadline=None, max_examples=400)
def test_a_bent_token_is_found_in_any_text(data: st.DataObject, token: str, before: str, after: str) -> None:
    text = before + data.draw(bent(token)) + after

    found = find_tokens([text])

    assert found == Found((token,), malformed=False)


@pytest.mark.parametrize("frame", QUOTES)
def test_quotes_and_formatting_marks_belong_to_the_text(frame: str) -> None:
    assert find_tokens([frame.format(TOKEN)]).tokens == (TOKEN,)


@pytest.mark.parametrize(
    "text",
    [
        "Connect my account: {}",
        "Verbinde mein Konto: {}\n\nGesendet von meinem iPhone",
        "حسابي: \u2067{}\u2069 شكرا",
        "\u200f{}\u200f",
        "wjr wjr_short {}",
        "wjr_ {}",
        "https://example.com/?t={}&x=1",
        "😀{}😀",
        "é{}é",
    ],
)
def test_words_around_a_token_do_not_matter(text: str) -> None:
    assert find_tokens([text.format(TOKEN)]).tokens == (TOKEN,)


@pytest.mark.parametrize(
    "text",
    [
        TOKEN.upper(),
        TOKEN.replace("_", " "),
        TOKEN.replace("_", "-"),
        TOKEN.replace("_", ""),
        "wjr_\n7k3mq9xt2fhz4vbn8rcp5d6gja",
        "wjr_ 7k3mq9xt2fhz4vbn8rcp5d6gja",
        "wjr _7k3mq9xt2fhz4vbn8rcp5d6gja",
        "wjr_7k3mq9xt2fhz4\n4vbn8rcp5d6gja".replace("4\n4", "4\n"),
        "wjr_7k3m q9xt 2fhz 4vbn 8rcp 5d6g ja",
        "wjr_7k3m–q9xt–2fhz–4vbn–8rcp–5d6g–ja",
        "wjr_7k3mq9xt2fhz\u00ad4vbn8rcp5d6gja",
        "wjr_7\u212a3mq9xt2fhz4vbn8rcp5d6gja",
        full_width(TOKEN),
    ],
)
def test_these_are_the_same_token(text: str) -> None:
    assert find_tokens([text]).tokens == (TOKEN,)


@pytest.mark.parametrize("letter", ["o", "O", "0"])
def test_letters_that_look_like_digits_are_those_digits(letter: str) -> None:
    text = "wjr_" + letter * 25 + "l"

    assert find_tokens([text]).tokens == (OTHER,)


@given(prose)
@settings(deadline=None)
def test_text_without_the_prefix_holds_no_token(text: str) -> None:
    assume("wjr" not in re.sub("[^a-z]", "", _folded(text).lower()))

    assert find_tokens([text]) == NOTHING
    assert redact_tokens(text) == text


@given(st.text(st.sampled_from("wjr_WJR -0aZuU\u200b“\n"), max_size=80))
@settings(deadline=None, max_examples=400)
@example("wjr_" + "a" * 27)
@example("xwjr_" + "a" * 26)
def test_a_token_is_never_made_up(text: str) -> None:
    for token in find_tokens([text]).tokens:
        kept = re.sub("[^0-9a-z]", "", text.lower()).translate(str.maketrans("oil", "011"))

        assert re.fullmatch(f"wjr_[{ALPHABET}]{{26}}", token)
        assert token.replace("_", "") in kept


@pytest.mark.parametrize(
    "text",
    [
        "wjr_7k3mq9xt2fhz4vbn8rcp5d6gj",
        "wjr_7k3mq9xt2fhz4vbn8rcp5d6gjaa",
        "wjr_7k3mq9xt2fhz4vbu8rcp5d6gja",
        "wjr_7k3mq9xt2f… Please connect me",
        "WJR-7K3MQ9XT",
    ],
)
def test_something_like_a_token_is_malformed(text: str) -> None:
    found = find_tokens([text])

    assert found == Found((), malformed=True)
    assert found.attempt


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "wjr",
        "wjr_",
        "wjr_abc",
        "what is wjr_?",
        "my wjr key",
        "7k3mq9xt2fhz4vbn8rcp5d6gja",
        f"x{TOKEN}",
    ],
)
def test_ordinary_text_is_no_attempt(text: str) -> None:
    assert not find_tokens([text]).attempt


def test_a_token_that_comes_twice_is_one_token() -> None:
    assert find_tokens([f"{TOKEN} {TOKEN.upper()}", TOKEN]).tokens == (TOKEN,)


def test_two_tokens_are_both_found_in_their_order() -> None:
    assert find_tokens([f"{OTHER} or {TOKEN}?"]).tokens == (OTHER, TOKEN)
    assert find_tokens([TOKEN, OTHER]).tokens == (TOKEN, OTHER)


def test_a_broken_token_beside_a_whole_one_is_told_too() -> None:
    assert find_tokens([f"{TOKEN} wjr_7k3mq9xt2f"]) == Found((TOKEN,), malformed=True)


def test_the_first_4096_characters_count() -> None:
    inside = "." * (4096 - len(TOKEN)) + TOKEN
    across = "." * (4097 - len(TOKEN)) + TOKEN

    assert find_tokens([inside]).tokens == (TOKEN,)
    assert find_tokens([across]).tokens == ()


def test_every_minted_token_has_the_shape_that_is_looked_for() -> None:
    subkeys = Subkeys(generate())

    for number in range(500):
        token = subkeys.token(f"reg_{number}")
        assert len(token) == 30
        assert find_tokens([token]) == Found((token,), malformed=False)


@given(st.data(), tokens, words, words)
@settings(deadline=None, max_examples=300)
def test_redaction_takes_the_token_and_nothing_else(
    data: st.DataObject, token: str, before: str, after: str
) -> None:
    text = before + data.draw(bent(token)) + after

    kept = redact_tokens(text)

    assert not find_tokens([kept]).attempt
    assert kept.startswith(before)
    assert kept.endswith(after)
    assert "wjr_…" in kept


@given(prose, tokens, prose)
@settings(deadline=None, max_examples=300)
def test_what_was_found_is_gone_after_redaction(before: str, token: str, after: str) -> None:
    text = f"{before} {token} {after}"

    kept = redact_tokens(text)

    assert find_tokens([text]).attempt
    assert token not in kept
    assert not find_tokens([kept]).attempt


@given(prose)
@settings(deadline=None)
def test_redaction_leaves_a_text_without_a_token_alone(text: str) -> None:
    if not find_tokens([text]).attempt:
        assert redact_tokens(text) == text


def test_redaction_sees_the_whole_text() -> None:
    text = "." * 5000 + TOKEN

    assert redact_tokens(text) == "." * 5000 + "wjr_…"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"Hi! {TOKEN} ☎️ ﬁn ½", "Hi! wjr_… ☎️ ﬁn ½"),
        ("it is wjr_7k3mq9xt2f, I think", "it is wjr_…, I think"),
        (f"{TOKEN} {OTHER}", "wjr_… wjr_…"),
        (f"“{full_width(TOKEN)}”", "“wjr_…”"),
        ("wjr_7k3m q9xt 2fhz 4vbn 8rcp 5d6g ja now", "wjr_… now"),
    ],
)
def test_these_are_redacted(text: str, kept: str) -> None:
    assert redact_tokens(text) == kept


PIECES = [
    "wjr_",
    "wjr",
    "wjr_a-",
    "a" * 25,
    "a" * 26,
    "-",
    " -",
    "_",
    "u",
    "\u200b",
    "\u3164",
    "\u0301",
    "ﷺ",
    "Ⅷ",
]
MOST_LETTERS = 4
"""That one character of these stands for: Ⅷ."""


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.integers(1, 4096))
@settings(deadline=None, max_examples=300)
def test_no_text_is_too_much_for_the_finder(pieces: list[str], times: int) -> None:
    text = ("".join(pieces) * times)[:65_536]

    found = find_tokens([text])
    redacted = redact_tokens(text)

    assert len(found.tokens) * len("wjr" + "a" * 26) <= 4096 * MOST_LETTERS
    assert len(redacted) <= len(text)
