"""Re-rankers: what a fit minimises, what is measured of it, and that it is what it says after saving and again."""

import json
import multiprocessing
import socket

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import validate
from pipeline.encoder import EncoderConfig, load_encoder
from pipeline.errors import ConfigError
from pipeline.records import Example
from pipeline.students.config import RerankerConfig
from pipeline.students.fine_tuning import Hooks
from pipeline.students.fits import plan_fits
from pipeline.students.reranker import (
    Pair,
    fit_reranker,
    load_reranker,
    make_margin_loss,
    measure_ranking,
    to_pairs,
)
from pipeline.weights import pin_model
from tests.models import build_tiny

SETTINGS = {
    "kind": "reranker",
    "label": "tiny",
    "model": "",
    "revision": None,
    "selected_on": (),
    "max_length": 16,
    "epochs": 2,
    "patience": 99,
    "learning_rate": 1e-2,
    "batch_size": 8,
    "gradient_accumulation": 1,
    "gradient_checkpointing": False,
    "weight_decay": 0.01,
    "adam_epsilon": 1e-8,
    "schedule": "linear",
    "warmup_share": 0.1,
    "max_grad_norm": 1.0,
    "margin": 0.5,
    "hard_negatives": 0,
    "dropout": True,
    "folds": 0,
    "seeds": (1,),
    "precision": "fp32",
    "eval_batch_size": 16,
}


def configure(**changes) -> RerankerConfig:
    return validate(RerankerConfig, {**SETTINGS, **changes})


