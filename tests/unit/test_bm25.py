import math
import re
from collections import Counter
from functools import cache

import bm25s
import numpy as np
import pytest
import yaml
from bm25s.tokenization import Tokenizer

from pipeline.config import validate
from pipeline.errors import ConfigError, SourceError, StorageError
from pipeline.launch import CONF
from pipeline.retrieval import bm25
from pipeline.retrieval.bm25 import Bm25Config, Bm25Shard, score
from pipeline.retrieval.hits import Hits, merge
from pipeline.retrieval.terms import count_terms, merge_statistics
from pipeline.retrieval.tuning import tune
from pipeline.sources.tables import read_rows

VARIANTS = ["lucene", "robertson", "atire", "bm25l", "bm25+"]
CONFIG = validate(Bm25Config, yaml.safe_load((CONF / "retriever" / "bm25.yaml").read_text()))
WORDS = re.compile(r"(?u)\b\w\w+\b")


def configure(**values):
    terms = {**CONFIG.terms.model_dump(), **values.pop("terms", {})}
    return validate(Bm25Config, {**CONFIG.model_dump(), **values, "terms": terms})


def write_texts(n_texts, rng, n_words=300, longest=40):
    """Return texts whose words are Zipfian; some are empty, some the same as another."""
    weights = 1 / np.arange(1, n_words + 1)
    texts = []
    for _ in range(n_texts):
        drawn = rng.choice(n_words, size=rng.integers(0, longest), p=weights / weights.sum())
        texts.append(" ".join(f"w{word}" for word in drawn))
    return texts + texts[: n_texts // 10]


def cut(texts, n_shards):
    """Return (ids, texts) of each shard; ids say the order in which a whole corpus has its texts."""
    ids = [f"{row:06}" for row in range(len(texts))]
    return [(np.array(ids[shard::n_shards]), texts[shard::n_shards]) for shard in range(n_shards)]


def build(shards, config):
    counts = [count_terms(texts, config.terms) for _, texts in shards]
    statistics = merge_statistics(counts)
    return [score(part, statistics, config) for part in counts]


def search(shards, built, queries, k):
    """Return the merged hits of each query."""
    found = [shard.search(queries, k) for shard in built]
    return [
        merge(
            [
                Hits(shards[number][0][rows], scores, np.full(len(rows), number), rows)
                for number, (rows, scores) in enumerate(finds)
            ],
            k,
        )
        for finds in zip(*found, strict=True)
    ]


class OneIndex:
    """Plain bm25s over a whole corpus."""

    def __init__(self, texts, config):
        self.tokenizer = Tokenizer(splitter=WORDS.pattern, stopwords=config.terms.stop_words)
        tokens = self.tokenizer.tokenize(texts, return_as="tuple", show_progress=False, allow_empty=False)
        self.model = bm25s.BM25(k1=config.k1, b=config.b, delta=config.delta, method=config.variant)
        self.model.index(tokens, create_empty_token=False, show_progress=False)
        self.holders = {token: set() for token in tokens.vocab.values()}
        for row, document in enumerate(tokens.ids):
            for token in document:
                self.holders[token].add(row)

    def search(self, query, k):
        """Return (id, score) of the documents that hold a word of the query, by score, then id."""
        tokens = self.tokenizer.tokenize([query], update_vocab="never", show_progress=False, allow_empty=False)[0]
        if not tokens:
            return []
        scores = self.model.get_scores_from_ids(tokens)
        rows = [row for row in set().union(*(self.holders[token] for token in tokens)) if scores[row] > 0]
        return [(f"{row:06}", scores[row]) for row in sorted(rows, key=lambda row: (-scores[row], row))[:k]]


def assert_same(hits, expected):
    assert hits.ids.tolist() == [document_id for document_id, _ in expected]
    assert hits.scores == pytest.approx([score for _, score in expected], abs=1e-5)


@cache
def generate_corpus():
    rng = np.random.default_rng(7)
    texts = write_texts(400, rng)
    queries = [*write_texts(30, rng, longest=8), "w1 w1 w2", "unknown words", "w5 unknown", "", "the"]
    return texts, queries


@pytest.mark.parametrize("n_shards", [1, 3, 8])
@pytest.mark.parametrize("variant", VARIANTS)
def test_shards_rank_and_score_as_one_bm25s_index(variant, n_shards):
    texts, queries = generate_corpus()
    config = configure(variant=variant)
    one, shards = OneIndex(texts, config), cut(texts, n_shards)
    built = build(shards, config)
    n_found = 0
    for k in (10, 1000):
        for query, hits in zip(queries, search(shards, built, queries, k), strict=True):
            assert_same(hits, one.search(query, k))
            n_found += len(hits)
    assert n_found > 1000


@pytest.mark.data
def test_shards_rank_and_score_real_news_as_one_bm25s_index(data_root):
    files = [
        "ag_news/keaml_ag_corpus.tsv.gz",
        "reuters21578/reuters21578.jsonl.gz",
        "bbc_news/bbc_news.jsonl.gz",
    ]
    texts = [row.values["text"] for file in files for row in read_rows(f"{data_root}/{file}", {"text": "text"})]
    assert len(texts) == 8_769 + 19_043 + 2_225
    rows = np.random.default_rng(0).choice(len(texts), size=200, replace=False)
    # Some as short as a question, some as long as a seed document.
    queries = [" ".join(texts[row].split()[: 8 if number % 2 else 200]) for number, row in enumerate(rows)]
    one = OneIndex(texts, CONFIG)
    expected = [one.search(query, 100) for query in queries]
    assert sum(map(len, expected)) > 15_000
    for n_shards in (1, 3, 8):
        shards = cut(texts, n_shards)
        for hits, wanted in zip(search(shards, build(shards, CONFIG), queries, 100), expected, strict=True):
            assert_same(hits, wanted)


def score_by_hand(variant, texts, query, k1, b, delta):
    """Return each document's score by table 1 of Kamphuis et al. (ECIR 2020).

    Robertson's weight is never below 0; `bm25l` and `bm25+` count words that a document lacks, as bm25s does.
    """
    documents = [Counter(WORDS.findall(text)) for text in texts]
    n = len(documents)
    average = sum(map(Counter.total, documents)) / n
    scores = []
    for document in documents:
        total = 0.0
        for word in WORDS.findall(query):
            df = sum(word in other for other in documents)
            if not df:
                continue
            tf, norm = document[word], 1 - b + b * document.total() / average
            match variant:
                case "lucene":
                    total += math.log(1 + (n - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * norm)
                case "robertson":
                    total += max(0.0, math.log((n - df + 0.5) / (df + 0.5))) * tf / (tf + k1 * norm)
                case "atire":
                    total += math.log(n / df) * (k1 + 1) * tf / (tf + k1 * norm)
                case "bm25l":
                    c = tf / norm
                    total += math.log((n + 1) / (df + 0.5)) * (k1 + 1) * (c + delta) / (k1 + c + delta)
                case "bm25+":
                    total += math.log((n + 1) / df) * ((k1 + 1) * tf / (tf + k1 * norm) + delta)
        scores.append(total)
    return scores


@pytest.mark.parametrize(("k1", "b", "delta"), [(1.5, 0.75, 0.5), (0.9, 0.0, 1.0), (2.0, 1.0, 0.25)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_those_of_the_formula(variant, k1, b, delta):
    texts = [
        "red fox red",
        "blue fox",
        "red whale blue whale blue",
        "grey owl",
        "fox fox fox fox red owl",
        "blue",
        "elk",
        "elk",
    ]
    config = configure(variant=variant, k1=k1, b=b, delta=delta)
    shards = cut(texts, 2)
    built = build(shards, config)
    for query in ("red", "fox owl", "whale whale blue unknown"):
        scores = score_by_hand(variant, texts, query, k1, b, delta)
        holds = [bool(set(text.split()) & set(query.split())) for text in texts]
        (hits,) = search(shards, built, [query], 10)
        expected = {f"{row:06}": scores[row] for row in range(len(texts)) if holds[row] and scores[row] > 0}
        assert dict(zip(hits.ids.tolist(), hits.scores.tolist(), strict=True)) == pytest.approx(expected, abs=1e-5)
        assert len(expected) > 0


def test_a_score_worked_by_hand():
    # 3 documents, 2 words on average; "cat" in 1 of them: ln(1 + 2.5 / 1.5) = .98083.
    # It stands twice among 3 words: 2 / (2 + 1.5 * (.25 + .75 * 3 / 2)) = 2 / 4.0625 = .49231.
    shards = [(np.array(["a", "b", "c"]), ["cat cat dog", "dog", "bird song"])]
    (hits,) = search(shards, build(shards, configure(k1=1.5, b=0.75)), ["cat"], 5)
    assert hits.ids.tolist() == ["a"]
    assert hits.scores == pytest.approx([0.98083 * 0.49231], abs=1e-5)


def test_an_added_shard_changes_the_scores_of_the_others_and_not_their_counts():
    texts, queries = generate_corpus()
    shards = cut(texts, 3)
    counts = [count_terms(part, CONFIG.terms) for _, part in shards]
    few = [score(part, merge_statistics(counts[:2]), CONFIG) for part in counts[:2]]
    all_ = [score(part, merge_statistics(counts), CONFIG) for part in counts]
    one = OneIndex(texts, CONFIG)
    for query, hits in zip(queries, search(shards, all_, queries, 20), strict=True):
        assert_same(hits, one.search(query, 20))
    assert not np.allclose(few[0].scores.data, all_[0].scores.data)


@pytest.mark.parametrize("n_shards", [1, 3])
def test_documents_with_equal_scores_come_by_id_at_the_cut_too(n_shards):
    texts = ["other words"] * 5 + ["same text"] * 50 + ["same text text"]
    shards = cut(texts, n_shards)
    (hits,) = search(shards, build(shards, CONFIG), ["text"], 4)
    assert hits.ids.tolist() == ["000055", "000005", "000006", "000007"]


def test_fewer_are_found_where_there_are_no_more():
    shards = cut(["ape", "ape ape", "bee", ""], 3)
    hits, nothing = search(shards, build(shards, CONFIG), ["ape", "bison"], 100)
    assert sorted(hits.ids.tolist()) == ["000000", "000001"]
    assert len(nothing) == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_document_without_the_words_is_not_found(variant):
    texts = ["ape", "bee", "cow", "", "ape cow", "dog", "eel"]
    shards = cut(texts, 2)
    (hits,) = search(shards, build(shards, configure(variant=variant)), ["cow unknown"], 100)
    assert hits.ids.tolist() == ["000002", "000004"]


@pytest.mark.parametrize("query", ["", "unknown", "the", "a b", "!?"])
@pytest.mark.parametrize("variant", ["lucene", "bm25+"])
def test_a_query_without_a_known_word_finds_nothing(variant, query):
    (built,) = build([(np.array(["a", "b"]), ["ape the", "bee"])], configure(variant=variant))
    ((rows, scores),) = built.search([query], 5)
    assert (len(rows), rows.dtype) == (0, np.int64)
    assert (len(scores), scores.dtype) == (0, np.float32)


def test_what_is_found_has_the_promised_types():
    (built,) = build([(np.array(["a", "b"]), ["ape the", "bee"])], configure(variant="bm25+"))
    ((rows, scores),) = built.search(["ape"], 5)
    assert (rows.tolist(), rows.dtype, scores.dtype) == ([0], np.int64, np.float32)
    assert built.search([], 5) == []


@pytest.mark.parametrize("texts", [[], ["", ""], ["the"]], ids=["none", "empty", "stop words"])
@pytest.mark.parametrize("variant", ["lucene", "bm25l"])
def test_a_shard_without_words_stands_beside_others(variant, texts, tmp_path):
    config = configure(variant=variant)
    shards = [(np.array([f"z{row}" for row in range(len(texts))]), texts), (np.array(["a", "b"]), ["ape", "bee"])]
    build(shards[:1], config)[0].save(tmp_path)
    assert [len(rows) for rows, _ in Bm25Shard.load(tmp_path).search(["ape", ""], 3)] == [0, 0]
    (hits,) = search(shards, build(shards, config), ["ape"], 3)
    assert hits.ids.tolist() == ["a"]


@pytest.mark.parametrize("variant", ["lucene", "bm25+"])
def test_a_saved_shard_answers_as_before(tmp_path, variant):
    texts, queries = generate_corpus()
    built = build(cut(texts, 2), configure(variant=variant))[1]
    built.save(tmp_path)
    loaded = Bm25Shard.load(tmp_path)
    assert loaded.config == built.config
    for (rows, scores), (again_rows, again_scores) in zip(
        built.search(queries, 20), loaded.search(queries, 20), strict=True
    ):
        assert rows.tolist() == again_rows.tolist()
        assert scores.tolist() == again_scores.tolist()


def test_a_folder_without_a_shard_is_named(tmp_path):
    with pytest.raises(StorageError, match=f"{tmp_path} doesn't hold"):
        Bm25Shard.load(tmp_path)


def test_blocks_change_no_score(monkeypatch):
    texts, _ = generate_corpus()
    whole = build(cut(texts, 1), CONFIG)[0]
    monkeypatch.setattr(bm25, "N_BLOCK_POSTINGS", 7)
    assert np.array_equal(build(cut(texts, 1), CONFIG)[0].scores.data, whole.scores.data)


def test_statistics_that_lack_the_shard_are_refused():
    ours, others = (count_terms([text], CONFIG.terms) for text in ("ape bee", "bee"))
    with pytest.raises(ValueError, match="1 of the shard's 2 terms"):
        score(ours, merge_statistics([others]), CONFIG)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"variant": "okapi"}, "variant: .*okapi"),
        ({"b": 1.5}, "b: .*1.5"),
        ({"k1": -1}, "k1: .*-1"),
        ({"variant": "bm25l", "k1": 0}, "k1: bm25l with 0"),
    ],
)
def test_a_wrong_setting_is_told(values, message):
    with pytest.raises(ConfigError, match=message):
        configure(**values)


