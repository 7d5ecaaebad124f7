import csv
import json
import random
from collections import Counter
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, rankdata

from pipeline.errors import ConfigError, SourceError
from pipeline.evaluation.annotation import (
    Annotation,
    Answer,
    Fault,
    Item,
    KeyEntry,
    Label,
    LabelFile,
    Writer,
    check_labels,
    compare_judge,
    draw_sample,
    find_disagreements,
    measure_agreement,
    measure_rates,
    merge_labels,
    order_items,
    wilson_interval,
)
from pipeline.evaluation.correlation import correlate
from pipeline.evaluation.label_files import read_label_file, write_csv, write_labels
from pipeline.stages.annotate import PAGE, RESULT, import_labels
from tests.composing import compose_annotation

FIXTURE = Path(__file__).parents[1] / "fixtures" / "annotation"
WORDS = {"y": Label.YES, "n": Label.NO, "c": Label.CANT_TELL}


def make_answers(sizes, arms=("a", "b")):
    return {
        arm: {
            f"{community}_{i}": Answer(f"{community}_{i}", community, f"Question {i}?", f"{arm} says {i}.")
            for community, n in sizes.items()
            for i in range(n)
        }
        for arm in arms
    }


def draw(answers, n_items, seed=1):
    return draw_sample(answers, {arm: Writer(f"model {arm}", "basic") for arm in answers}, n_items, seed)


def make_file(annotator, labels, sheet="s"):
    """Labels as letters, by item 0, 1, ...; a dot is an item without one."""
    annotations = tuple(
        Annotation(str(i), WORDS[letter], Fault.OTHER if letter == "y" else None)
        for i, letter in enumerate(labels)
        if letter != "."
    )
    return LabelFile(f"{annotator}.json", sheet, annotator, annotations)


def make_key(arms):
    """One item for each letter."""
    return [KeyEntry(str(i), f"q{i}", "beer", arm, f"model {arm}", "basic") for i, arm in enumerate(arms)]


def test_a_sample_has_as_many_items_of_each_arm_on_the_same_questions_and_communities_in_their_shares():
    sample = draw(make_answers({"beer": 60, "ai": 30, "law": 10}, arms=("a", "b", "c")), 30)
    assert Counter(entry.arm for entry in sample.key) == {"a": 10, "b": 10, "c": 10}
    questions = {arm: {e.question_id for e in sample.key if e.arm == arm} for arm in "abc"}
    assert questions["a"] == questions["b"] == questions["c"]
    assert Counter(question.split("_")[0] for question in questions["a"]) == {"beer": 6, "ai": 3, "law": 1}
    assert [item.item_id for item in sample.items] == [entry.item_id for entry in sample.key]
    assert all(item.answer.startswith(entry.arm) for item, entry in zip(sample.items, sample.key, strict=True))


def test_what_the_shares_leave_goes_to_the_largest_remainders():
    # 7 questions of 5 : 3 : 2 are 3.5, 2.1 and 1.4: 3, 2 and 1, and the seventh to the first.
    sample = draw(make_answers({"beer": 5, "ai": 3, "law": 2}), 14)
    assert Counter(e.community for e in sample.key if e.arm == "a") == {"beer": 4, "ai": 2, "law": 1}


def test_a_seed_gives_the_same_sample_and_another_seed_another():
    answers = make_answers({"beer": 50})
    assert draw(answers, 20) == draw(answers, 20)
    assert draw(answers, 20).sheet != draw(answers, 20, seed=2).sheet
    # Arms come from folders, questions from tables: neither's order says anything.
    turned = {arm: dict(reversed(answers[arm].items())) for arm in answers}
    assert draw(turned, 20) == draw(answers, 20)


def test_an_item_tells_nothing_of_its_arm():
    sample = draw(make_answers({"beer": 100}), 200)
    assert all(set(Item.__slots__) == {"item_id", "question", "answer"} for _ in sample.items)
    assert len({item.item_id for item in sample.items}) == 200
    # In the order of ids, either arm comes first about as often.
    places = [place for place, entry in enumerate(sample.key) if entry.arm == "a"]
    assert 85 < np.mean(places) < 115


def test_annotators_get_the_same_items_in_other_orders():
    items = draw(make_answers({"beer": 10}), 20).items
    first, second = order_items(items, "first", 1), order_items(items, "second", 1)
    assert sorted(first, key=lambda item: item.item_id) == list(items)
    assert set(first) == set(second)
    assert first != second
    assert first == order_items(items, "first", 1)


