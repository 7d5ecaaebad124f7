"""Judges: each text asked once, words read, undecided ones counted, and their cost beside the students'."""

import math
from dataclasses import replace
from functools import cache
from typing import get_args

import pytest

from pipeline.cluster import Cluster
from pipeline.errors import ConfigError
from pipeline.prompts.replies import read_choice
from pipeline.prompts.requests import make_request
from pipeline.records import Completion, Example, GoldItem, Outcome, Prediction, Seed, from_table, to_table
from pipeline.report.table import JUDGES
from pipeline.sources.benchmarks import Benchmark
from pipeline.sources.community import NO_COMMUNITIES
from pipeline.stages.compare import compare
from pipeline.stages.dataset import CARD, EFFICIENCY, EXAMPLES, SAMPLES
from pipeline.stages.inputs import Gold, Inputs
from pipeline.stages.judge import describe_cost, evaluate_judges, plan_questions, read_judgement
from pipeline.steps import Outputs, Steps
from pipeline.storage import Folder
from pipeline.tasks.task import JudgePrompt
from pipeline.teachers.efficiency import Session
from tests.composing import compose_experiment, compose_task

AMBIGUITY = compose_task("ambiguity")
LABELS = {
    "q1": "ambiguous", "q2": "clear", "q3": "ambiguous", "q4": "clear", "q5": "ambiguous", "q6": "clear"
}  # fmt: skip
RIGHT = {text: "yes" if label == "ambiguous" else "no" for text, label in LABELS.items()}


def make_gold(name: str, texts, splits=("test",)) -> Gold:
    items = tuple(
        GoldItem(f"{name}-{text}", text, LABELS[text], splits[index % len(splits)]) for index, text in enumerate(texts)
    )
    dev = tuple(split for split in splits if split != "test")
    return Gold(Benchmark(name, (), lambda root: [], test_splits=("test",), dev_splits=dev), items)


@pytest.fixture(scope="module")
def compose_once(tmp_path_factory):
    weights = tmp_path_factory.mktemp("weights")
    (weights / "config.json").write_text("{}")
    judge = ("+teacher@judges.llm.teacher=vllm", "+judge@judges.llm=zero_shot", f"judges.llm.teacher.model={weights}")
    shared = ("experiment=quickstart", *judge, "tracking=none", "evaluation.n_replicates=100")
    return cache(lambda *overrides: compose_experiment([*shared, *overrides]))


@pytest.fixture
def compose(compose_once, tmp_path):
    return lambda *overrides: compose_once(*overrides).model_copy(update={"root": str(tmp_path / "root")})


class Bench:
    """An experiment with benchmarks, whose judges' answers are put into the ledger before anybody asks."""

    def __init__(self, experiment, *golds: Gold):
        self.experiment = experiment
        self.root = Folder.at(experiment.root)
        golds = golds or (make_gold("Six", LABELS),)
        self.inputs = Inputs(
            AMBIGUITY, {}, {}, {}, {gold.benchmark.name: gold for gold in golds}, {}, {}, {}, NO_COMMUNITIES
        )
        self.finished = []

    def plan(self, key="llm"):
        return plan_questions(key, self.experiment, self.inputs, Steps(self.root))

    def answer(self, replies, key="llm", **changes):
        """Put replies by text, each a word or a (word, log-probabilities) pair, into the ledger."""
        ask, completions = self.plan(key), []
        for place, request in enumerate(ask.requests):
            reply = replies[request.seed.text]
            text, logprobs = reply if isinstance(reply, tuple) else (reply, {})
            made = Completion(request.request_id, 1, Outcome.OK, text, "stop", 90, 10, 100.0 + place, 0.5)
            completions.append(replace(made, choice_logprobs=logprobs, **changes))
        ask.ledger.store(completions, f"test-{len(ask.ledger.segments.names())}")
        return ask

    def evaluate(self):
        with Cluster(self.experiment.scale, self.root, root_is_shared=False) as cluster:
            self.finished = []
            steps = evaluate_judges(self.experiment, self.inputs, Steps(self.root, self.finished.append), cluster)
            assert not cluster._is_joined, "something was asked, though the ledger held every answer"
            return steps