TUNING_TEXTS = [
    "whale",  # short, the word once
    "whale " * 6 + "sea " * 30,  # long, the word often
    *["ship rope sail mast"] * 6,
]
"""With b=1 the short document is first for `whale`, with b=0 the long one."""


def tune_on(relevant, measure="recall@1", **values):
    shards = cut(TUNING_TEXTS, 2)
    counts = [count_terms(texts, CONFIG.terms) for _, texts in shards]
    arguments = {"k1_grid": [2.0, 1.0], "b_grid": [1, 0.0], **values}
    queries = {"q": "whale", "r": "sail"}
    return tune(
        counts, [ids for ids, _ in shards], queries, {"r": {"000002"}, **relevant}, CONFIG, measure=measure, **arguments
    )


def test_tuning_finds_the_b_under_which_the_relevant_document_is_first():
    long = tune_on({"q": {"000001"}})
    assert (long.k1, long.b, long.value) == (1.0, 0.0, 1.0)
    short = tune_on({"q": {"000000"}})
    assert (short.k1, short.b, short.value) == (1.0, 1.0, 1.0)
    assert {(trial.k1, trial.b): trial.value for trial in short.trials} == {
        (1.0, 0.0): 0.5,
        (1.0, 1.0): 1.0,
        (2.0, 0.0): 0.5,
        (2.0, 1.0): 1.0,
    }