def test_questions_that_an_arm_lacks_are_counted_and_not_drawn():
    answers = make_answers({"beer": 4})
    del answers["a"]["beer_0"]
    sample = draw(answers, 6)
    assert sample.n_incomplete == 1
    assert {entry.question_id for entry in sample.key} == {"beer_1", "beer_2", "beer_3"}
    with pytest.raises(ConfigError, match="give at most 6 items"):
        draw(answers, 8)
    with pytest.raises(ConfigError, match="give a multiple of 2"):
        draw(answers, 5)


def test_kappa_of_a_hand_worked_table():
    # Cohen's formula: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no. p_o = .7, p_e = .5 * .6 + .5 * .4 = .5, kappa = .4.
    found = measure_agreement(
        make_file("one", "y" * 25 + "n" * 25), make_file("two", "y" * 20 + "n" * 5 + "y" * 10 + "n" * 15)
    )
    assert found.kappa == pytest.approx(0.4)
    assert found.observed == pytest.approx(0.7)
    assert found.counts == {"yes/yes": 20, "yes/no": 5, "no/yes": 10, "no/no": 15}


def test_kappa_is_over_items_that_both_decided_and_undefined_where_they_say_one_thing_only():
    found = measure_agreement(make_file("one", "yncyn."), make_file("two", "ynyc.n"))
    assert (found.n, found.n_cant_tell, found.kappa) == (2, 2, 1.0)
    alike = measure_agreement(make_file("one", "yyy"), make_file("two", "yyy"))
    assert (alike.n, alike.observed, alike.kappa) == (3, 1.0, None)
    apart = measure_agreement(make_file("one", "y."), make_file("two", ".y"))
    assert (apart.n, apart.observed, apart.kappa) == (0, None, None)


def test_two_labels_become_one_by_their_mean_and_cant_tell_is_left_out():
    merged = merge_labels([make_file("one", "yync"), make_file("two", "yncc")])
    assert merged == {"0": 1.0, "1": 0.5, "2": 0.0, "3": None}


def test_rates_of_a_hand_worked_sheet():
    files = [make_file("one", "yyncc"), make_file("two", "ynnyc")]
    a, b = measure_rates(files, make_key("aabbbb"), ["arm"])
    assert (a.group, a.value, a.n, a.n_undecided) == (("a",), 0.75, 2, 0)
    # n/n, can't tell/y, can't tell twice, and one that nobody labelled.
    assert (b.group, b.value, b.n, b.n_undecided) == (("b",), 0.5, 2, 2)
    (nothing,) = measure_rates([make_file("one", "c")], make_key("a"), ["model", "prompt"])
    assert (nothing.group, nothing.value, nothing.low, nothing.n_undecided) == (("model a", "basic"), None, None, 1)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 25), (7, 10), (40, 100), (25, 25)])
def test_wilson_intervals_equal_scipys(k, n):
    expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(k / n, n) == pytest.approx((expected.low, expected.high))


def test_a_share_of_half_items_has_an_interval_between_its_neighbours():
    low, high = wilson_interval(0.45, 10)
    assert wilson_interval(0.4, 10)[0] < low < wilson_interval(0.5, 10)[0]
    assert wilson_interval(0.4, 10)[1] < high < wilson_interval(0.5, 10)[1]


def test_items_on_which_annotators_differ_are_listed():
    found = find_disagreements([make_file("one", "yyn."), make_file("two", "yncn")])
    assert {item: [said[name].label for name in ("one", "two")] for item, said in found.items()} == {
        "1": [Label.YES, Label.NO],
        "2": [Label.NO, Label.CANT_TELL],
    }


def test_a_judge_is_held_against_the_majority_and_a_tie_is_no_majority():
    people = [make_file("one", "yynnn"), make_file("two", "yynny"), make_file("three", "ynnnc")]
    # People say yes, yes, no, no; on the last they tie.
    found = compare_judge(make_file("llm", "ynyny"), people)
    assert found.counts == {"yes/yes": 1, "yes/no": 1, "no/yes": 1, "no/no": 1}
    assert (found.n, found.n_cant_tell, found.kappa) == (4, 1, 0.0)