@pytest.fixture
def bench(compose):
    return Bench(compose())


def read_predictions(step) -> dict[tuple[str, str], Prediction]:
    found = list(from_table(Prediction, step.folder.read_table("predictions.parquet")))
    by_place = {(prediction.setting, prediction.item_id): prediction for prediction in found}
    assert len(by_place) == len(found)
    return by_place


def read_measure(step, measure: str, setting: str = "standard") -> float:
    entries = step.folder.read_json("entries.json")
    (value,) = [e["value"] for e in entries if (e["measure"], e["setting"]) == (measure, setting)]
    return value


def test_each_text_of_all_benchmarks_is_asked_once_greedily_and_for_a_word(compose):
    bench = Bench(compose(), make_gold("A", ["q1", "q2", "q3"]), make_gold("B", ["q3", "q2", "q4"]))
    requests = bench.plan().requests
    assert sorted(request.seed.text for request in requests) == ["q1", "q2", "q3", "q4"]
    assert len({request.request_id for request in requests}) == 4
    for request in requests:
        assert (request.temperature, request.top_p) == (0.0, 1.0)
        assert set(request.choices) == {"yes", "no"}
        assert request.response_schema == ""
        assert request.messages == AMBIGUITY.judging.write(request.seed.text, "zero_shot")


def test_words_become_labels_and_a_row_of_the_comparison(bench):
    bench.answer({**RIGHT, "q1": "no"})
    (step,) = bench.evaluate()
    assert step.arm == "llm/zero-shot"
    predicted = {p.text: p.predicted for p in read_predictions(step).values()}
    assert predicted == {**LABELS, "q1": "clear"}
    entries = step.folder.read_json("entries.json")
    assert {(e["arm"], e["student"], e["data"], e["benchmark"], e["n"]) for e in entries} == {
        ("llm", "zero-shot", "", "Six", 6)
    }
    assert step.manifest["counts"] == {"predictions": 6, "undecided": 0}


def test_both_benchmarks_that_hold_a_text_get_its_answer(compose):
    bench = Bench(compose(), make_gold("A", ["q1", "q2", "q3"]), make_gold("B", ["q3", "q2", "q4"]))
    bench.answer({**RIGHT, "q3": "no"})
    found = read_predictions(bench.evaluate()[0])
    assert found["standard", "A-q3"].predicted == found["standard", "B-q3"].predicted == "clear"


def test_what_says_no_usable_word_counts_as_negative_and_is_told(bench, caplog):
    bench.answer({**RIGHT, "q1": "maybe", "q3": ""})
    with caplog.at_level("WARNING"):
        (step,) = bench.evaluate()
    found = read_predictions(step)
    assert [found["standard", f"Six-{text}"].predicted for text in ("q1", "q3")] == ["clear", "clear"]
    assert [found["standard", f"Six-{text}"].score for text in ("q1", "q3")] == [0.0, 0.0]
    assert step.manifest["counts"]["undecided"] == step.folder.read_json("cost.json")["n_undecided"] == 2
    assert "llm: 2 of 6 items have no usable answer and count as 'clear'" in caplog.text


def test_requests_that_never_got_an_answer_are_undecided(bench):
    for attempt_at in range(3):  # the teacher's max_tries
        bench.answer(RIGHT, outcome=Outcome.TIMEOUT, text="", started_at=float(attempt_at))
    (step,) = bench.evaluate()
    assert step.manifest["counts"]["undecided"] == 6
    assert step.folder.read_json("cost.json")["latency_p50_ms"] is None


def test_probabilities_rank_where_words_can_not(bench):
    sure = {text: {"yes": math.log(0.9 if word == "yes" else 0.6), "no": math.log(0.1)} for text, word in RIGHT.items()}
    bench.answer({text: ("yes", logprobs) for text, logprobs in sure.items()})
    (step,) = bench.evaluate()
    found = read_predictions(step)
    assert found["standard", "Six-q1"].score == pytest.approx(0.9)
    assert found["standard", "Six-q2"].score == pytest.approx(0.6 / 0.7)
    assert {p.predicted for p in found.values()} == {"ambiguous"}
    assert read_measure(step, "AUROC") == 1.0
    assert read_measure(step, "MCC") == 0.0


