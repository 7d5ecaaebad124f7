"""Searches: what is checked before any work, which rows trials are judged on, and what becomes of the best."""

import json
import re
from dataclasses import replace

import pytest
import yaml

from pipeline.cluster import Cluster
from pipeline.errors import ConfigError, TrainingError
from pipeline.records import Example, from_table, to_table
from pipeline.report.search import TrialRow, print_trials, render_search, tabulate_trials
from pipeline.stages.inputs import read_inputs
from pipeline.stages.trials import choose_best, clip_point
from pipeline.stages.tune import (
    build_variants,
    check_search,
    choose_pair,
    describe_search,
    find_default,
    read_dev_items,
    write_tuned,
)
from pipeline.steps import Step, Steps
from pipeline.storage import Folder
from pipeline.students.search import DevConfig, HeldOutConfig
from pipeline.students.trial import TrialWork, configure, make_splits, name_data
from tests.composing import compose_experiment, compose_search
from tests.two_teachers import list_overrides, write_files

LABELS = ("clear", "ambiguous")


def explain(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_search(compose_search(overrides))
    return str(caught.value)


def test_the_default_is_what_the_experiment_itself_is():
    experiment = compose_search(["experiment=quickstart", "search=data"])
    check_search(experiment)
    assert find_default(experiment) == {
        "student.learning_rate": 5e-5,
        "filters.length_matched": False,
        "filters.max_rows": None,
    }


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["experiment=ambiguity_teachers"], "search.arm is null, but there are ['llama31_8b'"),
        (["experiment=ambiguity_teachers", "search.arm=gpt5"], "search.arm is gpt5, but there are ["),
        (["experiment=quickstart", "search.student=roberta"], "search.student is roberta, but there are ['minilm']"),
        (
            ["experiment=quickstart", "search=frozen"],
            "a student of kind classifier has no inverse_regularisation",
        ),
        (
            ["experiment=quickstart", "+search.space.student.model={kind: choice, values: [a, b]}"],
            "model is what the student is, and can't be searched",
        ),
        (
            ["experiment=quickstart", "+search.space.filters.min_length={kind: choice, values: [1, 2]}"],
            "there is no filter min_length",
        ),
        (
            ["experiment=quickstart", "search.space.arm={kind: choice, values: [offline, gpt5]}"],
            "no arm gpt5; have ['offline']",
        ),
        (
            ["experiment=quickstart", "students.minilm.learning_rate=0.5"],
            "search.space.student.learning_rate: the default 0.5 is outside",
        ),
        (["experiment=quickstart", "search=classifier", "search.sampler=grid"], "of which there is no grid"),
        (
            ["experiment=quickstart", "search.space.student.batch_size.values=[32,0]"],
            "batch_size: Input should be greater than 0",
        ),
        (
            ["experiment=quickstart", "search=population", "objective.measured=2"],
            "objective.measured: a population trains once",
        ),
        (
            ["experiment=quickstart", "search.space.student.label_smoothing.high=1.0"],
            "label_smoothing: Input should be less than 1",
        ),
        (
            ["experiment=quickstart", "search=data", "search.space.filters.max_rows.values=[null,0]"],
            "max_rows: Input should be greater than 0",
        ),
    ],
)
def test_a_mistake_is_told_before_anything_is_read(overrides, told):
    assert told in explain(*overrides)


def test_a_search_of_an_experiment_names_arm_and_student():
    experiment = compose_search(["experiment=ambiguity_teachers", "search.arm=gpt41"])
    assert choose_pair(experiment) == ("gpt41", "minilm")


# --- the objective


def test_a_test_split_is_refused_and_a_dev_split_taken(tmp_path):
    inputs = read_inputs(compose_experiment(["experiment=quickstart", f"root={tmp_path}", "tracking=none"]))
    gold = inputs.gold["Handwritten-60"]
    with pytest.raises(ConfigError, match=r"Handwritten-60 lets no split select, given none; a search that saw test"):
        read_dev_items(DevConfig(kind="dev", benchmark="Handwritten-60", splits=None), inputs)
    benchmark = replace(gold.benchmark, dev_splits=("dev",), test_splits=("test",))
    items = tuple(replace(item, split="dev" if place % 3 else "test") for place, item in enumerate(gold.items))
    split = replace(inputs, gold={"Both": replace(gold, benchmark=benchmark, items=items)})
    for refused in (("test",), ("dev", "test"), ()):
        with pytest.raises(ConfigError, match=r"Both lets \['dev'\] select, given"):
            read_dev_items(DevConfig(kind="dev", benchmark="Both", splits=refused), split)
    taken = read_dev_items(DevConfig(kind="dev", benchmark="Both", splits=None), split)
    assert [item.row_id for item in taken] == [item.item_id for item in items if item.split == "dev"]
    with pytest.raises(ConfigError, match=r"objective.benchmark is Neither, but the experiment reads \['Both'\]"):
        read_dev_items(DevConfig(kind="dev", benchmark="Neither", splits=None), split)


