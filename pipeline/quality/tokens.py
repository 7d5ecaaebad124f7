"""The tokens that all measures of a data set count."""

import re
from collections.abc import Sequence
from typing import Literal

Tokeniser = Literal["words", "spacy"]
TOKENISERS: dict[Tokeniser, str] = {
    "words": r"runs of word characters, and each other character but whitespace, by itself (\w+|[^\w\s]); as written",
    "spacy": "spaCy's rules for English, as written; runs of whitespace are tokens too, as in SynthesizRR",
}
"""What each makes of a text, in words."""
_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")


def tokenise(texts: Sequence[str], tokeniser: Tokeniser) -> list[list[str]]:
    """Return each text's tokens; their case is kept.

    Args:
        texts: To be cut.
        tokeniser: `spacy` needs the package. The rules are those of every English pipeline (`en_core_web_lg` included)
            and need no model.
    """
    if tokeniser == "words":
        return [_WORD_OR_MARK.findall(text) for text in texts]
    import spacy

    return [[token.text for token in text] for text in spacy.blank("en").tokenizer.pipe(texts)]