@pytest.fixture(autouse=True)
def _one_thread():
    """The same sums everywhere, and no quarrel over two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- settings and rows


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="batch_size: 1 leaves a query no negative"):
        configure(batch_size=1)
    assert configure(batch_size=1, hard_negatives=1).batch_size == 1
    with pytest.raises(ConfigError, match="length_bucketing: unknown key"):
        configure(length_bucketing=True)


def make_row(i, query="a query", text="a passage", negatives=None, group="g") -> Example:
    extras = {} if query is None else {"query": query}
    extras |= {} if negatives is None else {"hard_negatives": negatives}
    return Example(f"row{i}", "", group, text, "", extras)


def test_rows_become_pairs_with_as_many_hard_negatives_as_are_asked_for():
    rows = [make_row(0, "q", "p", json.dumps(["n1", "n2", "n3"]))]
    assert to_pairs(rows, 0) == [Pair("q", "p")]
    assert to_pairs(rows, 2) == [Pair("q", "p", ("n1", "n2"))]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (make_row(7, query=None), r"row row7: the query, extras\['query'\], is missing or empty"),
        (make_row(7, query=" \n"), r"row row7: the query, extras\['query'\], is missing or empty"),
        (make_row(7, text=""), "row row7: the passage, its text, is missing or empty"),
        (make_row(7, negatives=None), "row row7: 2 hard negatives are asked for, it has 0"),
        (make_row(7, negatives='["n"]'), "row row7: 2 hard negatives are asked for, it has 1"),
        (make_row(7, negatives="n1, n2"), r"row row7: extras\['hard_negatives'\] is not a JSON list of texts.*n1, n2"),
        (make_row(7, negatives='["n", ""]'), "row row7: .* is not a JSON list of texts"),
        (make_row(7, negatives='{"n": "m", "o": "p"}'), "row row7: .* is not a JSON list of texts"),
    ],
)
def test_a_row_that_is_no_pair_is_refused_by_its_id(row, message):
    with pytest.raises(ConfigError, match=message):
        to_pairs([make_row(0, negatives='["n", "m"]'), row], 2)


@given(st.lists(st.integers(1, 6), min_size=4, max_size=12), st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_folds_of_pairs_never_split_a_group_whatever_the_labels(group_sizes, seed):
    groups = [f"g{g}" for g, size in enumerate(group_sizes) for _ in range(size)]
    rows = [make_row(i, group=group) for i, group in enumerate(groups)]
    rows[0] = Example("row0", "", groups[0], "a passage", "a label that no other row has", {"query": "q"})
    *folds, final = plan_fits(rows, configure(folds=4, seeds=(5,)), seed)
    assert sorted(i for fold in folds for i in fold.held_out) == list(range(len(rows)))
    for fold in folds:
        assert fold.held_out
        assert not {groups[i] for i in fold.train} & {groups[i] for i in fold.held_out}
    assert final.train == tuple(range(len(rows)))


def test_folds_of_pairs_are_drawn_by_the_seed_and_need_as_many_groups():
    rows = [make_row(i, group=f"g{i // 2}") for i in range(24)]
    one, again, other = (plan_fits(rows, configure(folds=3), seed)[0].held_out for seed in (1, 1, 2))
    assert one == again != other
    assert len(one) == 8
    with pytest.raises(ConfigError, match=r"5 folds need at least 5 groups .* but one has 3"):
        plan_fits([make_row(i, group=f"g{i % 3}") for i in range(24)], configure(folds=5), 0)


# --- the loss


def compute_loss(queries, passages, negatives=(), labels=None, margin=0.5, asked=None) -> float:
    """Return the loss of given vectors.

    Args:
        queries: Vectors.
        passages: The queries' own.
        negatives: Hard ones of all queries, the best first.
        labels: Numbers of the own passages' texts, then of the hard negatives'; None: all differ.
        margin: In cosine.
        asked: Numbers of the queries' texts; None: all differ.
    """
    columns = [torch.tensor(np.asarray(vectors), dtype=torch.float64) for vectors in (queries, passages, *negatives)]
    numbers = np.arange(len(queries) * (len(columns) - 1)).reshape(-1, len(queries)).T if labels is None else labels
    loss = make_margin_loss(lambda features: {"sentence_embedding": features["vectors"]}, margin)
    numbers = np.column_stack([np.arange(len(queries)) if asked is None else asked, numbers])
    return loss([{"vectors": column} for column in columns], torch.tensor(numbers)).item()


def on_circle(*degrees):
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def test_the_loss_worked_by_hand():
    """Queries at 0, 90 and 180 degrees; passages at 0, 60 and 120.

    q1: own 1; others cos 60 = .5 and cos 120 = -.5: violations .5 - 1 + .5 = 0 and -1, cut to 0.
    q2: own cos 30 = .866; others cos 90 = 0 and cos 30 = .866: -.366, cut to 0, and .5.
    q3: own cos 60 = .5; others cos 180 = -1 and cos 120 = -.5: -1 and -.5, cut to 0.
    """
    queries, passages = on_circle(0, 90, 180), on_circle(0, 60, 120)
    assert compute_loss(queries, passages) == pytest.approx(0.5 / 6, abs=1e-6)
    # A margin of 1 adds .5 to each before the cut: .5, 0; .134, 1; 0, 0.
    assert compute_loss(queries, passages, margin=1.0) == pytest.approx((0.5 + 1 - np.sqrt(3) / 2 + 1) / 6, abs=1e-6)
    # Passages 2 and 3 are one text: q2 and q3 lose a pair each, and q2's was all there was.
    assert compute_loss(queries, passages, labels=[[0], [1], [1]]) == pytest.approx(0, abs=1e-6)
    # q2 and q3 are one text: under a margin of 1 their pairs with passage 1 alone are left, .134 and 0.
    expected = (0.5 + 1 - np.sqrt(3) / 2) / 4
    assert compute_loss(queries, passages, margin=1.0, asked=[0, 1, 1]) == pytest.approx(expected, abs=1e-6)
    # Hard negatives at 0, 90 and 90: .5, .5 - .866 + 1 = .634 and .5 - .5 + 0 = 0 over 9 pairs.
    hard = [on_circle(0, 90, 90)]
    assert compute_loss(queries, passages, hard) == pytest.approx((0.5 + 0.5 + 1.5 - np.sqrt(3) / 2) / 9, abs=1e-6)
    # q1's is its own passage's text.
    labels = [[0, 0], [1, 3], [2, 4]]
    expected = (0.5 + 1.5 - np.sqrt(3) / 2) / 8
    assert compute_loss(queries, passages, hard, labels) == pytest.approx(expected, abs=1e-6)


@given(st.integers(1, 6), st.integers(0, 3), st.integers(1, 6), st.sampled_from([0.1, 0.5, 1.0]), st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_the_loss_is_the_mean_over_all_pairs_that_a_loop_finds(n, n_hard, n_texts, margin, seed):
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(2 + n_hard, n, 5))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    queries, passages, *negatives = vectors
    labels, asked = draw.integers(n_texts, size=(n, 1 + n_hard)), draw.integers(n_texts, size=n)
    found = []
    for i in range(n):
        own = float(np.dot(queries[i], passages[i]))
        others = [passages[j] for j in range(n) if labels[j, 0] != labels[i, 0] and asked[j] != asked[i]]
        others += [negatives[k][i] for k in range(n_hard) if labels[i, 1 + k] != labels[i, 0]]
        found += [max(0.0, margin - own + float(np.dot(queries[i], other))) for other in others]
    expected = sum(found) / len(found) if found else 0.0
    assert compute_loss(queries, passages, negatives, labels, margin, asked) == pytest.approx(expected, abs=1e-6)


def test_a_batch_without_negatives_has_no_loss_and_no_gradient():
    vectors = torch.eye(2, requires_grad=True)
    loss = make_margin_loss(lambda features: {"sentence_embedding": features["vectors"]}, 0.5)
    loss([{"vectors": vectors}, {"vectors": vectors}], torch.tensor([[0, 0], [1, 0]])).backward()
    assert vectors.grad.tolist() == [[0, 0], [0, 0]]


# --- what is measured of held-out pairs


def test_the_measures_of_a_ranking_worked_by_hand():
    """Passages at 0, 60 and 120 degrees; queries at 0 (own first), 30 (a tie of two: second) and 10 (own last)."""
    measured = measure_ranking(on_circle(0, 30, 10), on_circle(0, 60, 120), np.arange(3), np.arange(3), 0.5)
    assert measured["MRR@10"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    cosines = np.cos(np.radians([[0, 60, 120], [30, 30, 90], [10, 50, 110]]))
    violations = [max(0, 0.5 - row[own] + row[j]) for own, row in enumerate(cosines) for j in range(3) if j != own]
    assert measured["loss"] == pytest.approx(sum(violations) / 6)
    # The first and the third are one query, so that neither's passage stands before the other's.
    measured = measure_ranking(on_circle(0, 30, 10), on_circle(0, 60, 120), np.array([0, 1, 0]), np.arange(3), 0.5)
    assert measured["MRR@10"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert measured["loss"] == pytest.approx((violations[0] + violations[2] + violations[3] + violations[5]) / 4)


def test_measures_are_those_of_sentence_transformers_evaluator():
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    draw = np.random.default_rng(3)
    vectors = draw.normal(size=(400, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries, passages = vectors[:300], vectors[300:]
    own = draw.integers(100, size=300)

    class Given(SentenceTransformer):
        def encode(self, texts, **_):
            return torch.tensor(vectors[[int(text) for text in texts]])

        encode_query = encode_document = encode

    names = [str(i) for i in range(400)]
    evaluator = InformationRetrievalEvaluator(
        {name: name for name in names[:300]},
        {name: name for name in names[300:]},
        {name: {names[300 + own[i]]} for i, name in enumerate(names[:300])},
        mrr_at_k=[10],
        write_csv=False,
    )
    reference = evaluator(Given(modules=[torch.nn.Identity()], device="cpu", similarity_fn_name="cosine"))
    measured = measure_ranking(queries, passages, np.arange(300), own, 0.5)
    assert measured["MRR@10"] == pytest.approx(reference["cosine_mrr@10"], abs=1e-6)


# --- fits of small models


SPELLING = dict(zip("abcdefgh", "stuvwxyz", strict=True))
"""A query's letters stand for others in its passage: no encoder ranks them before it has learned which."""
QUERIES = [f"{a} {b}" for a in SPELLING for b in SPELLING if a != b]


