"""How much of an answer its retrieved passages support, claim by claim, without an LLM."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import Field

from pipeline.config import Config
from pipeline.encoder import Encoder
from pipeline.quality.overlap import find_words, recall

_SENTENCE_END = re.compile(r"[.!?\u2026]+[\"'\u201d\u2019)\]]*(?=\s|$)|\n")


class SupportConfig(Config):
    """When a claim counts as supported."""

    recall: float = Field(gt=0, le=1)
    """Share of the claim's words that one passage has."""
    cosine: float = Field(gt=-1, le=1)
    """Similarity of the claim and one passage; used where an encoder is given."""


@dataclass(frozen=True, slots=True)
class Support:
    """What of some answers is supported."""

    n_answers: int
    """Answers with passages and at least one claim."""
    n_left_out: int
    """Answers without passages, or without a claim."""
    n_claims: int
    recall: float | None
    """Share of the claims whose best passage reaches the threshold of `recall`; None without claims."""
    cosine: float | None
    """The same of `cosine`; None without claims or without an encoder."""


def split_claims(answer: str) -> list[str]:
    """Return an answer's sentences that hold a word, in order.

    A sentence ends with `.`, `!`, `?` or `…` before white space, or with the line. "Dr. Who" is two: a rule that needs
    no language's list of abbreviations, and the same for all arms.
    """
    ends = [0, *(found.end() for found in _SENTENCE_END.finditer(answer)), len(answer)]
    sentences = (answer[start:end].strip() for start, end in pairwise(ends))
    return [sentence for sentence in sentences if find_words(sentence)]


def measure_support(
    answers: Mapping[str, str],
    passages: Mapping[str, Sequence[str]],
    config: SupportConfig,
    encoder: Encoder | None = None,
) -> Support:
    """Return the share of claims that a retrieved passage supports.

    A claim is a sentence (`split_claims`). Its support by a passage is the share of its distinct words that the passage
    has (recall), or the cosine of the two texts' vectors; its support is the best over the passages of its answer's
    question, and it counts as supported from the threshold on. All claims weigh the same, so a long answer weighs more.
    Neither sees a negation or a wrong number: this screens, and does not judge.

    Args:
        answers: By id.
        passages: The texts that an answer was to rest on, by the answer's id.
        config: The thresholds.
        encoder: Of claims and passages; None leaves the cosine out.
    """
    claims = {name: split_claims(text) for name, text in answers.items() if passages.get(name)}
    claims = {name: found for name, found in claims.items() if found}
    n_claims = sum(map(len, claims.values()))
    n_by_recall = sum(
        max(recall(find_words(claim), find_words(passage)) for passage in passages[name]) >= config.recall
        for name, found in claims.items()
        for claim in found
    )
    n_by_cosine = None
    if encoder is not None:
        n_by_cosine = sum(
            int(
                (
                    (encoder.encode_documents(found) @ encoder.encode_documents(passages[name]).T).max(axis=1)
                    >= config.cosine
                ).sum()
            )
            for name, found in claims.items()
        )
    return Support(
        n_answers=len(claims),
        n_left_out=len(answers) - len(claims),
        n_claims=n_claims,
        recall=n_by_recall / n_claims if n_claims else None,
        cosine=n_by_cosine / n_claims if n_claims and n_by_cosine is not None else None,
    )