def make_rows(n_groups: int, name: str) -> list[Example]:
    return [
        Example(f"{name}{g}-{i}", "", f"g{g}", f"{name} {g} {i}", LABELS[i % 2])
        for g in range(n_groups)
        for i in range(4)
    ]


def make_work(tmp_path, objective, **rows: list[Example]) -> TrialWork:
    folders = {}
    for name, examples in rows.items():
        folders[name] = Folder.at(tmp_path / name)
        folders[name].write_table("examples.parquet", to_table(Example, examples))
    student = compose_experiment(["experiment=quickstart"]).students["minilm"]
    return TrialWork(
        student, LABELS, folders, objective, next(iter(rows)), tuple(make_rows(2, "dev")), None, 7, 1, False, False
    )


def test_trials_of_other_rows_are_judged_on_the_same_held_out_rows(tmp_path):
    everything = make_rows(10, "a")
    fewer = [row for row in everything if row.group in ("g0", "g1", "g2", "g3", "g4")]
    objective = HeldOutConfig(kind="held_out", folds=5, measured=2)
    work = make_work(tmp_path, objective, base=everything, fewer=fewer, others=make_rows(10, "b"))
    splits = {name: make_splits(work, name) for name in work.rows}
    for name, found in splits.items():
        assert [held_out for _, held_out in found] == [held_out for _, held_out in splits["base"]]
        for train, held_out in found:
            assert len(held_out) == 8
            assert not {row.group for row in train} & {row.group for row in held_out}
            assert len(train) == {"base": 32, "others": 32}.get(name, len(train))
            assert {row.text[0] for row in train} == {"b" if name == "others" else "a"}
    first, second = (held_out for _, held_out in splits["base"])
    assert not {row.group for row in first} & {row.group for row in second}


def test_with_dev_items_as_the_objective_all_rows_are_trained_on(tmp_path):
    work = make_work(tmp_path, DevConfig(kind="dev", benchmark="B", splits=None), base=make_rows(10, "a"))
    ((train, judged_on),) = make_splits(work, "base")
    assert len(train) == 40
    assert tuple(judged_on) == work.dev


def test_each_choice_of_rows_is_a_data_set_of_its_own_and_the_default_is_the_arms(tmp_path):
    experiment = compose_search(
        list_overrides(
            write_files(tmp_path),
            "+search.space.filters.max_rows={kind: choice, values: [null, 20]}",
            "search.space.arm={kind: choice, values: [first, second]}",
            "search.arm=first",
        )
    )
    inputs, steps = read_inputs(experiment), Steps(Folder.at(experiment.root))
    with Cluster(experiment.scale, steps.root, root_is_shared=False) as cluster:
        variants = build_variants(experiment, inputs, steps, cluster)
    rows = {
        name: [row.text for row in from_table(Example, step.folder.read_table("examples.parquet"))]
        for name, step in variants.items()
    }
    points = [{"filters.max_rows": n, "arm": arm} for n in (None, 20) for arm in ("first", "second")]
    assert list(rows) == [name_data(point) for point in points]
    whole_first, whole_second, few_first, few_second = rows.values()
    assert set(few_first) < set(whole_first)
    assert set(few_second) < set(whole_second)
    assert len(few_first) <= 20 < len(whole_first)
    assert any("first teacher" in text for text in whole_first)
    assert not any("first teacher" in text for text in whole_second)


# --- the best


def make_trial(number, score, state="complete", n_splits=1, **point) -> TrialRow:
    return TrialRow(
        number=number, state=state, score=score, n_epochs=2, n_splits=n_splits, duration_s=1.5,
        error="it died" if state == "failed" else None, point=point or {"student.learning_rate": 1e-5 * (number + 1)},
    )  # fmt: skip


def test_the_best_has_the_highest_value_of_those_measured_on_every_split():
    assert choose_best([make_trial(0, 0.5), make_trial(1, 0.7), make_trial(2, 0.7)])["number"] == 1
    partial = make_trial(1, 0.9, "stopped early", n_splits=1)
    assert choose_best([make_trial(0, 0.5, n_splits=2), partial])["number"] == 0
    assert choose_best([make_trial(0, None, "failed", n_splits=0), make_trial(1, 0.1)])["number"] == 1


