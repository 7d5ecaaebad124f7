"""Curves: which subsets are drawn, which fits a point is of, its interval, and what its rows took."""

from collections import Counter
from dataclasses import replace

import pytest

from pipeline.cluster import Cluster
from pipeline.evaluation import baselines
from pipeline.evaluation.bootstrap import estimate
from pipeline.records import Example, Prediction, from_table
from pipeline.stages import curves
from pipeline.stages.baselines import run_evaluation
from pipeline.stages.evaluate import PREDICTIONS, judge
from pipeline.stages.inputs import read_inputs
from pipeline.steps import Outputs, Step, Steps
from pipeline.storage import Folder
from tests.composing import compose_curves
from tests.two_teachers import list_overrides, write_files

DRAWS = 3


def predict_like_a_student(gold, rows, seed):
    """Return predictions that depend on the rows and the seed, as a trained student's do."""
    words = {word for row in rows for word in row.text.split()}
    for place, item in enumerate(gold.items):
        score = (len(words & set(item.text.lower().split())) * 31 + seed * 17 + len(rows) + place * 7) % 100 / 100
        decision = "ambiguous" if score > 0.5 else "clear"
        yield Prediction(gold.benchmark.name, "standard", item.item_id, item.text, item.label, decision, score, seed)


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """A function that traces curves of two arms and a mix, by students that are trained in no time."""
    files, trained = write_files(tmp_path_factory.mktemp("curves")), []

    def train(arm, student, dataset, experiment, inputs, steps, cluster):
        trained.append((arm, experiment.students[student].seeds))
        return Step("student", f"{arm}/{student}", f"{arm}-{dataset.fingerprint}", dataset.folder, {}, kept=True)

    def evaluate_student(arm, student, fit, dataset, experiment, inputs, steps, cluster):
        rows = list(from_table(Example, dataset.folder.read_table("examples.parquet")))

        def predict(gold):
            return [p for seed in experiment.students[student].seeds for p in predict_like_a_student(gold, rows, seed)]

        def produce(folder):
            return judge(folder, predict, arm, student, "", experiment, inputs)

        seeds = {"seeds": experiment.students[student].seeds}
        made_of = {"student": fit.fingerprint}
        return run_evaluation(produce, f"{arm}/{student}", made_of, seeds, experiment, inputs, steps)

    def evaluate_majority(datasets, experiment, inputs, steps, cluster):
        def predict(gold):
            name = {"benchmark": gold.benchmark.name, "setting": "standard"}
            return baselines.predict_majority(gold.items, inputs.task.labels, inputs.task.positive, **name)

        def produce(folder) -> Outputs:
            return judge(folder, predict, "majority", None, "", experiment, inputs)

        return [run_evaluation(produce, "majority", {}, {}, experiment, inputs, steps)]

    settings = ["curves.sizes=[6,12,500]", f"curves.draws={DRAWS}", "students.minilm.seeds=[7,8]"]
    experiment = compose_curves(list_overrides(files, *settings, "evaluation.n_replicates=200"))

    def trace():
        trained.clear()
        root, finished = Folder.at(experiment.root), []
        cluster = Cluster(experiment.scale, root, root_is_shared=False)
        step = curves.trace_curves(experiment, read_inputs(experiment), Steps(root, finished.append), cluster)
        return step, finished, list(trained)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "train", train)
        patch.setattr(curves, "evaluate_student", evaluate_student)
        patch.setattr(curves, "evaluate_baselines", evaluate_majority)
        yield trace


@pytest.fixture(scope="module")
def traced(trace):
    """What the first run came to: its last step, all its steps, and what was trained."""
    return trace()


def read_points(step, **wanted):
    points = step.folder.read_json(curves.CURVES)
    return [point for point in points if all(point[key] == value for key, value in wanted.items())]


def test_every_arm_has_a_point_for_each_size_it_reaches_and_one_for_all_its_rows(trace, caplog):
    step, _, trained = trace()
    points = read_points(step, student="minilm", measure="macro-F1")
    assert Counter((p["benchmark"], p["setting"], p["n"]) for p in points) == {("Handwritten-60", "standard", 60): 9}
    assert [(p["arm"], p["rows"], p["fits"]) for p in points] == [
        ("mixed", 4, 3), ("mixed", 12, 3), ("mixed", 45, 2),
        ("first", 6, 3), ("first", 12, 3), ("first", 24, 2),
        ("second", 6, 3), ("second", 12, 3), ("second", 24, 2),
    ]  # fmt: skip
    assert "first has 24 rows, so its curve has no point at 500" in caplog.text
    # A draw is one fit, the seeds in turn; all rows are the student's own fits, under the arm's own name.
    assert [fit for fit in trained if fit[0].startswith("first")] == [
        ("first_rows6_draw1", (7,)), ("first_rows6_draw2", (8,)), ("first_rows6_draw3", (7,)),
        ("first_rows12_draw1", (7,)), ("first_rows12_draw2", (8,)), ("first_rows12_draw3", (7,)),
        ("first", (7, 8)),
    ]  # fmt: skip