def make_pair(query) -> Pair:
    passage = " is ".join(SPELLING[letter] for letter in query.split())
    return Pair(query, passage, (passage[:-1] + "s",))


PAIRS = [make_pair(query) for query in QUERIES[::2] + QUERIES[1::4]]
HELD_OUT = [make_pair(query) for query in QUERIES[3::4]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build_tiny("distilbert", tmp_path_factory.mktemp("tiny"))


def fit(model, save_to=None, held_out=(), seed=1, epochs=2, hooks=Hooks(), **changes):  # noqa: B008
    config = configure(model=str(model), **changes)
    return fit_reranker(PAIRS, held_out, config, seed=seed, epochs=epochs, use_gpu=False, save_to=save_to, hooks=hooks)


def encode(folder, texts=tuple(pair.passage for pair in PAIRS), batch_size=7):
    return load_reranker(folder, use_gpu=False).encode(texts, batch_size)


@pytest.fixture(scope="module")
def fitted(tiny, tmp_path_factory):
    """One fit, shared by the tests that only look at it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("fitted")
    return folder, fit(tiny, folder, HELD_OUT, epochs=6)


@pytest.fixture(scope="module")
def short(tiny, tmp_path_factory):
    """The folder of a fit of one epoch, under the settings as they are."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("short")
    fit(tiny, folder, epochs=1)
    return folder


def test_a_fit_learns_to_rank_the_own_passage_first(tiny, fitted):
    _, result = fitted
    assert result.measure == "MRR@10"
    assert (len(PAIRS), len(HELD_OUT), result.n_steps) == (42, 14, 6 * 6)
    chance = np.mean([1 / rank if rank <= 10 else 0 for rank in range(1, 15)])
    untrained = fit(tiny, None, HELD_OUT, epochs=1, learning_rate=1e-12).epochs[-1].held_out_score
    assert untrained < 2 * chance
    assert result.epochs[-1].held_out_score > 3 * chance
    assert result.epochs[-1].train_loss < result.epochs[0].train_loss
    assert result.epochs[-1].held_out_loss < result.epochs[0].held_out_loss


def test_the_saved_folder_is_a_model_of_sentence_transformers_with_the_vectors_that_were_measured(fitted):
    from sentence_transformers import SentenceTransformer

    folder, result = fitted
    texts = [text for pair in HELD_OUT for text in (pair.query, pair.passage)]
    vectors = SentenceTransformer(str(folder), device="cpu").encode(texts)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(texts)), abs=1e-5)
    for batch_size in (1, 50):
        assert encode(folder, texts, batch_size) == pytest.approx(vectors, abs=1e-5)
    settings = {"revision": None, "pooling": "auto", "max_tokens": 16, "query_prefix": "", "document_prefix": ""}
    config = EncoderConfig(model=str(folder), precision="fp32", batch_size=8, **settings)
    searching = load_encoder(pin_model(str(folder), None), config, "cpu")
    assert searching.encode_documents(texts) == pytest.approx(vectors, abs=1e-5), "a retriever's encoder has the same"
    each = np.arange(len(HELD_OUT))
    measured = measure_ranking(vectors[::2], vectors[1::2], each, each, 0.5)
    assert measured["MRR@10"] == pytest.approx(result.epochs[-1].held_out_score)
    assert measured["loss"] == pytest.approx(result.epochs[-1].held_out_loss, rel=1e-4)
    assert not (folder / "README.md").exists(), "the library's card quotes rows"