def test_a_search_without_any_value_says_why():
    with pytest.raises(TrainingError, match="no trial of the search ended with a value: it died"):
        choose_best([make_trial(0, None, "failed", n_splits=0)])


def test_settings_of_a_point_that_no_student_can_have_are_refused():
    student = compose_experiment(["experiment=quickstart"]).students["minilm"]
    point = {"student.batch_size": 64, "filters.max_rows": 5}
    assert configure(student, point) == student.model_copy(update={"batch_size": 64})
    with pytest.raises(ConfigError, match="learning_rate"):
        configure(student, {"student.learning_rate": -1.0})


def test_the_best_is_a_student_that_the_same_root_knows(tmp_path):
    experiment = compose_search(["experiment=quickstart", f"root={tmp_path}"])
    trials = [make_trial(0, 0.5), make_trial(1, 0.75)]
    found = describe_search(experiment, trials)
    step_folder = Folder.at(tmp_path / "step")
    step_folder.write_json("search.json", found)
    name = write_tuned(Step("search", "", "abc", step_folder, {}, kept=False), Folder.at(tmp_path))
    assert name == "tuned_minilm_offline"
    content = (tmp_path / "conf/student/tuned_minilm_offline.yaml").read_text()
    assert "Trial 1 of the search abc, judged on held_out rows: 0.7500; the default: 0.5000." in content
    student = experiment.students["minilm"]
    assert yaml.safe_load(content) == json.loads(student.model_copy(update={"learning_rate": 2e-5}).model_dump_json())


def test_a_student_tuned_on_dev_items_is_reported_on_test_items_alone():
    experiment = compose_search(["experiment=quickstart", "objective=dev", "objective.benchmark=ClariQ"])
    assert describe_search(experiment, [make_trial(0, 0.5)])["tuned"]["selected_on"] == ["ClariQ"]
    with pytest.raises(ConfigError, match=r"students.minilm: its settings were chosen on dev items of ClariQ, so"):
        compose_experiment(["experiment=quickstart", "students.minilm.selected_on=[ClariQ]"])
    chosen = ["students.minilm.selected_on=[ClariQ]", "task.settings=[standard,dev-selected]"]
    assert compose_experiment(["experiment=quickstart", *chosen]).students["minilm"].selected_on == ("ClariQ",)


def test_a_population_has_no_default_and_stays_in_its_space():
    experiment = compose_search(["experiment=quickstart", "search=population"])
    assert describe_search(experiment, [make_trial(0, 0.5), make_trial(1, 0.6)])["default"] is None
    space = experiment.search.space
    assert clip_point(space, {"student.learning_rate": 2.4e-4}) == {"student.learning_rate": 2e-4}
    assert clip_point(space, {"student.learning_rate": 5e-5}) == {"student.learning_rate": 5e-5}


# --- the report


def render(trials, distributions) -> str:
    experiment = compose_search(["experiment=quickstart"])
    found = describe_search(experiment, trials)
    return render_search("quickstart", {**found, "distributions": distributions}, trials, "a: 1", {"ray": "2"})


def test_the_report_shows_figures_of_enough_trials_and_every_trial():
    distributions = {
        "student.learning_rate": {"kind": "log_uniform", "low": 1e-6, "high": 1e-3},
        "filters.max_rows": {"kind": "choice", "values": [None, 100]},
    }
    trials = [
        make_trial(n, 0.4 + 0.05 * n, "stopped early" if n % 3 == 2 else "complete",
                   **{"student.learning_rate": 1e-5 * (n + 1), "filters.max_rows": (None, 100)[n % 2]})
        for n in range(8)
    ]  # fmt: skip
    html = render([*trials, make_trial(8, None, "failed", n_splits=0)], distributions)
    assert html.count("<img ") == 3
    assert "The best is trial 7 with 0.750; the default (trial 0) has 0.400" in html
    assert len(re.findall(r"<tr><td", html)) == 9
    assert "Failed: it died" in html
    few = render(trials[:3], distributions)
    assert few.count("<img ") == 1
    assert "say nothing of which settings matter" in few


def test_trials_are_printed_best_first(capsys):
    from rich.console import Console

    rows = [make_trial(0, 0.5), make_trial(1, None, "failed"), make_trial(2, 0.75)]
    assert [row["trial"] for row in tabulate_trials(rows)] == [2, 0, 1]
    print_trials(rows, Console(width=120))
    assert "3 trials, the best 3" in capsys.readouterr().out
