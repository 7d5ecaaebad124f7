"""What the answers of several arms to the same questions look like beside each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import mean

from pipeline.errors import NotMeasuredError
from pipeline.quality.overlap import corpus_bleu, corpus_chrf, lexical_overlap
from pipeline.quality.self_bleu import self_bleu
from pipeline.quality.tokens import tokenise

MAX_N = 5
"""Of Self-BLEU, as SynthesizRR reports it (arXiv 2405.10040)."""


@dataclass(frozen=True, slots=True)
class Pair:
    """How alike two arms' answers are; lower is more diverse."""

    first: str
    """The hypotheses: neither measure is symmetric."""
    second: str
    bleu: float
    chrf: float


@dataclass(frozen=True, slots=True)
class ArmTexts:
    """What one arm's answers are like."""

    overlap: float
    """Lexical overlap with the questions."""
    overlap_at_equal_length: float
    """The same of answers cut to the length of the question's shortest."""
    mean_words: float
    max_words: int
    self_bleu: float | None
    """Self-BLEU-5 of the answers; lower is more diverse; None of a single one."""


@dataclass(frozen=True, slots=True)
class TextComparison:
    """All measures on the questions that every arm answers."""

    n: int
    n_left_out: int
    """Questions that some arm does not answer."""
    arms: Mapping[str, ArmTexts]
    pairs: tuple[Pair, ...]


def compare_texts(arms: Mapping[str, Mapping[str, str]], questions: Mapping[str, str]) -> TextComparison:
    """Return what arms' answers share with each other and with their questions.

    Longer answers overlap more with anything. So overlap is also taken at equal length: on each question, the first k
    words of each answer, k being the number of words of the shortest answer that a compared arm gives to it. Words are
    parted by white space.

    Args:
        arms: Answers by arm and question id; the order of arms says which of a pair comes first.
        questions: By id.

    Raises:
        NotMeasuredError: No question is answered by all arms.
    """
    answered = [set(of_arm) for of_arm in arms.values()]
    shared = sorted(set.intersection(*answered) & questions.keys()) if answered else []
    if not shared:
        raise NotMeasuredError(f"no question is answered by all of {', '.join(arms) or 'no arms'}; nothing compares")
    asked = [questions[question_id] for question_id in shared]
    texts = {arm: [of_arm[question_id] for question_id in shared] for arm, of_arm in arms.items()}
    shortest = [min(len(text.split()) for text in on_one) for on_one in zip(*texts.values(), strict=True)]
    return TextComparison(
        n=len(shared),
        n_left_out=len(set.union(*answered) - set(shared)),
        arms={
            arm: ArmTexts(
                overlap=lexical_overlap(asked, own),
                overlap_at_equal_length=lexical_overlap(
                    asked, [" ".join(text.split()[:k]) for text, k in zip(own, shortest, strict=True)]
                ),
                mean_words=mean(len(text.split()) for text in own),
                max_words=max(len(text.split()) for text in own),
                self_bleu=self_bleu(tokenise(own, "words"), MAX_N)[-1] if len(own) > 1 else None,
            )
            for arm, own in texts.items()
        },
        pairs=tuple(
            Pair(first, second, corpus_bleu(texts[first], texts[second]), corpus_chrf(texts[first], texts[second]))
            for first, second in combinations(texts, 2)
        ),
    )
