"""What an experiment may be, and how one is read from groups or from arms."""

import pytest

from pipeline.config import validate
from pipeline.errors import ConfigError
from pipeline.experiment import ExperimentConfig, read_experiment
from tests.composing import compose_experiment

QUICKSTART = compose_experiment(["experiment=quickstart"]).model_dump()
JUDGE = compose_experiment(["judge=zero_shot", "teacher=gpt_4_1"]).model_dump()["judges"]["gpt_4_1_zero_shot"]
ROWS = compose_experiment(["data=wiser_gpt41"]).model_dump()["arms"]["wiser_gpt41"]


def change(*changes) -> dict:
    """Return the quickstart's values with some (path, value) set."""
    values = validate(ExperimentConfig, QUICKSTART).model_dump()
    for path, value in changes:
        *parents, key = path.split(".")
        place = values
        for parent in parents:
            place = place[parent]
        place[key] = value
    return values


def explain(*changes) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(ExperimentConfig, change(*changes))
    return str(caught.value)


def test_the_values_that_the_tests_below_change_are_good_ones():
    assert validate(ExperimentConfig, change()).name == "quickstart"


def test_without_arms_the_groups_form_one_arm_and_one_student_named_by_their_choices():
    experiment = compose_experiment(["student=frozen_minilm", "method=paired_similar_lengths"])
    assert list(experiment.arms) == ["offline"]
    assert list(experiment.students) == ["frozen_minilm"]
    assert experiment.students["frozen_minilm"].kind == "frozen"
    assert experiment.arms["offline"].method.similar_lengths
    assert experiment.arms["offline"].teacher.kind == "offline"
    assert experiment.name == "ambiguity_offline_frozen_minilm"


def test_an_arm_of_rows_has_no_teacher_and_the_name_of_its_data():
    experiment = compose_experiment(["data=wiser_gpt41"])
    assert list(experiment.arms) == ["wiser_gpt41"]
    assert experiment.arms["wiser_gpt41"].teacher is None
    assert experiment.arms["wiser_gpt41"].method is None
    assert experiment.name == "ambiguity_wiser_gpt41_minilm"


def test_a_name_that_was_given_stands():
    assert compose_experiment(["name=mine"]).name == "mine"
    assert compose_experiment(["experiment=quickstart", "name=mine"]).name == "mine"


def test_a_choice_becomes_a_key_in_small_letters():
    plain = {**QUICKSTART, **QUICKSTART["arms"]["offline"], "student": QUICKSTART["students"]["minilm"]}
    plain["judge"] = {"prompt": None, "sampling": None, "max_attempts": None}
    composed = {
        **{k: v for k, v in plain.items() if k not in ("students", "index")},
        "arms": {},
        "students": {},
        "name": None,
    }
    composed["data"] = {**composed["data"], "root": "/data"}
    experiment = read_experiment(
        composed, {"data": "t", "teacher": "Llama-3.1", "student": "My.BERT"}, frozenset(), ExperimentConfig
    )
    assert list(experiment.arms) == ["llama_3_1"]
    assert list(experiment.students) == ["my_bert"]
    assert experiment.data.root == "/data"


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("student=distilbert", "students.<key>.…"),
        ("student.epochs=9", "students.<key>.…"),
        ("teacher=offline", "arms.<key>.teacher.…"),
        ("teacher.latency_s=1", "arms.<key>.teacher.…"),
        ("data=ambignq_train", "arms.<key>.data.…"),
        ("data.limit=3", "arms.<key>.data.…"),
        ("method=paired", "arms.<key>.method.…"),
        ("filters.length_matched=true", "arms.<key>.filters.…"),
        ("judge=zero_shot", "judges.<key>.…"),
        ("judge.max_attempts=3", "judges.<key>.…"),
    ],
)
def test_a_root_group_beside_an_experiment_is_refused_with_a_hint(override, place):
    with pytest.raises(ConfigError) as caught:
        compose_experiment(["experiment=quickstart", override])
    key = override.split("=")[0]
    assert f"{key}=… has no effect beside experiment=quickstart" in str(caught.value)
    assert place in str(caught.value)