def test_without_probabilities_the_score_is_the_decision(bench):
    bench.answer(RIGHT)
    found = read_predictions(bench.evaluate()[0])
    assert {p.score for p in found.values() if p.predicted == "ambiguous"} == {1.0}
    assert {p.score for p in found.values() if p.predicted == "clear"} == {0.0}


def test_a_threshold_may_be_chosen_on_a_benchmarks_own_dev_items(compose):
    experiment = compose("task.settings=[standard,dev-selected]")
    bench = Bench(experiment, make_gold("Six", LABELS, splits=("dev", "dev", "test", "test", "dev", "dev")))
    logprobs = {"yes": {"yes": math.log(0.4), "no": math.log(0.6)}, "no": {"yes": math.log(0.1), "no": math.log(0.9)}}
    bench.answer({text: ("no", logprobs[word]) for text, word in RIGHT.items()})
    (step,) = bench.evaluate()
    selected = {p.text: p.predicted for (setting, _), p in read_predictions(step).items() if setting == "dev-selected"}
    assert selected == {"q3": "ambiguous", "q4": "clear"}
    assert read_measure(step, "macro-F1", "dev-selected") == 1.0
    assert read_measure(step, "MCC") == 0.0


def test_the_same_answers_are_judged_once(bench):
    bench.answer(RIGHT)
    first, again = bench.evaluate(), bench.evaluate()
    assert not first[0].kept
    assert [step.kept for step in bench.finished] == [True, True]
    assert again[0].fingerprint == first[0].fingerprint


@pytest.mark.parametrize("changed", ["maybe yes", ("yes", {"yes": -0.2, "no": -1.7})], ids=["text", "probability"])
def test_other_answers_are_judged_anew(compose, changed):
    fingerprints = set()
    for root, reply in (("one", RIGHT["q1"]), ("two", changed)):
        bench = Bench(compose().model_copy(update={"root": f"{compose().root}-{root}"}))
        bench.answer({**RIGHT, "q1": reply})
        (step,) = bench.evaluate()
        fingerprints.add(step.fingerprint)
    assert len(fingerprints) == 2


@pytest.mark.parametrize(
    ("override", "is_asked_anew"),
    [
        ("judges.llm.sampling.temperature=0.5", True),
        ("judges.llm.prompt=few_shot", True),
        ("judges.llm.teacher.prompt_format=plain", True),
        ("seed=7", True),
        ("judges.llm.teacher.sampling.temperature=0.5", False),
        ("judges.llm.teacher.price.per_device_hour=2.0", False),
        ("judges.llm.max_attempts=3", False),
    ],
)
def test_what_can_change_an_answer_asks_anew(compose, override, is_asked_anew):
    before, after = ({r.request_id for r in Bench(compose(*given)).plan().requests} for given in ((), (override,)))
    assert (not before & after) == is_asked_anew
    assert (before == after) != is_asked_anew


def test_another_price_is_told_without_asking_anew(compose):
    prices = ("judges.llm.teacher.price.per_million_prompt_tokens=2", "judges.llm.teacher.price.per_device_hour=null")
    bench = Bench(compose(*prices, "judges.llm.teacher.price.per_million_completion_tokens=8"))
    bench.answer(RIGHT)
    assert bench.evaluate()[0].folder.read_json("cost.json")["usd_per_1000_items"] == pytest.approx(0.26)
    bench.experiment = compose(*prices, "judges.llm.teacher.price.per_million_completion_tokens=18")
    assert bench.evaluate()[0].folder.read_json("cost.json")["usd_per_1000_items"] == pytest.approx(0.36)


