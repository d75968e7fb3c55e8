"""Finding the token in what a person sent, and taking it out of what is kept."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

_MAX_TEXT = 4096


class Found(NamedTuple):
    """The tokens in a text, each once, in canonical form; and whether something looks like one but is not."""

    tokens: tuple[str, ...]
    malformed: bool

    @property
    def attempt(self) -> bool:
        """Whether the message is a registration attempt at all."""
        return self.malformed or bool(self.tokens)


_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)
_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u00ad", "-"))
_TOKEN = re.compile(
    r"(?<![0-9A-Za-z])wjr[ \t\r\n_-]{0,3}((?:[0-9A-TV-Z][ \t\r\n-]?){25}[0-9A-TV-Z])(?![0-9A-Za-z])",
    re.IGNORECASE | re.ASCII,
)
_NEARLY = re.compile(r"(?<![0-9A-Za-z])wjr[_-][0-9A-Za-z-]{8,}", re.IGNORECASE | re.ASCII)
_SEPARATORS = re.compile(r"[ \t\r\n-]")
_CROCKFORD = str.maketrans("oil", "011")


def find_tokens(texts: Iterable[str]) -> Found:
    """Tokens anywhere in what a person sent, however WhatsApp or the person bent them.

    Upper case, O for 0, I or L for 1, spaces, line breaks and hyphens inside, invisible marks, full-width letters, and
    any words around are all the same token. Linear in the text, of which the first 4096 characters count.
    """
    tokens: dict[str, None] = {}
    malformed = False
    for text in texts:
        found, others = _runs(_plain(text[:_MAX_TEXT]))
        for match in found:
            tokens["wjr_" + _SEPARATORS.sub("", match[1]).lower().translate(_CROCKFORD)] = None
        malformed = malformed or bool(others)
    return Found(tuple(tokens), malformed)


def redact_tokens(text: str) -> str:
    """The text, of any length, with every token-shaped run taken out, and all else as it was."""
    tokens, others = _runs(_plain(text))
    if not tokens and not others:
        return text
    places: Sequence[int] = range(len(text))
    if not text.isascii():
        places = [place for place, character in enumerate(text) for _ in _fold(character)]
    runs = [match.span() for match in (*tokens, *others)]
    kept = []
    end = 0
    for first, behind in sorted(runs):
        kept += [text[end : places[first]], "wjr_…"]
        end = places[behind - 1] + 1
    return "".join([*kept, text[end:]])


def _runs(plain: str) -> tuple[list[re.Match[str]], list[re.Match[str]]]:
    """The tokens in a folded text, and whatever else looks like one; for neither is there room without its prefix."""
    prefixes = plain.lower().count("wjr")
    tokens = list(_TOKEN.finditer(plain)) if prefixes else []
    if prefixes == len(tokens):
        return tokens, []
    blanked = _TOKEN.sub(lambda match: " " * len(match[0]), plain)
    return tokens, list(_NEARLY.finditer(blanked))


def _plain(text: str) -> str:
    return text if text.isascii() else "".join(map(_fold, text))


@lru_cache(4096)
def _fold(character: str) -> str:
    """One character by itself: a mark that follows a token's last letter must not melt into it, as NFKC would have it."""
    folded = _INVISIBLE.sub("", unicodedata.normalize("NFKC", character)).translate(_DASHES)
    return "".join([one for one in folded if unicodedata.category(one) != "Cf"])