def test_vectors_are_the_means_of_all_tokens_cut_to_the_given_length(fitted):
    from transformers import AutoModel, AutoTokenizer

    folder, _ = fitted
    long = "b is a " * 20
    encoded = AutoTokenizer.from_pretrained(folder)(long, truncation=True, max_length=16, return_tensors="pt")
    assert encoded["input_ids"].shape == (1, 16)
    with torch.inference_mode():
        mean = AutoModel.from_pretrained(folder).eval()(**encoded).last_hidden_state[0].mean(dim=0)
    # Beside a shorter text, so that padding has to be left out of its mean.
    vectors = encode(folder, ["b", long], batch_size=2)
    assert vectors[1] == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)
    assert vectors[0] == pytest.approx(encode(folder, ["b"])[0], abs=1e-5)


def test_one_seed_is_one_model_and_another_is_another(tiny, short, tmp_path):
    for name, seed in (("again", 1), ("other", 2)):
        fit(tiny, tmp_path / name, seed=seed, epochs=1)
    assert (encode(tmp_path / "again") == encode(short)).all()
    assert not np.allclose(encode(tmp_path / "other"), encode(short), atol=1e-4)


def test_answers_to_one_question_do_not_punish_each_other(tiny):
    pairs, config = [Pair("a b", "s is t"), Pair("a b", "t is s")], configure(model=str(tiny), batch_size=2)
    result = fit_reranker(pairs, pairs, config, seed=1, epochs=1, use_gpu=False, save_to=None)
    (epoch,) = result.epochs
    assert (epoch.train_loss, epoch.held_out_loss, epoch.held_out_score) == (0, 0, 1)


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_a_fit_that_was_stopped_goes_on_to_the_same_weights(tiny, tmp_path, schedule):
    from shutil import copytree

    kept = tmp_path / "kept"

    def keep(folder, epoch):
        if epoch.epoch == 1:
            copytree(folder, kept)

    settings = {"held_out": HELD_OUT[:8], "epochs": 3, "schedule": schedule}
    whole = fit(tiny, tmp_path / "whole", hooks=Hooks(on_checkpoint=keep), **settings)
    rest = fit(tiny, tmp_path / "rest", hooks=Hooks(resume_from=kept), **settings)
    assert (encode(tmp_path / "rest") == encode(tmp_path / "whole")).all()
    assert [e.held_out_score for e in rest.epochs] == [e.held_out_score for e in whole.epochs]
    assert [e.train_loss for e in rest.epochs] == [e.train_loss for e in whole.epochs]


