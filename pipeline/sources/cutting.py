"""Documents cut to pieces of at most so many tokens, at the ends of sentences."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.weights import PinnedModel, locate_model, pin_model

Span = tuple[int, int]
"""Where a token's characters begin and end."""

_TITLES = ("Mr", "Mrs", "Ms", "Dr", "Prof", "St", "Gen", "Sen", "Rep", "Gov", "vs")
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Z])" + "".join(rf"(?<!\b{title})" for title in _TITLES) + r"[.!?\u2026]+"
    r"[\"'\u201d\u2019\u00bb)\]]*(?=\s+[^\sa-z])"  # closing quotes and brackets
    r"|[\u3002\uff01\uff1f]+[\u300d\u300f\u201d\u2019\uff09]*"  # the same of Chinese and Japanese
    r"|(?=\n)"
)
"""A full stop after an initial or a title, or before a small letter, ends no sentence; a line break does."""


class CuttingConfig(Config):
    """How long a document may be."""

    tokenizer: str | None
    """Hub id, folder or `pkg://…` of a model, usually the teacher's; null: documents stay whole, however long."""
    revision: str | None
    """The hub's branch, tag or commit."""
    min_tokens: int = Field(ge=0)
    """Documents of fewer tokens are dropped."""
    max_tokens: int = Field(gt=0)
    """Of a piece; special tokens don't count."""
    keep: Literal["first", "all"]
    """Whether a document is its first piece (as in SynthesizRR) or becomes as many as it takes."""

    @model_validator(mode="after")
    def _check_bounds(self) -> "CuttingConfig":
        n_shares = 2 if self.keep == "all" else 1
        if n_shares * self.min_tokens > self.max_tokens:
            needed = (
                "at least twice min_tokens, so that no rest is too short" if n_shares == 2 else "at least min_tokens"
            )
            raise ValueError(f"max_tokens {self.max_tokens} must be {needed}, which is {self.min_tokens}")
        return self


class Cut(NamedTuple):
    """What became of one text."""

    pieces: list[str]
    n_short: int
    """Pieces that were dropped because they have fewer than `min_tokens`: the whole text, or none."""


def pin_tokenizer(config: CuttingConfig) -> PinnedModel | None:
    """Return the tokenizer as it is now, so that every worker loads just that; None where nothing is cut.

    Raises:
        ConfigError: There is no such tokenizer.
    """
    if config.tokenizer is None:
        return None
    return pin_model(config.tokenizer, config.revision, marker="tokenizer.json")


class Cutter:
    """Cuts texts. The pieces are slices of the text, never made of tokens again."""

    def __init__(self, config: CuttingConfig, tokenizer: PinnedModel | None) -> None:
        """Load the tokenizer.

        Args:
            config: How to cut.
            tokenizer: Of `pin_tokenizer`.

        Raises:
            ConfigError: The tokenizer can't say where in the text its tokens are.
        """
        self._config = config
        self._tokenizer = None if tokenizer is None else _load(tokenizer)

    def cut(self, text: str) -> Cut:
        """Return a text's pieces, in order, without outer white space.

        A piece ends with the last sentence that fits; where none ends within the window, with the last word; a word
        longer than the window is cut through. Alone it has at most `max_tokens` tokens. With `keep: all`, what is left
        for the next piece is never less than `min_tokens`, so that nothing of the text is lost.
        """
        return self.cut_all([text])[0]

    def cut_all(self, texts: Sequence[str]) -> list[Cut]:
        """Return what `cut` does of each text, with one call of the tokenizer for all that need no second look."""
        if self._tokenizer is None:
            return [Cut([text.strip()], 0) if text.strip() else Cut([], 1) for text in texts]
        return [self._cut(text, spans) for text, spans in zip(texts, self._find_tokens(texts), strict=True)]

    def _cut(self, text: str, spans: Sequence[Span]) -> Cut:
        if len(spans) < self._config.min_tokens or not text.strip():
            return Cut([], 1)
        limit = self._config.max_tokens
        pieces = self._take(text, spans, limit)
        while limit > 1 and (excess := self._measure_excess(pieces)) > 0:
            limit = max(1, limit - excess)
            pieces = self._take(text, spans, limit)
        return Cut([piece.text for piece in pieces if piece.text], 0)

    def _take(self, text: str, spans: Sequence[Span], limit: int) -> list["_Piece"]:
        if self._config.keep == "first":
            return [next(_part(text, spans, limit, min(self._config.min_tokens, limit), rest=0))]
        min_tokens = min(self._config.min_tokens, limit // 2)
        return list(_part(text, spans, limit, min_tokens, rest=min_tokens))

    def _measure_excess(self, pieces: Sequence["_Piece"]) -> int:
        """Return how many tokens too many the longest piece has when it stands alone.

        Tokens depend on what stands around them: half a word is other tokens than the word's, and the space before a
        word is often part of its first. Only a text's head, ended between words, has the tokens that it has there.
        """
        unsure = [piece.text for piece in pieces if not piece.is_head]
        return max((len(spans) for spans in self._find_tokens(unsure)), default=0) - self._config.max_tokens

    def _find_tokens(self, texts: Sequence[str]) -> list[list[Span]]:
        if not texts:
            return []
        assert self._tokenizer is not None
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # or it warns of texts longer than the model takes
        )
        spans: list[list[Span]] = encoded["offset_mapping"]
        return spans


class _Piece(NamedTuple):
    text: str
    is_head: bool
    """Whether it begins with the text and ends between words."""


def _part(text: str, spans: Sequence[Span], limit: int, min_tokens: int, rest: int) -> Iterator[_Piece]:
    """Yield the pieces of a text, one at least.

    Args:
        text: The text.
        spans: Of its tokens, in order.
        limit: How many tokens a piece may have.
        min_tokens: How many it shall have, so that it does not end with a heading.
        rest: How many must be left for the piece after it.
    """
    ends = [found.end() for found in _SENTENCE_END.finditer(text)] if len(spans) > limit else []
    token, start, is_head = 0, _skip_space(text, 0), True
    while token + limit < len(spans):
        beyond = min(token + limit, len(spans) - rest)
        # A character may be several tokens; then the next token begins before this one ends.
        cap = max(min(spans[beyond - 1][1], spans[beyond][0]), start + 1)
        least = max(spans[token + min_tokens - 1][1] if min_tokens else 0, start + 1)
        end = _find_end(text, ends, least, cap)
        token = bisect_left(spans, end, lo=token + 1, key=_begin)
        yield _Piece(text[start:end].strip(), is_head and text[end : end + 1].isspace())
        start, is_head = _skip_space(text, end), False
    yield _Piece(text[start:].strip(), is_head)


def _find_end(text: str, ends: Sequence[int], least: int, cap: int) -> int:
    """Return where a piece ends: at most at `cap`, and not before `least` unless that is beyond."""
    position = bisect_right(ends, cap)
    if position and ends[position - 1] >= least:
        return ends[position - 1]
    for end in range(cap, least - 1, -1):
        if text[end : end + 1].isspace():
            return end
    return cap


def _skip_space(text: str, start: int) -> int:
    while text[start : start + 1].isspace():
        start += 1
    return start


def _begin(span: Span) -> int:
    return span[0]


def _load(pinned: PinnedModel) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(locate_model(pinned.location), revision=pinned.revision)
    if not tokenizer.is_fast:
        raise ConfigError(
            f"the tokenizer {pinned.location} does not say where in a text its tokens are; name one that has a "
            "tokenizer.json"
        )
    return tokenizer
