import gzip
import json
from math import exp
from pathlib import Path

import pytest

from pipeline.quality.overlap import corpus_bleu, corpus_chrf, lexical_overlap

BASIC, PERSONALISED, CONTEXTUAL = (f"answer_with_body_{variant}" for variant in ("base", "pers", "context"))
PAIRS = ((BASIC, PERSONALISED), (BASIC, CONTEXTUAL), (PERSONALISED, CONTEXTUAL))


def test_bleu_of_a_hand_worked_pair():
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples and 1 of 2 quadruples match, and no penalty: (1/5)^(1/4).
    assert corpus_bleu(["a b c d x"], ["a b c d y"]) == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_equal_answers_score_a_hundred_and_answers_without_a_shared_character_nothing():
    answers = ["the visa takes three weeks", "ask the embassy of your country"]
    assert corpus_bleu(answers, answers) == pytest.approx(100)
    assert corpus_chrf(answers, answers) == pytest.approx(100)
    assert corpus_chrf(["aaa"], ["bbb"]) == 0


def test_the_first_list_is_what_is_scored():
    short, long = ["a b c d e f g h"], ["a b c d e f g h i"]
    # All of the shorter matches, at the price of being short; of the longer 8/9, 7/8, 6/7 and 5/6 match.
    assert corpus_bleu(short, long) == pytest.approx(100 * exp(1 - 9 / 8))
    assert corpus_bleu(long, short) == pytest.approx(100 * (5 / 9) ** 0.25)
    assert corpus_chrf(short, long) < corpus_chrf(long, short)


def test_lexical_overlap_of_hand_worked_pairs():
    # {what, is, a, visa}: is, a. Then {why}: none. Words count once, whatever their case.
    questions = ["What IS a visa? A visa!", "Why?"]
    assert lexical_overlap(questions, ["It is a paper.", "Because."]) == pytest.approx((2 / 4 + 0) / 2)
    assert lexical_overlap(["?!"], ["anything"]) == 0


@pytest.mark.parametrize("measure", [corpus_bleu, corpus_chrf, lexical_overlap])
@pytest.mark.parametrize(("left", "right"), [(["a"], []), ([], []), (["a"], ["b", "c"])])
def test_lists_that_don_t_pair_are_refused(measure, left, right):
    with pytest.raises(ValueError, match=f"given {len(left)} and {len(right)}"):
        measure(left, right)


def read_sample(root, model):
    """One model's released answers by field, and their questions, all in one order."""
    records = {}
    with gzip.open(Path(root, "sy_se_pqa_sample", "sy_se_pqa_sample.jsonl.gz"), "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["model"] == model:
                records.setdefault(row["id"], {}).update(row)
    fields = {"question": [f"{row['Title']} {row['Body']}" for row in records.values()]}
    for name in (BASIC, PERSONALISED, CONTEXTUAL):
        answers = [row[name] for row in records.values()]
        fields[name] = [answer if isinstance(answer, str) else answer[0]["generated_text"] for answer in answers]
    return fields


@pytest.mark.data
@pytest.mark.parametrize(
    ("model", "scores", "overlaps"),
    [
        ("GPT", ["18.8 / 46.3", "18.8 / 47.2", "18.2 / 47.4"], [".43", ".47", ".45"]),
        ("Phi-medium", ["33.2 / 58.8", "35.0 / 57.3", "28.0 / 52.2"], [".50", ".50", ".52"]),
        ("Phi-mini", ["26.1 / 54.6", "31.1 / 55.2", "24.4 / 50.2"], [".52", ".51", ".53"]),
    ],
)
def test_the_released_answers_score_as_computed_from_the_release_before(data_root, model, scores, overlaps):
    fields = read_sample(data_root, model)
    assert len(fields["question"]) == 100
    found = [(corpus_bleu(fields[one], fields[other]), corpus_chrf(fields[one], fields[other])) for one, other in PAIRS]
    assert [f"{bleu:.1f} / {chrf:.1f}" for bleu, chrf in found] == scores
    shares = [lexical_overlap(fields["question"], fields[name]) for name in (BASIC, PERSONALISED, CONTEXTUAL)]
    assert [f"{share:.2f}".lstrip("0") for share in shares] == overlaps