def test_of_equal_points_the_one_nearest_to_the_configured_values_is_best():
    tuned = tune_on({"q": {"000000"}}, "recall@2", k1_grid=[1.5, 1.2, 0.7], b_grid=[0.8, 0.3, 0.8])
    points = [(k1, b) for k1 in (0.7, 1.2, 1.5) for b in (0.3, 0.8)]
    assert [(trial.k1, trial.b) for trial in tuned.trials] == points
    assert {trial.value for trial in tuned.trials} == {1.0}
    assert (CONFIG.k1, CONFIG.b) == (1.5, 0.75)
    assert (tuned.k1, tuned.b) == (1.5, 0.8)
    assert tuned.n_equal == len(points)
    assert tuned.is_at_edge


def test_a_second_measure_decides_between_points_that_are_equal_by_the_first():
    tuned = tune_on({"q": {"000001"}}, "recall@2", tie_break="nDCG@1", k1_grid=[1.2], b_grid=[0.0, 0.75, 1.0])
    assert {trial.value for trial in tuned.trials} == {1.0}
    assert tuned.b == 0.0, "with which the long document is first"
    assert tuned.n_equal == 1
    inner = tune_on({"q": {"000000"}}, "recall@2", k1_grid=[1.2], b_grid=[0.0, 0.75, 1.0])
    assert (inner.b, inner.is_at_edge) == (0.75, False)