def test_items_without_a_label_are_counted():
    assert check_labels([make_file("one", "y.n"), make_file("two", "yyn")], "s", make_key("abc")) == {
        "one": 1,
        "two": 0,
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([make_file("one", "y", sheet="other")], r"one\.json: is of the sheet other, and the key is of s"),
        ([make_file("one", "..y")], r"one\.json: item 2: is not of the sheet s"),
        ([LabelFile("x.csv", "s", "x", (Annotation("0", Label.NO),) * 2)], r"x\.csv: item 0: is labelled 2 times"),
        ([make_file("one", "y"), make_file("one", "n")], "are all of the annotator one"),
    ],
)
def test_files_that_don_t_fit_are_refused_with_file_and_item(files, message):
    with pytest.raises(SourceError, match=message):
        check_labels(files, "s", make_key("ab"))


def test_labels_go_through_json_unchanged():
    file = LabelFile(
        "x.json", "s", "one", (Annotation("0", Label.YES, Fault.FALSE, 'a "note", é'), Annotation("1", Label.CANT_TELL))
    )
    assert read_label_file("x.json", write_labels(file).encode()) == file


def test_a_table_is_filled_in_and_read_back():
    items = [Item("0", "Why?", 'a, "b"\n<script>'), Item("1", "=1+1", "-"), Item("2", "How?", "so")]
    rows = list(csv.DictReader(StringIO(write_csv(items, "s", "one"))))
    assert [row["answer"] for row in rows] == ['a, "b"\n<script>', "'-", "so"]
    assert rows[1]["question"] == "'=1+1"  # a spreadsheet would run it
    assert [row["label"] for row in rows] == ["", "", ""]
    rows[0] |= {"label": "Yes ", "type": "False", "note": "1492, not 1493"}
    rows[1] |= {"label": "can\u2019t tell"}
    stream = StringIO()
    writer = csv.DictWriter(stream, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    found = read_label_file("one.csv", b"\xef\xbb\xbf" + stream.getvalue().encode())
    assert (found.sheet, found.annotator) == ("s", "one")
    assert found.annotations == (
        Annotation("0", Label.YES, Fault.FALSE, "1492, not 1493"),
        Annotation("1", Label.CANT_TELL),
    )


def say(**row):
    labels = [{"item": "7", "label": "", "type": "", "note": ""} | row]
    return json.dumps({"sheet": "s", "annotator": "one", "labels": labels})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "", r"x\.txt: a file of labels ends in \.json"),
        ("x.json", "{", r"x\.json: is no JSON"),
        ("x.json", "[]", r"x\.json: has not the keys sheet, annotator and labels"),
        ("x.json", '{"sheet": "s", "annotator": "a", "labels": [{"item": 3}]}', r"x\.json: label 1 has no item"),
        ("x.json", say(label="perhaps"), r"x\.json: item 7: the label 'perhaps' is none of yes, no, can't tell"),
        ("x.json", say(label="yes"), r"x\.json: item 7: the label is yes and the type ''; give one of unsupported"),
        ("x.json", say(label="no", type="false"), r"x\.json: item 7: has the type 'false' though its label is no"),
        ("x.json", say(type="false"), r"x\.json: item 7: has the type 'false' and no label"),
        ("x.csv", "sheet;annotator;item", r"x\.csv: lacks the columns sheet, annotator, item, label"),
        ("x.csv", "sheet,annotator,item,label,type,note\n", r"x\.csv: needs rows of one sheet and one annotator"),
    ],
)
def test_a_broken_file_is_refused_with_its_name_and_item(name, content, message):
    with pytest.raises(SourceError, match=message):
        read_label_file(name, content.encode())


def test_correlations_equal_numpys():
    stream = random.Random(1)
    one, other = ({str(i): stream.random() for i in range(6)} for _ in range(2))
    found = correlate(one, other)
    pairs = [list(one.values()), list(other.values())]
    assert found.n == 6
    assert found.pearson == pytest.approx(np.corrcoef(pairs)[0, 1])
    assert found.spearman == pytest.approx(np.corrcoef([rankdata(values) for values in pairs])[0, 1])


