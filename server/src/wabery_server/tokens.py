"""Link tokens in what people send: find them, redact them, and check a prefilled text.

A token is `wjr_` and 26 characters of Crockford base32. Its hash decides whether a run of characters is one of ours
(130 bits), so the search is generous: WhatsApp, keyboards and people change the text around and inside a token. One
grammar serves all three uses; what `find` finds, `redact` removes, and a prefilled text is accepted only if `find` finds
the token in it.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import quote, quote_plus

PREFIX = "wjr_"
LENGTH = 30
"""Characters of a token, prefix included."""
PLACEHOLDER = "{token}"
LONGEST_PREFILLED_TEXT = 140
"""Characters of a prefilled text with its token. (Meta: `message_qrdls.prefilled_message`.)"""
MAX_TEXT = 4096
"""Characters of a text that are searched for tokens; WhatsApp allows no longer text message."""
MAX_TOKENS = 16
"""Candidates that are looked up per message. An ordinary message has one."""
REDACTED = "wjr_…"


class Found(NamedTuple):
    """The candidates in a message, in canonical form (`wjr_` and 26 lower-case characters), each once."""

    tokens: tuple[str, ...]
    """Runs of 26 characters after `wjr`. One of them makes the message a registration attempt, known or not."""
    bare: tuple[str, ...] = ()
    """Runs of exactly 26 characters without a prefix. Ordinary text, unless a stored hash matches."""

    @property
    def candidates(self) -> tuple[str, ...]:
        """Everything to look up."""
        return self.tokens + self.bare


NONE_FOUND = Found(())

_BODY = "0-9A-TV-Z"
"""Crockford's alphabet with O, I and L, which are read as 0 and 1."""
_TOKEN = re.compile(
    rf"wjr(?=([_:.\\\s-]{{0,3}}((?:[{_BODY}][\s-]{{0,2}}){{25}}[{_BODY}])))", re.IGNORECASE | re.ASCII
)
"""A lookahead, so that overlapping runs are found: a chance match must not hide a token that begins inside it."""
_BARE = re.compile(rf"(?<![0-9A-Za-z])[{_BODY}]{{26}}(?![0-9A-Za-z])", re.IGNORECASE | re.ASCII)
_NEAR_MATCH = re.compile(rf"wjr[_:\\-](?:[^{_BODY}\s]{{0,2}}[{_BODY}]){{12,26}}", re.IGNORECASE | re.ASCII)
_SEPARATORS = re.compile(r"[\s-]")
_PERCENT_ENCODED = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    "\U000e0000-\U000e0fff]"
)
"""Default-ignorable characters outside the category Cf. (Unicode, DerivedCoreProperties.)"""


def find(texts: Iterable[str]) -> Found:
    """Finds the candidates in the first 4,096 characters of each text, in linear time."""
    tokens: dict[str, None] = {}
    bare: dict[str, None] = {}
    for text in texts:
        plain = _plain(text[:MAX_TEXT])
        end = 0
        for match in _prefixed(plain):
            tokens[_canonical(match[2])] = None
            end = match.end(2)
        for match in _BARE.finditer(plain):
            if match.end() != end:  # the run of the last token, once more
                bare[_canonical(match[0])] = None
    if not tokens and not bare:
        return NONE_FOUND
    kept = tuple(tokens)[:MAX_TOKENS]
    return Found(kept, tuple([one for one in bare if one not in tokens])[: MAX_TOKENS - len(kept)])


def redact(text: str, matched: Collection[str] = ()) -> str:
    """Returns the text, of any length, with each token replaced by `wjr_…` and everything else unchanged.

    Removes every run of 26 characters after `wjr`, near matches of such a run (`wjr` directly followed by one of
    `_ - : \\` and at least 12 token characters), and the bare runs in `matched` (canonical tokens that a stored hash
    matched). A run is removed in the encoding in which it stands.
    """
    plain = _plain(text)
    spans = [(match.start(), match.end(1)) for match in _prefixed(plain)]
    some_begin_no_run = plain.lower().count("wjr") > len(spans)
    if matched:
        spans += [match.span() for match in _BARE.finditer(plain) if _canonical(match[0]) in matched]
    if some_begin_no_run:
        spans += [match.span() for match in _NEAR_MATCH.finditer(_blanked(plain, _merged(spans)))]
    if not spans:
        return text
    places = None if plain is text else _places(text)
    kept: list[str] = []
    end = 0
    for first, behind in _merged(spans) if len(spans) > 1 else spans:
        start, stop = (first, behind) if places is None else (places[first][0], places[behind - 1][1])
        start = max(start, end)
        kept += [text[end:start], REDACTED]
        end = stop
    return "".join([*kept, text[end:]])