def test_what_is_missed_and_what_comes_second_counts_less():
    # "whale" finds the long document first under b=0; a document that the corpus lacks is never found.
    assert tune_on({"q": {"000000", "gone"}}, "recall@5", b_grid=[0]).value == pytest.approx((1 / 2 + 1) / 2)
    assert tune_on({"q": {"000000"}}, "nDCG@5", b_grid=[0]).value == pytest.approx((1 / math.log2(3) + 1) / 2)
    ideal = 1 + 1 / math.log2(3)
    both = tune_on({"q": {"000000", "gone"}}, "nDCG@5", b_grid=[0]).value
    assert both == pytest.approx((1 / math.log2(3) / ideal + 1) / 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_value_is_that_of_the_whole_index(variant):
    texts, queries = generate_corpus()
    queries = {str(number): query for number, query in enumerate(queries[:20])}
    config = configure(variant=variant)
    relevant = {name: {f"{row:06}" for row in range(int(name), 400, 9)} for name in queries}
    shards = cut(texts, 3)
    counts = [count_terms(part, config.terms) for _, part in shards]
    tuned = tune(counts, [ids for ids, _ in shards], queries, relevant, config, [0.7], [0.3], "recall@50")
    one = OneIndex(texts, configure(variant=variant, k1=0.7, b=0.3))
    recalls = [
        len(relevant[name] & {document_id for document_id, _ in one.search(query, 50)}) / len(relevant[name])
        for name, query in queries.items()
    ]
    assert tuned.value == pytest.approx(np.mean(recalls))
    assert 0 < tuned.value < 1


def test_what_cannot_be_tuned_is_told():
    with pytest.raises(SourceError, match=r"1 of 2 queries.*'q'"):
        tune_on({"q": set()})
    with pytest.raises(ConfigError, match="recall@0"):
        tune_on({"q": {"000000"}}, "recall@0")
    with pytest.raises(ConfigError, match="MAP@10"):
        tune_on({"q": {"000000"}}, "MAP@10")
    with pytest.raises(ConfigError, match=r"b: .*2"):
        tune_on({"q": {"000000"}}, b_grid=[0.5, 2])
    with pytest.raises(ConfigError, match="at least one value"):
        tune_on({"q": {"000000"}}, k1_grid=[])
