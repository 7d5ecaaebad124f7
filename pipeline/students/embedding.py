"""An untrained encoder's embeddings, for the prototype baseline."""

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.weights import PinnedModel, locate_model

_BATCH_SIZE = 64


def load_encoder(model: PinnedModel) -> Callable[[Sequence[str]], np.ndarray]:
    """Return a function from texts to the embeddings of their first tokens, (n_texts, n_dimensions)."""
    import torch
    from transformers import AutoModel, AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    location = locate_model(model.location)
    tokenizer = AutoTokenizer.from_pretrained(location, revision=model.revision)
    encoder = AutoModel.from_pretrained(location, revision=model.revision, dtype=torch.float32).eval()

    def encode(texts: Sequence[str]) -> np.ndarray:
        batches = []
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH_SIZE):
                batch = list(texts[start : start + _BATCH_SIZE])
                encoded = tokenizer(batch, padding=True, truncation=True, max_length=512, return_tensors="pt")
                batches.append(encoder(**encoded).last_hidden_state[:, 0].numpy())
        return np.concatenate(batches)

    return encode
