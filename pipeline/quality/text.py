"""The one normal form of a text in which rows are compared, here and with benchmark items."""

import unicodedata

_APOSTROPHES = dict.fromkeys(map(ord, "'`\u00b4\u02bc\u2018\u2019"))
"""Typewriter, grave, acute, modifier letter, left and right quotation mark, all typed as apostrophes."""
_TELLING = frozenset("#%&@")
"""Punctuation to Unicode, but `C#` is not `C` and `5%` is not `5`."""


def normalise(text: str) -> str:
    """Return a text in lower case without punctuation, its words parted by one space.

    Compatible characters are one (NFKC) and case is folded. Apostrophes vanish ("what's" is "whats"); other
    punctuation parts words ("self-help" is "self help"). Symbols such as `+` and `$` stay, invisible characters go.
    """
    # The acute accent goes first: NFKC makes a space and a combining mark of it.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).casefold())
    return " ".join("".join(map(_replace, folded)).split())


def _replace(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cf":
        return ""
    if category[0] in "CP" and character not in _TELLING:
        return " "
    return character
