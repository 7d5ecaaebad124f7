"""What two lists of answers share, and what answers share with their questions."""

import re
from collections.abc import Sequence
from statistics import mean

_WORD = re.compile(r"[a-z0-9]+")
"""For English. It gives all known values of Sy-SE-PQA's released answers; runs of any word characters miss one."""


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Return sacrebleu's corpus BLEU of texts against one reference each, from 0 to 100.

    Papineni et al. (ACL 2002); 13a tokens, exponential smoothing (Post, WMT 2018). Between two sets of answers to the
    same questions, lower is more diverse. It is not symmetric.

    Raises:
        ValueError: The lists differ in length, or are empty.
    """
    import sacrebleu

    _check_pairs(hypotheses, references)
    return float(sacrebleu.corpus_bleu(list(hypotheses), [list(references)]).score)


def corpus_chrf(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Return sacrebleu's chrF2 of texts against one reference each, from 0 to 100; lower is more diverse.

    An F-measure of character 6-grams and shorter. Popović (WMT 2015).

    Raises:
        ValueError: The lists differ in length, or are empty.
    """
    import sacrebleu

    _check_pairs(hypotheses, references)
    return float(sacrebleu.corpus_chrf(list(hypotheses), [list(references)]).score)


def lexical_overlap(questions: Sequence[str], answers: Sequence[str]) -> float:
    """Return the mean share of a question's distinct words that its answer has too, from 0 to 1.

    Words are runs of the letters a to z and digits, in lower case: a measure for English. Longer answers overlap more,
    so compare answers of about one length. A question without words counts as 0.

    Raises:
        ValueError: The lists differ in length, or are empty.
    """
    _check_pairs(questions, answers)
    return mean(
        recall(find_words(question), find_words(answer)) for question, answer in zip(questions, answers, strict=True)
    )


def recall(wanted: set[str], found: set[str]) -> float:
    """Return the share of the wanted words that are found, from 0 to 1; 0 where none is wanted."""
    return len(wanted & found) / len(wanted) if wanted else 0.0


def find_words(text: str) -> set[str]:
    """Return the distinct words of a text, in lower case: runs of the letters a to z and digits."""
    return set(_WORD.findall(text.lower()))


def _check_pairs(left: Sequence[str], right: Sequence[str]) -> None:
    if not left or len(left) != len(right):
        raise ValueError(f"two lists of as many texts are needed, given {len(left)} and {len(right)}")
