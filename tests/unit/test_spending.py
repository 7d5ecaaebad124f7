"""Where the money went, worked by hand."""

import pytest

from pipeline.records import Completion, Outcome
from pipeline.report.spending import (
    ArmCost,
    Spent,
    get_token_shares,
    lay_out_ends,
    lay_out_money,
    lay_out_scores,
    lay_out_stages,
)
from pipeline.report.table import Entry, tabulate_results
from pipeline.stages.spending import list_arm_costs
from pipeline.steps import Step
from pipeline.storage import Folder
from pipeline.teachers.spending import divide_spending
from pipeline.teachers.teacher import PriceConfig

NO_PRICE = PriceConfig(per_million_prompt_tokens=None, per_million_completion_tokens=None, per_device_hour=None)
OF_TOKENS = PriceConfig(per_million_prompt_tokens=1.0, per_million_completion_tokens=10.0, per_device_hour=None)


def answer(outcome, n_prompt=100, n_completion=10, latency_s=1.0):
    return Completion("r", 1, outcome, "", "", n_prompt, n_completion, 0.0, latency_s), outcome


ANSWERS = [
    answer(Outcome.OK),
    answer(Outcome.OK),
    answer(Outcome.INVALID_JSON, n_completion=40),
    answer(Outcome.TIMEOUT, 0, 0, latency_s=5.0),
]


def test_every_token_and_cent_went_somewhere():
    found = divide_spending(ANSWERS, 0.75, None, OF_TOKENS)
    assert list(found) == ["kept", "filtered", "invalid_json", "timeout"]
    assert {end: part["tokens"] for end, part in found.items()} == {
        "kept": 165, "filtered": 55, "invalid_json": 140, "timeout": 0
    }  # fmt: skip
    assert {end: part["calls"] for end, part in found.items()} == {
        "kept": 1.5, "filtered": 0.5, "invalid_json": 1, "timeout": 1
    }  # fmt: skip
    assert sum(part["token_share"] for part in found.values()) == pytest.approx(1)
    whole = OF_TOKENS.charge_all(completion for completion, _ in ANSWERS)
    assert sum(part["usd"] for part in found.values()) == pytest.approx(whole) == (300 + 600) / 1e6
    assert found["kept"]["usd"] == pytest.approx(0.75 * 400 / 1e6)
    assert {part["device_s"] for part in found.values()} == {None}


def test_what_no_filter_took_is_not_named():
    assert list(divide_spending([answer(Outcome.OK)], 1.0, None, NO_PRICE)) == ["kept"]
    assert list(divide_spending([answer(Outcome.OK)], 0.0, None, NO_PRICE)) == ["filtered"]
    assert divide_spending([], 0.0, None, NO_PRICE) == {}


def test_devices_are_paid_by_the_time_in_flight_so_a_timeout_costs_too():
    hourly = NO_PRICE.model_copy(update={"per_device_hour": 3.6})
    found = divide_spending(ANSWERS, 1.0, 80.0, hourly)
    assert {end: part["device_s"] for end, part in found.items()} == {"kept": 20, "invalid_json": 10, "timeout": 50}
    assert found["timeout"]["usd"] == pytest.approx(0.05)


def test_without_a_price_tokens_are_told_and_money_is_not():
    found = divide_spending(ANSWERS, 1.0, 80.0, NO_PRICE)
    assert {part["usd"] for part in found.values()} == {None}
    assert found["kept"]["tokens"] == 220


def make_spent(stage, arm, rows=100, usd=2.0, device_s=None, price=OF_TOKENS):
    amounts = {"rows": rows, "prompt_tokens": 3000, "completion_tokens": 1000, "usd": usd, "device_s": device_s}
    spent_on = divide_spending(ANSWERS, 0.75, device_s, price)
    return Spent(stage, arm, {"teacher": "some-llm", **amounts, "spent_on": spent_on})