def test_what_does_reach_an_experiment_is_taken():
    experiment = compose_experiment(
        [
            *("experiment=quickstart", "data.root=/data", "students.minilm.epochs=9", "arms.offline.data.limit=3"),
            *("scale=cluster", "tracking=none", "evaluation.n_replicates=100", "task.benchmarks=[ClariQ]", "seed=7"),
        ]
    )
    assert experiment.data.root == "/data"
    assert experiment.students["minilm"].epochs == 9
    assert experiment.arms["offline"].data.limit == 3
    assert experiment.scale.address == "auto"
    assert not experiment.tracking.enabled
    assert experiment.evaluation.n_replicates == 100
    assert experiment.task.benchmarks == ("ClariQ",)
    assert experiment.seed == 7


def test_a_student_can_be_added_to_an_experiment():
    experiment = compose_experiment(["experiment=quickstart", "+student@students.frozen=frozen_minilm"])
    assert list(experiment.pairs()) == [("offline", "minilm"), ("offline", "frozen")]


@pytest.mark.parametrize("key", ["majority", "prior", "length", "prototype", "tfidf_offline", "frozen_offline"])
def test_an_arm_or_a_judge_named_like_a_baseline_is_refused(key):
    message = explain(("arms", {key: QUICKSTART["arms"]["offline"]}))
    assert f"arms.{key}: that is the name of a baseline" in message
    assert f"judges.{key}: that is the name of a baseline" in explain(("judges", {key: JUDGE}))


def test_a_judge_named_like_an_arm_is_refused():
    assert "judges.offline: that is the key of an arm" in explain(("judges", {"offline": JUDGE}))


def test_rules_can_not_judge():
    message = explain(("judges", {"rules": {**JUDGE, "teacher": QUICKSTART["arms"]["offline"]["teacher"]}}))
    assert "judges.rules.teacher: " in message
    assert "rules write rows and can't judge" in message
    with pytest.raises(ConfigError, match="rules write rows and can't judge"):
        compose_experiment(["judge=zero_shot"])


def test_without_arms_a_judge_is_the_roots_teacher_under_a_sampling_of_its_own():
    experiment = compose_experiment(["judge=zero_shot", "teacher=gpt_4_1"])
    (key,) = experiment.judges
    assert key == "gpt_4_1_zero_shot"
    assert experiment.judges[key].teacher == experiment.arms["gpt_4_1"].teacher
    assert experiment.judges[key].sampling.temperature == 0.0 < experiment.arms["gpt_4_1"].teacher.sampling.temperature
    assert experiment.name == "ambiguity_gpt_4_1_minilm_gpt_4_1_zero_shot"


def test_a_teacher_beside_rows_is_the_judges():
    experiment = compose_experiment(["data=wiser_gpt41", "judge=few_shot", "teacher=gpt_4_1", "judge.max_attempts=2"])
    assert experiment.arms["wiser_gpt41"].teacher is None
    assert experiment.arms["wiser_gpt41"].method is None
    judge = experiment.judges["gpt_4_1_few_shot"]
    assert (judge.teacher.label, judge.prompt, judge.max_attempts) == ("gpt-4.1", "few_shot", 2)


def test_nothing_judges_unless_it_is_chosen():
    assert compose_experiment([]).judges == {}
    assert compose_experiment(["experiment=quickstart"]).judges == {}
    with pytest.raises(ConfigError, match=r"judges\.offline_none\.prompt"):
        compose_experiment(["judge.max_attempts=2"])


def test_a_judge_is_added_to_an_experiment_from_a_teacher_and_a_way_to_ask():
    experiment = compose_experiment(
        [
            *("experiment=quickstart", "+teacher@judges.gpt.teacher=gpt_4_1", "+judge@judges.gpt=few_shot"),
            "judges.gpt.teacher.timeout_s=5",
        ]
    )
    judge = experiment.judges["gpt"]
    assert (judge.teacher.label, judge.teacher.timeout_s, judge.prompt) == ("gpt-4.1", 5.0, "few_shot")
    assert list(experiment.pairs()) == [("offline", "minilm")]