def prefilled_text_problem(text: str) -> str | None:
    """Returns why a prefilled text cannot be used, as a sentence, or None if it can.

    An accepted text is one in which `find` finds the token as the person sends it, and in any encoding of the wa.me link.
    """
    if text.count(PLACEHOLDER) != 1:
        return "The prefilled text must contain {token} exactly once."
    length = len(text) - len(PLACEHOLDER) + LENGTH
    if length > LONGEST_PREFILLED_TEXT:
        return f"The prefilled text has {length} characters with its token; the limit is {LONGEST_PREFILLED_TEXT}."
    if _CONTROL.search(text):
        return "The prefilled text must not contain line breaks or control characters."
    if _URL.search(text):
        return (
            "The prefilled text must not contain a URL or domain name, since WhatsApp turns it into a link."
        )
    if _ADJACENT.search(unicodedata.normalize("NFKC", text)):
        return "The prefilled text must not have a letter or digit directly before or after {token}."
    for token in _SAMPLES:
        filled = text.replace(PLACEHOLDER, token)
        quoted = quote(filled, safe="")
        for sent in (filled, quoted, quote(quoted, safe=""), quote_plus(filled)):
            if find([sent]).tokens != (token,):
                return "The prefilled text contains something that could be read as a second token."
    return None


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_URL = re.compile(r"://|\bwww\.|[^\W_]\.[^\W\d_]{2}", re.IGNORECASE)
"""WhatsApp makes links of bare domains too: a letter or digit, a dot, two letters."""
_ADJACENT = re.compile(r"[0-9A-Za-z]\{token\}|\{token\}[0-9A-Za-z]")
_SAMPLES = (PREFIX + "7k3mq9xt2fhz4vbn8rcp5d6gja", PREFIX + "0" * 26)


def _prefixed(plain: str) -> Iterable[re.Match[str]]:
    return _TOKEN.finditer(plain) if "wjr" in plain.lower() else ()


def _canonical(run: str) -> str:
    if len(run) > 26:
        run = _SEPARATORS.sub("", run)
    return PREFIX + run.lower().replace("o", "0").replace("i", "1").replace("l", "1")


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans in order, those that overlap as one."""
    merged: list[tuple[int, int]] = []
    for first, behind in sorted(spans):
        if merged and first < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], behind))
        else:
            merged.append((first, behind))
    return merged


def _blanked(plain: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text with spaces in these spans, which are in order."""
    pieces: list[str] = []
    end = 0
    for first, behind in spans:
        pieces += [plain[end:first], " " * (behind - first)]
        end = behind
    return "".join([*pieces, plain[end:]])


def _plain(text: str) -> str:
    """The text as it is searched: percent-decoded at most twice, then each character folded."""
    decoded, _ = _decoded(text)
    return decoded if decoded.isascii() else "".join(map(_folded, decoded))


def _places(text: str) -> list[tuple[int, int]]:
    """Where each character of `_plain(text)` comes from: the first and the next position in the text."""
    decoded, bounds = _decoded(text)
    return [
        (start, stop)
        for character, (start, stop) in zip(decoded, pairwise(bounds), strict=True)
        for _ in _folded(character)
    ]


def _decoded(text: str) -> tuple[str, Sequence[int]]:
    """The text with percent-encoding (RFC 3986, 2.1) undone at most twice, and where its characters begin in the text.

    Has one more beginning than characters: where the text ends.
    """
    decoded, bounds = _decoded_once(text, range(len(text) + 1))
    return _decoded_once(decoded, bounds)


def _decoded_once(text: str, bounds: Sequence[int]) -> tuple[str, Sequence[int]]:
    if "%" not in text:
        return text, bounds
    pieces: list[str] = []
    begins: list[int] = []
    end = 0
    for run in _PERCENT_ENCODED.finditer(text):
        pieces.append(text[end : run.start()])
        begins += bounds[end : run.start()]
        end = run.end()
        place = run.start()
        raw = bytes.fromhex(run[0].replace("%", ""))
        while place < end:
            character, size = _utf8_character(raw, (place - run.start()) // 3)
            if size:
                pieces.append(character)
                begins.append(bounds[place])
                place += 3 * size
            else:
                pieces.append(text[place : place + 3])
                begins += bounds[place : place + 3]
                place += 3
    pieces.append(text[end:])
    begins += bounds[end:]
    return "".join(pieces), begins


def _utf8_character(raw: bytes, place: int) -> tuple[str, int]:
    """The character that begins there and its length in bytes; length 0 for what is not UTF-8."""
    first = raw[place]
    size = 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    try:
        return raw[place : place + size].decode(), size
    except UnicodeDecodeError:
        return "", 0


@lru_cache(4096)
def _folded(character: str) -> str:
    """One character in compatibility form (NFKC), with ASCII digits, dashes and spaces, and without what is invisible.

    Each character by itself: a combining mark behind a token's last letter must not change that letter.
    """
    return "".join([_ascii_kin(one) for one in unicodedata.normalize("NFKC", character)])


def is_invisible(character: str) -> bool:
    """Whether a character usually shows nothing: format characters (bidi controls too) and default-ignorable ones."""
    return unicodedata.category(character) == "Cf" or _IGNORABLE.match(character) is not None


def _ascii_kin(character: str) -> str:
    if is_invisible(character):
        return ""
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category == "Pd" or character == "\N{MINUS SIGN}":
        return "-"
    if category in ("Zs", "Zl", "Zp") or character == "\x85":
        return " "
    return character