@pytest.mark.parametrize(
    "change",
    [{"schedule": "constant"}, {"dropout": False}, {"hard_negatives": 1}, {"margin": 0.1}, {"max_grad_norm": None}],
    ids=str,
)
def test_a_setting_changes_what_is_learned(tiny, short, tmp_path, change):
    fit(tiny, tmp_path, epochs=1, **change)
    assert not np.allclose(encode(tmp_path), encode(short), atol=1e-5)


def test_gradient_checkpointing_changes_nothing_but_memory(tiny, tmp_path):
    for name, is_on in (("on", True), ("off", False)):
        fit(tiny, tmp_path / name, epochs=1, gradient_checkpointing=is_on, dropout=False)
    assert encode(tmp_path / "on") == pytest.approx(encode(tmp_path / "off"), abs=1e-5)


# --- several workers


def run_worker(rank, port, batches, conn):
    """Send the loss, and the gradients of a worker's own vectors and of a weight that all workers share."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    conn.send(compute_gradients(*batches[rank]))
    torch.distributed.destroy_process_group()


def compute_gradients(queries, passages, negatives, labels):
    weight = torch.eye(queries.shape[1], dtype=torch.float32, requires_grad=True)
    loss = make_margin_loss(lambda features: {"sentence_embedding": features["vectors"] @ weight}, 0.5)
    columns = [{"vectors": torch.tensor(vectors)} for vectors in (queries, passages, negatives)]
    value = loss(columns, torch.tensor(labels))
    value.backward()
    return value.item(), weight.grad.numpy()


@pytest.mark.crash
def test_two_workers_have_the_loss_and_the_gradient_of_one_with_all_their_rows():
    """Uneven numbers of equal texts on the two, so that the mean of their own means would be another.

    A query of the first has another passage on the second.
    """
    draw = np.random.default_rng(5)
    queries, passages, negatives = draw.normal(size=(3, 8, 6)).astype(np.float32) / 3
    texts = [[0, 9], [0, 10], [0, 0], [0, 11], [1, 12], [2, 13], [3, 14], [0, 15]]
    labels = np.column_stack([[0, 1, 2, 3, 4, 0, 6, 7], texts])
    expected = compute_gradients(queries, passages, negatives, labels)
    halves = [
        tuple(column[half] for column in (queries, passages, negatives, labels)) for half in (slice(4), slice(4, 8))
    ]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    workers = [context.Process(target=run_worker, args=(r, port, halves, pipes[r][1])) for r in range(2)]
    for worker in workers:
        worker.start()
    results = [receiver.recv() if receiver.poll(60) else pytest.fail("a worker hangs") for receiver, _ in pipes]
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    # As DistributedDataParallel does: the mean over workers.
    assert np.mean([loss for loss, _ in results]) == pytest.approx(expected[0], abs=1e-6)
    assert np.mean([gradient for _, gradient in results], axis=0) == pytest.approx(expected[1], abs=1e-6)
