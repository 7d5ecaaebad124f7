"""Small encoders with random weights, saved as users save theirs, for tests of what trains and loads them."""

from pathlib import Path

SENTENCES = (
    "How much does it cost to repair a bike in Leeds on a weekday?",
    "what about it",
    "Which one is best for people who start gardening in March?",
    "best one near me",
    "Rules for parking a van overnight in Lisbon, 2024",
    "Is that allowed?",
)
"""What the vocabularies are learned from."""


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
    from transformers import (
        DistilBertConfig,
        DistilBertModel,
        DistilBertTokenizer,
        RobertaConfig,
        RobertaModel,
        RobertaTokenizer,
    )

    untrained = {"distilbert": DistilBertTokenizer, "roberta": RobertaTokenizer}[kind]()
    tokenizer = untrained.train_new_from_iterator([SENTENCES], vocab_size=400, show_progress=False)
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