def test_cost_says_what_was_measured_and_none_of_what_was_not(bench):
    ask = bench.answer(RIGHT)
    # Answers came a second apart and took half of one: never two in flight.
    assert describe_cost(ask, ask.read()) == {
        "n_parameters": None,
        "memory_mb": None,
        "device": "1 GPU",
        "latency_p50_ms": pytest.approx(500.0),
        "latency_p95_ms": pytest.approx(500.0),
        "n_in_flight": 1,
        "n_single": 6,
        "throughput_rows_per_s": None,
        "n_actors": None,
        "tokens_per_item": 100.0,
        "usd_per_1000_items": None,
    }
    seconds = {"start": 8.0, "starved": 0.0, "running": 12.0, "tail": 0.0, "retry": 0.0}
    session = Session({"ok": 6}, 6, 540, 0, 60, 10.0, 2, 2.0, seconds, 3_000_000_000)
    ask.remember(session)
    cost = describe_cost(ask, ask.read())
    assert cost["memory_mb"] == 3000.0
    assert cost["n_actors"] == 2
    # Each of two actors took 4 of the 10 s to start; 6 items in the other 6.
    assert cost["throughput_rows_per_s"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("overrides", "device"),
    [((), "1 GPU"), (("judges.llm.teacher.gpus=0",), "CPU"), (("judges.llm.teacher.gpus=4",), "4 GPU")],
)
def test_the_device_is_named(compose, overrides, device):
    bench = Bench(compose(*overrides))
    ask = bench.answer(RIGHT)
    assert describe_cost(ask, ask.read())["device"] == device


def test_several_judges_are_judged_in_their_order_each_by_its_own_answers(compose):
    weights = compose().judges["llm"].teacher.model
    other = ("+teacher@judges.b.teacher=vllm", "+judge@judges.b=few_shot", f"judges.b.teacher.model={weights}")
    bench = Bench(compose(*other))
    bench.answer(RIGHT)
    bench.answer(dict.fromkeys(RIGHT, "yes"), key="b")
    steps = bench.evaluate()
    assert [step.arm for step in steps] == ["llm/zero-shot", "b/few-shot"]
    assert [read_measure(step, "MCC") for step in steps] == [1.0, 0.0]


def test_a_replay_takes_another_answer_where_there_was_no_usable_one(compose):
    bench = Bench(compose())
    bench.answer({**RIGHT, "q1": "maybe"})
    bench.answer({**RIGHT, "q1": "yes"}, attempt=2)
    assert bench.evaluate()[0].manifest["counts"]["undecided"] == 1
    bench.experiment = compose("replay=[schema_mismatch]")
    (step,) = bench.evaluate()
    assert step.manifest["counts"]["undecided"] == 0
    assert step.folder.read_json("cost.json")["tokens_per_item"] == pytest.approx(700 / 6)


def test_a_mistake_in_the_last_judge_is_found_before_the_first_is_asked(compose, monkeypatch):
    monkeypatch.setenv("FIRST_KEY", "x")
    monkeypatch.delenv("SECOND_KEY", raising=False)
    endpoints = []
    for key in ("first", "second"):
        endpoints += [f"+teacher@judges.{key}.teacher=openai", f"+judge@judges.{key}=zero_shot"]
        endpoints += [f"judges.{key}.teacher.base_url=http://localhost:1/v1", f"judges.{key}.teacher.model={key}"]
        endpoints += [f"judges.{key}.teacher.api_key_env={key.upper()}_KEY", f"judges.{key}.teacher.label={key}"]
    bench = Bench(compose(*endpoints, "~judges.llm"))
    with pytest.raises(ConfigError, match="SECOND_KEY"):
        bench.evaluate()
    assert not bench.root.exists("ledger/first")


def make_dataset(root: Folder, arm: str, efficiency: dict | None):
    """Return a data-set step with one row."""

    def produce(folder: Folder) -> Outputs:
        folder.write_table(EXAMPLES, to_table(Example, [Example("r", "", "g", "a query", "clear")]))
        folder.write_json(CARD, {"rows": 1})
        folder.write_json(SAMPLES, {"accepted": {}, "rejected": {}})
        if efficiency is not None:
            folder.write_json(EFFICIENCY, efficiency)
        return Outputs(counts={"rows": 1})

    return Steps(root).run("dataset", produce, arm=arm, config=efficiency, inputs={}, code=[])


