"""Small encoders with random weights, saved as users save theirs, for tests of what trains and loads them."""

import re
import string
from pathlib import Path

SENTENCES = (
    "How much does it cost to repair a bike in Leeds on a weekday?",
    "what about it",
    "Which one is best for people who start gardening in March?",
    "best one near me",
    "Rules for parking a van overnight in Lisbon, 2024",
    "Is that allowed?",
)
"""Their words are tokens of the DistilBERT; everything else is spelled, as it is by the RoBERTa."""


def build_tiny(kind: str, folder: Path | str, seed: int = 0) -> Path:
    """Save an encoder with random weights and its tokenizer.

    Args:
        kind: `distilbert` or `roberta`.
        folder: Where to save; created if missing.
        seed: Draws the weights.

    Returns:
        The folder.
    """
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        DistilBertConfig,
        DistilBertModel,
        DistilBertTokenizer,
        RobertaConfig,
        RobertaModel,
        RobertaTokenizer,
    )

    # Written down rather than learned: learning a vocabulary gives another one each time.
    if kind == "distilbert":
        characters = string.ascii_lowercase + string.digits + string.punctuation
        words = sorted(set(re.findall(r"\w+", " ".join(SENTENCES).lower())))
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters), *words]
        tokenizer = DistilBertTokenizer(vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))})
    elif kind == "roberta":
        pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
        tokenizer = RobertaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    else:
        raise ValueError(f"no tiny {kind!r}; there are distilbert and roberta")
    shared = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 520}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "distilbert":
            model = DistilBertModel(DistilBertConfig(dim=32, hidden_dim=64, n_layers=2, n_heads=2, **shared))
        else:
            sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
            ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            model = RobertaModel(RobertaConfig(type_vocab_size=1, **sizes, **ends, **shared))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