@pytest.mark.parametrize("key", ["Offline", "1st", "a-b", "a b", ""])
def test_keys_that_would_not_do_in_a_path_are_refused(key):
    assert "should match pattern" in explain(("arms", {key: QUICKSTART["arms"]["offline"]}))
    assert "should match pattern" in explain(("students", {key: QUICKSTART["students"]["minilm"]}))
    assert "should match pattern" in explain(("judges", {key: JUDGE}))


def test_an_arm_with_a_student_that_does_not_exist_is_refused_with_those_that_do():
    assert "arms.offline.students: no student bert; have ['minilm']" in explain(("arms.offline.students", ["bert"]))


@pytest.mark.parametrize("part", ["teacher", "method"])
def test_topics_need_a_teacher_and_a_method(part):
    message = explain((f"arms.offline.{part}", None))
    assert "arms.offline: " in message
    assert "they need a `teacher` and a `method`" in message


@pytest.mark.parametrize("part", ["teacher", "method"])
def test_rows_take_neither_teacher_nor_method(part):
    message = explain(("arms.gpt41", {**ROWS, part: QUICKSTART["arms"]["offline"][part]}))
    assert "arms.gpt41: " in message
    assert "leave out `teacher`, `method` and `index`" in message


MIX = {"data": {"kind": "mix", "shares": {"offline": 1.0}, "seed": 42}, "filters": ROWS["filters"]}


def mix(**shares) -> dict:
    return {**MIX, "data": {**MIX["data"], "shares": shares}}


def test_a_mix_may_come_before_the_arms_that_it_draws_from():
    experiment = validate(ExperimentConfig, change(("arms", {"mixed": MIX, "offline": QUICKSTART["arms"]["offline"]})))
    assert list(experiment.arms) == ["mixed", "offline"]


def test_a_mix_of_an_arm_that_does_not_exist_is_refused():
    message = explain(("arms", {**QUICKSTART["arms"], "mixed": mix(offlne=1.0)}))
    assert "arms.mixed.data: no arm offlne to take rows from; have ['offline', 'mixed']" in message


def test_arms_may_take_rows_from_derived_arms_and_never_in_a_circle():
    arms = {"more": mix(mixed=1.0), "mixed": MIX, **QUICKSTART["arms"]}
    assert validate(ExperimentConfig, change(("arms", arms))).order_arms() == ["offline", "mixed", "more"]
    for shares in ({"mixed": 1.0}, {"more": 1.0}):
        message = explain(("arms", {**arms, "mixed": mix(**shares)}))
        assert "take rows from each other in a circle" in message


@pytest.mark.parametrize(
    ("shares", "mistake"),
    [
        ({"offline": 0.5, "rows": 0.4}, "shares sum to 0.9; they must sum to 1"),
        ({"offline": 1.0, "rows": 0.0}, "every share is more than 0; leave out rows"),
        ({"offline": 1.5, "rows": -0.5}, "every share is more than 0; leave out rows"),
        ({"offline": 1 - 2e-6}, "they must sum to 1"),
        ({"offline": float("nan")}, "every share is more than 0"),
        ({}, "at least 1"),
    ],
)
def test_shares_of_a_mix_are_above_0_and_sum_to_1(shares, mistake):
    assert mistake in explain(("arms", {**QUICKSTART["arms"], "rows": ROWS, "mixed": mix(**shares)}))


def test_a_sum_of_shares_may_be_off_by_what_floats_are_off():
    arms = {**QUICKSTART["arms"], "a": ROWS, "b": ROWS, "mixed": mix(offline=0.1, a=0.2, b=0.7 - 5e-7)}
    assert validate(ExperimentConfig, change(("arms", arms))).arms["mixed"].data.shares["a"] == 0.2


def test_a_mix_has_no_teacher_of_its_own():
    arm = {**MIX, "teacher": QUICKSTART["arms"]["offline"]["teacher"]}
    assert "leave out `teacher`, `method` and `index`" in explain(("arms", {**QUICKSTART["arms"], "mixed": arm}))