def test_draws_differ_are_nested_and_take_the_same_topics_from_each_arm(traced):
    _, finished, _ = traced
    datasets = {step.arm: step.folder for step in finished if step.name == "dataset"}
    groups = {arm: set(folder.read_table("examples.parquet")["group"].to_pylist()) for arm, folder in datasets.items()}
    drawn = [groups[f"first_rows6_draw{draw}"] for draw in (1, 2, 3)]
    assert len({frozenset(draw) for draw in drawn}) > 1
    for draw in (1, 2, 3):
        assert groups[f"first_rows6_draw{draw}"] < groups[f"first_rows12_draw{draw}"] < groups["first"]
        assert groups[f"first_rows6_draw{draw}"] == groups[f"second_rows6_draw{draw}"]
    arms = [
        dict(extras)["arm"]
        for extras in datasets["mixed_rows12_draw1"].read_table("examples.parquet")["extras"].to_pylist()
    ]
    assert set(arms) == {"first", "second"}


def test_a_point_is_the_mean_of_its_fits_and_its_interval_draws_items_and_fits(traced):
    step, finished, _ = traced
    (point,) = read_points(step, arm="second", rows=12, measure="accuracy")
    fits = []
    for draw in (1, 2, 3):
        (evaluation,) = [
            s.folder for s in finished if s.name == "evaluation" and s.arm == f"second_rows12_draw{draw}/minilm"
        ]
        fits.append(list(from_table(Prediction, evaluation.read_table(PREDICTIONS))))
    shares = [sum(p.predicted == p.label for p in fit) / len(fit) for fit in fits]
    assert len(set(shares)) > 1
    assert point["value"] == pytest.approx(sum(shares) / 3)
    # Draws 1 and 3 share seed 7, and are two fits all the same.
    relabelled = [replace(p, seed=draw) for draw, fit in enumerate(fits) for p in fit]
    (expected,) = [
        e for e in estimate(relabelled, ("clear", "ambiguous"), "ambiguous", 200, 0) if e.measure == "accuracy"
    ]
    assert (point["low"], point["high"]) == (expected.low, expected.high)
    assert point["low"] < point["value"] < point["high"]


def test_imported_rows_have_no_cost_and_a_baseline_has_no_rows(traced):
    step, _, _ = traced
    assert {(p["usd"], p["device_s"]) for p in read_points(step)} == {(None, None)}
    (majority,) = read_points(step, arm="majority", measure="accuracy")
    assert (majority["student"], majority["rows"], majority["fits"], majority["value"]) == (None, None, None, 0.5)


def test_figures_and_a_report_stand_beside_the_points_and_the_second_time_nothing_is_done(trace, traced):
    step, finished, _ = traced
    assert step is finished[-1]
    assert {name for name in step.folder.names() if name.endswith(".png")} == {
        "minilm_handwritten-60_standard_rows.png"
    }
    report = step.folder.read_text("report.html")
    assert "cost not measured" not in report  # no cost was measured of any arm, so there is no figure of costs
    assert "not measured" in report
    names = {(point[0], point[1]) for point in step.manifest["series"]}
    assert ("Handwritten-60/standard/macro-F1/first minilm", 12) in names
    again, kept, _ = trace()
    assert again.folder == step.folder
    assert all(one.kept for one in kept)
    assert len(kept) == len(finished)


def make_step(**counts) -> Step:
    return Step("dataset", "arm", "0", Folder.at("/nowhere"), {"counts": counts}, kept=True)


PER_ROW = {
    "bought": {"usd": 0.002, "device_s": None},
    "local": {"usd": 0.001, "device_s": 0.5},
    "imported": {"usd": None, "device_s": None},
}


@pytest.mark.parametrize(
    ("arm", "counts", "usd", "device_s"),
    [
        ("local", {"rows": 100}, 0.1, 50.0),
        ("bought", {"rows": 100}, 0.2, None),
        ("imported", {"rows": 100}, None, None),
        # What a mix drew was paid for, also where its filters left a row out: 60 x .002 + 40 x .001.
        ("mixed", {"rows": 90, "drawn_bought": 60, "drawn_local": 40}, 0.16, None),
        ("mixed", {"rows": 90, "drawn_imported": 60, "drawn_local": 40}, None, None),
        ("local_rows50_draw1", {"rows": 48, "drawn_local": 50}, 0.05, 25.0),
    ],
)
def test_a_subset_costs_its_share_of_the_arms_it_is_drawn_from(arm, counts, usd, device_s):
    assert curves.measure_cost(arm, make_step(**counts), PER_ROW) == {
        "usd": pytest.approx(usd) if usd else None,
        "device_s": pytest.approx(device_s) if device_s else None,
    }
