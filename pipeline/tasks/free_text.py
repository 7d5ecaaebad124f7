"""What tasks whose replies are free text have in common."""

import re
from itertools import pairwise

SENTENCE_END = re.compile(r"[.!?\u2026][\"'\u201d\u2019)\]]*(?=\s|$)")

_WORD = re.compile(r"[a-z0-9]+")


def find_words(text: str) -> set[str]:
    """Return the distinct words of a text, in lower case: runs of the letters a to z and digits."""
    return set(_WORD.findall(text.lower()))


def trim(text: str) -> str:
    """Return a text up to the end of its last whole sentence; nothing where none ends."""
    ends = [found.end() for found in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def take_sentences(text: str, n: int) -> str:
    """Return the first sentences of a text, on one line; all of it where it has fewer."""
    line = " ".join(text.split())
    ends = [found.end() for found in SENTENCE_END.finditer(line)]
    return line[: ends[n - 1]] if len(ends) >= n else line


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, each on one line; what follows the last end is one more."""
    line = " ".join(text.split())
    ends = [0, *(found.end() for found in SENTENCE_END.finditer(line)), len(line)]
    pieces = (line[start:end].strip() for start, end in pairwise(ends))
    return [piece for piece in pieces if piece]