def test_correlations_of_too_few_or_equal_points_are_said_to_be_none():
    few = correlate({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2, "d": 3})
    assert (few.n, few.pearson, few.spearman, few.note) == (2, None, None, "too few points: 2, of 3 needed")
    flat = correlate({"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 2, "c": 3})
    assert (flat.n, flat.pearson) == (3, None)
    assert "same for all arms" in flat.note


def compose_import(output, *overrides):
    labels = f"labels=[{FIXTURE}/first.json,{FIXTURE}/second.csv]"
    return compose_annotation(["annotate=import", f"exported={FIXTURE}", labels, f"output={output}", *overrides])


def test_forty_items_of_four_arms_give_the_table_and_the_correlation_and_say_that_they_are_a_fixture(tmp_path):
    import_labels(
        compose_import(tmp_path, f"judge_labels={FIXTURE}/judge.json", f"comparison.path={FIXTURE}", "fixture=true")
    )
    found = json.loads((tmp_path / RESULT).read_text())
    by_arm = {rate["group"][0]: rate for rate in found["rates"]["arm"]}
    shares = {"mini_basic": 0.7, "medium_basic": 0.45, "gpt_basic": 0.2, "mini_personalized": 0.6}
    assert {arm: rate["value"] for arm, rate in by_arm.items()} == pytest.approx(shares)
    expected = binomtest(7, 10).proportion_ci(0.95, method="wilson")
    assert (by_arm["mini_basic"]["low"], by_arm["mini_basic"]["high"]) == pytest.approx((expected.low, expected.high))
    by_prompt = {rate["group"][0]: (rate["value"], rate["n"]) for rate in found["rates"]["prompt"]}
    assert by_prompt == {"basic": (pytest.approx(0.45), 30), "personalized": (pytest.approx(0.6), 10)}

    # Of 39 items without a can't tell: 17 yes/yes, 3 yes/no, 2 no/yes, 17 no/no.
    (agreement,) = found["agreements"]
    assert agreement["counts"] == {"yes/yes": 17, "yes/no": 3, "no/yes": 2, "no/no": 17}
    chance = (20 * 19 + 19 * 20) / 39**2
    assert agreement["kappa"] == pytest.approx((34 / 39 - chance) / (1 - chance))
    assert len(found["disagreements"]) == 6
    assert found["judge"]["second"] == "judge"
    assert found["n_missing_of_judge"] == 2

    quality = [0.47, 0.44, 0.40, 0.42]
    rates = [0.2, 0.45, 0.7, 0.6]
    overall = found["correlations"]["rate of hallucination"]
    assert (overall["n"], overall["spearman"]) == (4, pytest.approx(-1))
    assert overall["pearson"] == pytest.approx(np.corrcoef(rates, quality)[0, 1])
    basic = found["correlations"]["the same, prompt basic"]
    assert basic["pearson"] == pytest.approx(np.corrcoef(rates[:3], quality[:3])[0, 1])
    assert found["correlations"]["the same, prompt personalized"]["note"] == "too few points: 1, of 3 needed"

    page = (tmp_path / PAGE).read_text()
    headings = [line for line in page.splitlines() if line.startswith(("<h1", "<h2", "<h3"))]
    assert len(headings) >= 8
    assert all("(fixture)" in line for line in headings)
    assert "data:image/svg+xml" in page


def test_labels_that_people_gave_are_no_fixture_and_no_comparison_is_no_plot(tmp_path):
    import_labels(compose_import(tmp_path))
    page = (tmp_path / PAGE).read_text()
    assert "fixture)" not in page
    assert "data:image" not in page
    assert "No comparison was given" in page
    assert "No judge was asked" in page


def test_a_comparison_that_leaves_a_choice_is_refused(tmp_path):
    entries = json.loads((FIXTURE / "comparison.json").read_text())
    (tmp_path / "comparison.json").write_text(json.dumps([*entries, entries[1] | {"student": "distilbert"}]))
    path = f"comparison.path={tmp_path}"
    with pytest.raises(ConfigError, match=r"comparison\.student: .* has distilbert, minilm; choose one"):
        import_labels(compose_import(tmp_path / "out", path))
    import_labels(compose_import(tmp_path / "out", path, "comparison.student=minilm"))
    with pytest.raises(ConfigError, match="has no nDCG@10 of any of the arms"):
        import_labels(compose_import(tmp_path / "out", path, "comparison.student=other"))


def test_an_export_and_an_import_compose_and_mistakes_are_told_at_once():
    arms = "arms={a: {path: x, model: m, prompt: basic}}"
    assert compose_annotation(["annotate=export", arms, "output=o"]).encoder is None
    assert compose_annotation(["annotate=export", arms, "output=o", "encoder=minilm"]).encoder.max_tokens == 256
    with pytest.raises(ConfigError) as caught:
        compose_annotation(["annotate=export", arms, "output=o", "+n=3", "annotators=[a,a]", "n_items=0"])
    assert "n: unknown key" in str(caught.value)
    assert "n_items: " in str(caught.value)
    with pytest.raises(ConfigError, match="annotators: each once"):
        compose_annotation(["annotate=export", arms, "output=o", "annotators=[a,a]"])