def test_rows_beside_a_teacher_on_the_command_line_are_refused():
    with pytest.raises(ConfigError, match="leave out `teacher`, `method` and `index`"):
        compose_experiment(["data=wiser_gpt41", "teacher=offline"])


@pytest.mark.parametrize("key", ["benchmarks", "optional_benchmarks"])
def test_a_benchmark_that_does_not_exist_is_refused_with_those_that_do(key):
    message = explain((f"task.{key}", ["ClariQ", "Clariq"]))
    assert f"task.{key}: " in message
    assert "no benchmark Clariq; known: " in message
    assert "AmbigNQ" in message


def test_students_that_nothing_judges_are_refused():
    assert "at least one benchmark" in explain(("task.benchmarks", []), ("task.optional_benchmarks", []))


def test_a_task_that_does_not_exist_is_refused_with_those_that_do():
    message = explain(("task.kind", "ambigous"))
    assert "'ambiguity', 'classification'" in message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "a/b"),
        ("root", ""),
        ("seed", -1),
        ("arms", {}),
        ("students", {}),
        ("task.settings", []),
        ("task.settings", ["dev"]),
        ("scale.num_cpus", 0),
        ("scale.pool.actors", 0),
        ("evaluation.n_replicates", 3),
        ("students.minilm.learning_rate", 0),
        ("students.minilm.label_smoothing", 1.0),
        ("arms.offline.filters.near_duplicate_similarity", 1.5),
        ("arms.offline.data.limit", 0),
        ("arms.offline.teacher.sampling.top_p", 0),
    ],
)
def test_a_value_out_of_bounds_is_told_with_its_path(path, value):
    last = path.split(".")[-1]
    assert f"{last}" in explain((path, value)).splitlines()[1].split(": ")[0]


def test_mistakes_everywhere_are_told_at_once():
    message = explain(("seed", -1), ("students.minilm.epoch", 3), ("arms.offline.filters.typo", 1), ("root", ""))
    assert message.startswith("the configuration has 4 mistakes:")


def test_every_arm_meets_every_student_unless_it_lists_its_own():
    arms, students = QUICKSTART["arms"], QUICKSTART["students"]
    values = change(
        ("arms", {"b": arms["offline"], "a": {**arms["offline"], "students": ["y"]}, "none": {**ROWS, "students": []}}),
        ("students", {"x": students["minilm"], "y": students["minilm"]}),
    )
    assert list(validate(ExperimentConfig, values).pairs()) == [("b", "x"), ("b", "y"), ("a", "y")]


CQA = compose_experiment(["task=cqa", "data=accepted_answers", "student=reranker_minilm"]).model_dump()


def change_rankers(n_arms, n_permutations) -> dict:
    """Return the values of a comparison of as many arms; with one student they are 4 + 2 * n_arms rankers."""
    arms = {f"arm_{number}": CQA["arms"]["accepted_answers"] for number in range(n_arms)}
    return {**CQA, "arms": arms, "task": {**CQA["task"], "n_permutations": n_permutations}}


def test_so_few_permutations_that_no_difference_could_be_significant_are_refused_with_how_many_would_do():
    assert validate(ExperimentConfig, change_rankers(8, 10_000))
    with pytest.raises(ConfigError) as caught:
        validate(ExperimentConfig, change_rankers(9, 10_000))
    assert "Holm's correction for the 231 pairs of 22 rankers leaves no p below 0.023" in str(caught.value)
    assert "set it to 11549 or more" in str(caught.value)
    assert validate(ExperimentConfig, change_rankers(9, 11_549))
    with pytest.raises(ConfigError, match="set it to 11549 or more"):
        validate(ExperimentConfig, change_rankers(9, 11_548))


def test_a_page_on_the_quality_of_answers_is_refused_before_anything_runs():
    with pytest.raises(ConfigError, match="leave out quality=default: the comparison's report says"):
        compose_experiment(["experiment=stackexchange_cqa", "quality=default"])