def test_the_comparison_holds_judges_and_what_teachers_took(bench):
    bench.answer(RIGHT)
    shares = {"start": 0.5, "starved": 0.0, "running": 0.5, "tail": 0.0, "retry": 0.0}
    kept = {"calls": 1, "tokens": 110, "token_share": 1.0, "device_s": None, "usd": None}
    amounts = {"rows": 1, "prompt_tokens": 100, "completion_tokens": 10, "usd": None, "device_s": None}
    efficiency = {"teacher": "some-llm", **amounts, "time_shares": shares, "spent_on": {"kept": kept}}
    datasets = {
        "llama": make_dataset(bench.root, "llama", efficiency),
        "human": make_dataset(bench.root, "human", None),
    }
    judged = bench.evaluate()
    folder = compare(datasets, [], judged, None, bench.experiment, AMBIGUITY, Steps(bench.root)).folder
    assert folder.read_json("efficiency.json") == [{"arm": "llama", **efficiency}]
    (cost,) = folder.read_json("cost.json")
    assert (cost["arm"], cost["student"], cost["n_in_flight"]) == ("llm", "zero-shot", 1)
    assert {(e["arm"], e["student"]) for e in folder.read_json("comparison.json")} == {("llm", "zero-shot")}
    assert "| llm | zero-shot |" in folder.read_text("results.md")
    assert "some-llm" in folder.read_text("report.html")
    stages = folder.read_json("spending.json")["stages"]
    assert [(row["stage"], row["arm"], row["tokens"], row["USD"]) for row in stages] == [
        ("teaching", "llama", 110, None),
        ("judging", "llm", 600, None),
    ]


def make_completion(text: str, outcome: Outcome = Outcome.OK, **changes) -> Completion:
    return replace(Completion("r", 1, outcome, text, "stop", 1, 1, 0.0, 0.1), **changes)


@pytest.fixture(scope="module")
def request_for_a_word():
    seed, messages = Seed("s", "q", "g"), AMBIGUITY.judging.write("q", "zero_shot")
    sampling = {"temperature": 0.0, "top_p": 1.0}
    return make_request(seed, (), messages, None, choices=("no", "yes"), **sampling, teacher={}, run_seed=1)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("yes", "yes"),
        (" No.", "no"),
        ("YES!", "yes"),
        ("**Yes**", "yes"),
        ("Answer: no", "no"),
        ("Yes or no? No", "no"),
        ("no, wait: yes", "yes"),
        ("yes\n\nI know that", "yes"),
    ],
)
def test_the_last_of_the_words_is_read(request_for_a_word, text, word):
    reply = read_choice(request_for_a_word, make_completion(text))
    assert (reply.outcome, reply.value) == (Outcome.OK, word)
    cut_off = read_choice(request_for_a_word, make_completion(text, Outcome.TRUNCATED))
    assert (cut_off.outcome, cut_off.value) == (Outcome.OK, word)


@pytest.mark.parametrize("text", ["", "maybe", "I know", "yesterday", "eyes", "none", "nothing", "ambiguous"])
def test_a_word_inside_another_is_none(request_for_a_word, text):
    reply = read_choice(request_for_a_word, make_completion(text))
    assert (reply.outcome, reply.value) == (Outcome.SCHEMA_MISMATCH, None)
    assert "yes" in reply.detail
    assert read_choice(request_for_a_word, make_completion(text, Outcome.TRUNCATED)).outcome is Outcome.TRUNCATED


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.TIMEOUT, Outcome.ERROR])
def test_what_is_no_text_of_the_teacher_has_no_word(request_for_a_word, outcome):
    reply = read_choice(request_for_a_word, make_completion("yes", outcome, error="why"))
    assert (reply.outcome, reply.value, reply.detail) == (outcome, None, "why")


@pytest.mark.parametrize(
    ("logprobs", "score"),
    [
        ({"yes": -9999.0, "no": 0.0}, 0.0),
        ({"yes": 0.0, "no": -9999.0}, 1.0),
        ({"yes": -9999.0, "no": -9999.0}, 0.5),
        ({"yes": -1.0, "no": -1.0}, 0.5),
    ],
)
def test_a_score_is_finite_whatever_the_log_probabilities(request_for_a_word, logprobs, score):
    completion = make_completion("no", choice_logprobs=logprobs)
    judgement = read_judgement(request_for_a_word, completion, AMBIGUITY)
    assert judgement.score == pytest.approx(score)
    assert judgement.label == "clear"


def test_the_report_knows_every_way_to_ask():
    assert {prompt.replace("_", "-") for prompt in get_args(JudgePrompt)} == set(JUDGES)