def test_stages_have_their_sums_and_a_sum_hides_nothing_that_was_not_measured():
    spent = [make_spent("teaching", "a"), make_spent("teaching", "b", usd=None), make_spent("judging", "c", rows=10)]
    rows = lay_out_stages(spent)
    assert [(row["stage"], row["arm"]) for row in rows] == [
        ("teaching", "a"), ("teaching", "b"), ("teaching", "all"), ("judging", "c")
    ]  # fmt: skip
    assert [row["USD"] for row in rows] == [2.0, None, None, 2.0]
    assert [row["tokens"] for row in rows] == [4000, 4000, 8000, 4000]
    assert rows[0]["USD per 1,000 rows"] == 20
    assert rows[2]["tokens per row"] == 40
    assert rows[3]["USD per 1,000 rows"] == 200
    sums = lay_out_stages([make_spent("teaching", "a", device_s=1800.0), make_spent("teaching", "b", device_s=5400.0)])
    assert (sums[-1]["USD"], sums[-1]["device hours"], sums[-1]["device-seconds per row"]) == (4.0, 2.0, 36.0)


def test_a_data_set_without_rows_has_no_price_a_row():
    (row,) = lay_out_stages([make_spent("teaching", "a", rows=0)])
    assert (row["USD"], row["USD per 1,000 rows"], row["tokens per row"]) == (2.0, None, None)


def test_what_became_of_it_is_told_for_each_arm():
    rows = lay_out_ends([make_spent("teaching", "a", price=NO_PRICE)])
    assert [(row["what became of it"], row["share of tokens"], row["USD"]) for row in rows] == [
        ("kept", "45.8 %", None), ("filtered", "15.3 %", None), ("invalid json", "38.9 %", None),
        ("timeout", "0.0 %", None),
    ]  # fmt: skip
    only_timeouts = Spent("teaching", "b", {"spent_on": divide_spending(ANSWERS[3:], 0.0, None, NO_PRICE)})
    assert list(get_token_shares([make_spent("teaching", "a"), only_timeouts])) == ["a"]


def make_entry(arm, student, value):
    return Entry(
        arm=arm, student=student, data="", benchmark="ClariQ", setting="standard", measure="macro-F1",
        value=value, low=value, high=value, n=9,
    )  # fmt: skip


def test_a_score_is_said_for_each_dollar_and_device_hour_beside_what_a_constant_has_for_nothing():
    tables = tabulate_results(
        [
            make_entry("bought", "minilm", 0.6),
            make_entry("human", "minilm", 0.7),
            make_entry("majority", None, 0.4),
            make_entry("llm", "zero-shot", 0.8),
            make_entry("released", "minilm", 0.3),
        ]
    )
    costs = {"bought": ArmCost(3.0, 7200.0), "human": ArmCost(None, None)}
    bought, human = lay_out_scores(tables, costs)
    assert (bought["macro-F1"], bought["USD"], bought["device hours"]) == (0.6, 3.0, 2.0)
    assert bought["score per USD"] == pytest.approx(0.2)
    assert bought["score per device hour"] == pytest.approx(0.3)
    assert bought["above the best trivial baseline"] == pytest.approx(0.2)
    assert [human[name] for name in ("USD", "score per USD", "device hours", "score per device hour")] == [None] * 4
    assert lay_out_scores(tables, {"bought": ArmCost(0.0, 0.0)})[0]["score per USD"] is None, "rules cost nothing"
    money = lay_out_money([make_spent("teaching", "bought")], tables, costs)
    assert {name: len(rows) for name, rows in money.tables.items()} == {"stages": 1, "ends": 4, "scores": 2}


def test_an_arm_of_other_arms_rows_costs_what_those_did(tmp_path):
    def make_dataset(arm, counts, efficiency):
        folder = Folder.at(tmp_path / arm)
        if efficiency:
            folder.write_json("efficiency.json", efficiency)
        return Step("dataset", arm, "0", folder, {"counts": counts}, kept=True)

    datasets = {
        "bought": make_dataset("bought", {"rows": 100}, {"usd_per_row": 0.01, "device_s_per_row": None}),
        "mixed": make_dataset("mixed", {"rows": 50, "drawn_bought": 50}, None),
        "human": make_dataset("human", {"rows": 50}, None),
    }
    costs = list_arm_costs(datasets)
    assert (costs["bought"], costs["mixed"], costs["human"]) == (
        ArmCost(1.0, None), ArmCost(0.5, None), ArmCost(None, None)
    )  # fmt: skip
    assert costs["bought_tag"] == costs["bought"], "the same students, with interests beside"
