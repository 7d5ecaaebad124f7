"""Every file of `conf/` composes and validates, and holds the only defaults that there are."""

import importlib
import pkgutil
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

import pipeline
from pipeline import experiment
from pipeline.config import Config, validate
from pipeline.errors import ConfigError
from pipeline.identity import digest
from pipeline.launch import CONF
from pipeline.quality.cartography import SelectionConfig
from pipeline.stages.tune import check_search
from pipeline.tasks import make_task
from tests.composing import (
    compose_curves,
    compose_doctor,
    compose_experiment,
    compose_generation,
    compose_index,
    compose_part,
    compose_search,
)

FILES = sorted(CONF.rglob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
OF_INDEXES = ("corpus", "retriever", "encoder")
"""Groups that `ray_jobs/index.py` alone composes."""
OF_SEARCHES = ("search", "objective")
"""Groups that `ray_jobs/tune.py` alone composes."""
OF_ANNOTATIONS = "annotate"
"""The group that `ray_jobs/annotate.py` alone composes (test_annotation.py)."""
OF_SELECTIONS = "selection"
"""The group of what an arm's rows are selected by, for files of `data` to choose from."""
OF_ROWS = "rows"
"""The group that `data` and benchmarks are composed of."""
OF_ARMS = ("cartography", "join", "mix")
"""The options of `data` that make sense beside other arms alone."""
BASES = ("classification", "base")
"""Files that others build on, and that are no choice themselves."""
CLASSIFICATION = {
    "ag_news": ("ag_news_seeds", "ag_news_train", "ag_news_5k", "ag_news_5k_seeds"),
    "toi": ("toi_seeds", "toi_train"),
    **{
        task: (f"{task}_seeds", f"{task}_train")
        for task in ("hyperpartisan", "amazon_polarity", "amazon_category", "amazon_humor")
    },
    **{task: (f"{task}_seeds", task) for task in ("amazon_mds4_polarity", "amazon_mds4_category")},
}
"""For each file of `task` that is a classification, its files of `data`, seeds first."""
SYNTHESES = ("attributed", "fewgen", "nonretricl", "retricl")
"""The files of `method` for these."""
OF_CLASSIFICATION = (
    {("task", task) for task in CLASSIFICATION}
    | {("method", name) for name in SYNTHESES}
    | {("data", option) for options in CLASSIFICATION.values() for option in options}
)
COMMUNITY_TASKS, COMMUNITY_DATA = ("cqa", "se_pqa"), ("accepted_answers", "answers", "questions")
ANSWERS = ("basic", "contextual", "grounded", "personalized", "title_only")
"""The files of `method` for these."""
OF_COMMUNITIES = "communities"
"""The group that such a task's file chooses from."""
COMMUNITIES = sorted(path.stem for path in (CONF / OF_COMMUNITIES).glob("*.yaml"))
OF_CQA = (
    {("task", task) for task in COMMUNITY_TASKS}
    | {("method", name) for name in ANSWERS}
    | {("data", option) for option in COMMUNITY_DATA}
)
OPTIONS = sorted(
    (path.parent.name, path.stem)
    for path in CONF.glob("*/*.yaml")
    if path.parent.name
    not in ("experiment", OF_ROWS, OF_SELECTIONS, OF_COMMUNITIES, OF_ANNOTATIONS, *OF_SEARCHES, *OF_INDEXES)
    and path.stem not in (*OF_ARMS, *BASES)
    and (path.parent.name, path.stem) not in OF_CLASSIFICATION | OF_CQA
)
OBJECTIVES = {"held_out": [], "dev": ["objective.benchmark=ClariQ"]}
"""What each objective leaves to the user."""
SEARCHES = sorted(path.stem for path in (CONF / "search").glob("*.yaml"))
SELECTIONS = sorted(path.stem for path in (CONF / OF_SELECTIONS).glob("*.yaml"))
OPTIONS_OF_INDEXES = sorted(
    (group, path.stem) for group in OF_INDEXES for path in (CONF / group).glob("*.yaml") if path.stem != "base"
)
DEFAULTS = {
    group: option
    for entry in yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    if isinstance(entry, dict)
    for group, option in entry.items()
}
TO_BE_SET = {
    "data.path": "mine.tsv",
    "data.labels": "{a: b}",
    "student.model": "some/model",
    "teacher.model": "some/model",
    "teacher.base_url": "http://localhost:8000/v1",
}
"""Values for the keys that an option leaves to the user."""
TO_BE_SET_OF_INDEXES = {"corpus.paths": "['*.x']", "corpus.name": "some/dataset"}
NEEDS = {
    ("judge", "zero_shot"): ["teacher=gpt_4_1"],
    ("judge", "few_shot"): ["teacher=gpt_4_1"],
}
"""What an option needs beside it: the default teacher can't judge."""
MAY_BE_LEFT_OUT = {"ArmConfig.teacher", "ArmConfig.method", "ArmConfig.students", "ArmConfig.index"}
"""Fields with a default in the model, because an arm in a file should not have to say that it has none."""


@pytest.fixture(autouse=True)
def _tracking_server(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")


def walk(value, path=()):
    """Yield every key path and leaf."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from walk(item, (*path, str(key)))
    elif isinstance(value, list):
        for item in value:
            yield from walk(item, path)
    else:
        yield path, value


@cache
def find_missing(group: str, option: str) -> list[str]:
    with initialize_config_dir(str(CONF), version_base=None):
        composed = OmegaConf.to_container(compose(f"{group}/{option}"))
    return [".".join(path) for path, value in walk(composed) if value == "???"]


def test_all_files_are_found_and_each_is_one_that_a_test_composes():
    assert len(FILES) >= 31
    assert len(EXPERIMENTS) >= 3
    assert len(OPTIONS) >= 27
    assert len(OPTIONS_OF_INDEXES) >= 23
    n_rows = len(list((CONF / OF_ROWS).glob("*.yaml")))
    assert n_rows >= 11
    n_annotations = len(list((CONF / OF_ANNOTATIONS).glob("*.yaml")))
    assert n_annotations == 3
    # The seven roots, what all corpora build on, and what only stands beside other arms.
    groups = (
        OF_CLASSIFICATION,
        OF_CQA,
        COMMUNITIES,
        EXPERIMENTS,
        OPTIONS,
        OPTIONS_OF_INDEXES,
        SEARCHES,
        OBJECTIVES,
        SELECTIONS,
    )
    assert len(FILES) == 7 + len(OF_ARMS) + len(BASES) + n_rows + n_annotations + sum(map(len, groups))
    assert {group for group, _ in OPTIONS} <= set(DEFAULTS)
    for group, option in OPTIONS:
        assert (CONF / group / f"{DEFAULTS[group]}.yaml").is_file(), f"{group}={option} replaces no default"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes_and_validates_under_its_own_name(name):
    experiment = compose_experiment([f"experiment={name}"])
    assert experiment.name == name
    assert list(experiment.pairs())
    assert len(experiment.arms) >= 1
    first = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()[0]
    assert first == "# @package _global_"


def test_a_mix_is_added_to_an_experiment():
    arm = ["+data@arms.mixed.data=mix", "+filters@arms.mixed.filters=default"]
    experiment = compose_experiment(
        ["experiment=ambiguity_teachers", *arm, "arms.mixed.data.shares={gpt41: 0.4, human: 0.6}"]
    )
    assert experiment.arms["mixed"].data.shares == {"gpt41": 0.4, "human": 0.6}
    with pytest.raises(ConfigError, match=r"arms.mixed.data.shares is missing; set it"):
        compose_experiment(["experiment=ambiguity_teachers", *arm])


def test_curves_compose_on_any_experiment():
    experiment = compose_curves(["experiment=ambiguity_teachers", "curves.sizes=[300,50]"])
    assert experiment.curves.sizes == (50, 300)
    assert compose_curves(["experiment=quickstart"]).model_dump(exclude={"curves"}) == (
        compose_experiment(["experiment=quickstart"]).model_dump()
    )


def test_generation_composes_on_any_experiment_and_is_the_same_run():
    experiment = compose_generation(["experiment=ambiguity_teachers", "plan=true", "probe_rows=8"])
    assert (experiment.plan, experiment.probe_rows) == (True, 8)
    assert not compose_generation(["experiment=quickstart"]).plan
    plain = compose_experiment(["experiment=ambiguity_teachers"])
    assert experiment.model_dump(exclude={"plan", "probe_rows"}) == plain.model_dump()
    assert digest(experiment) == digest(plain), "MLflow shows a run of its own for it"


@pytest.mark.parametrize(
    ("overrides", "mistake"),
    [
        (["probe_rows=1"], "probe_rows: "),
        (["replay=[error]"], "plan: it shows what is unanswered, and `replay`"),
        (["data=ambignq_train"], "plan: no teacher is asked, since no arm of ambignq_train has one"),
        (["teacher=openai_batch", "teacher.model=m"], "plan: a probe by batch may take a day, and openai_batch would"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(overrides, mistake):
    with pytest.raises(ConfigError, match=mistake):
        compose_generation(["plan=true", *overrides])


def test_curves_of_rankers_are_refused():
    with pytest.raises(ConfigError, match="curves are of students that label texts, and cqa ranks them"):
        compose_curves(["experiment=stackexchange_cqa"])


def test_the_doctor_looks_at_what_an_experiment_would_run():
    looked_at = compose_doctor(["experiment=ambiguity_teachers", "output=found.json"])
    assert looked_at.output == "found.json"
    assert looked_at.model_dump(exclude={"output"}) == (
        compose_experiment(["experiment=ambiguity_teachers"]).model_dump()
    )


def test_all_mistakes_of_curves_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        compose_curves(
            ["experiment=quickstart", "curves.sizes=[50,50]", "curves.draws=0", "+curves.seeds=3", "seed=-1"]
        )
    for line in ("curves.sizes: Value error, each size once", "curves.draws: ", "curves.seeds: unknown key", "seed: "):
        assert f"  {line}" in str(caught.value)


@pytest.fixture
def any_student(monkeypatch):
    """Let the task of these experiments be learned by students of every kind, so that each file is validated."""
    kinds = ("classifier", "reranker", "frozen")
    monkeypatch.setattr(experiment, "make_task", lambda config: replace(make_task(config), student_kinds=kinds))


@pytest.mark.parametrize(
    ("task", "data", "method"),
    [(task, options[0], method) for task, options in CLASSIFICATION.items() for method in SYNTHESES],
)
def test_a_method_of_a_classification_task_composes(task, data, method):
    index = ["corpus=ag_news"] if method.endswith("retricl") else []
    experiment = compose_experiment([f"task={task}", f"data={data}", f"method={method}", "teacher=vllm_tiny", *index])
    (arm,) = experiment.arms.values()
    assert arm.method.name == method
    assert (arm.index in experiment.indexes) == bool(index)


@pytest.mark.parametrize("task", COMMUNITY_TASKS)
@pytest.mark.parametrize("method", ANSWERS)
def test_a_method_of_a_community_task_composes(task, method):
    experiment = compose_experiment(
        [f"task={task}", "data=questions", f"method={method}", "teacher=vllm_tiny", "student=reranker_minilm"]
    )
    (arm,) = experiment.arms.values()
    assert arm.method.name == "answer"
    assert arm.method.prompt == {"grounded": "basic"}.get(method, method)
    assert [index.corpus for index in experiment.indexes.values()] == [None] * (method == "grounded")


@pytest.mark.parametrize("option", COMMUNITIES)
def test_communities_compose(option):
    rows = ["data=accepted_answers", "student=reranker_minilm"]
    experiment = compose_experiment(["task=cqa", f"communities@task.communities={option}", *rows])
    assert experiment.task.communities.posts.posts == "all"


def test_data_and_students_of_another_kind_of_task_are_refused():
    with pytest.raises(ConfigError, match="no questions and answers, which cqa is about"):
        compose_experiment(["task=cqa", "student=reranker_minilm"])
    with pytest.raises(ConfigError, match="of communities, and ambiguity has none"):
        compose_experiment(["data=accepted_answers"])
    with pytest.raises(ConfigError, match="a student of kind classifier can't learn the task cqa"):
        compose_experiment(["task=cqa", "data=accepted_answers"])


@pytest.mark.parametrize(
    ("task", "data"), [(task, data) for task, options in CLASSIFICATION.items() for data in options]
)
def test_data_of_a_classification_task_have_its_labels(task, data):
    method = ["method=fewgen", "teacher=vllm_tiny"] if data.endswith("_seeds") else []
    experiment = compose_experiment([f"task={task}", f"data={data}", *method])
    (arm,) = experiment.arms.values()
    assert set(arm.data.labels.values()) == set(experiment.task.labels)
    assert set(experiment.task.own_benchmarks["test"].labels.values()) == set(experiment.task.labels)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
@pytest.mark.usefixtures("any_student")
def test_an_option_composes_in_place_of_the_default_and_makes_a_difference(group, option):
    needs = NEEDS.get((group, option), [])
    given = [f"{key}={TO_BE_SET[key]}" for key in find_missing(group, option)]
    experiment = compose_experiment([f"{group}={option}", *needs, *given])
    if option == DEFAULTS[group]:
        assert experiment == compose_experiment(needs)
    else:
        assert experiment != compose_experiment(needs)


@pytest.mark.parametrize(("group", "option"), [pair for pair in OPTIONS if find_missing(*pair)])
@pytest.mark.usefixtures("any_student")
def test_a_value_that_an_option_leaves_to_the_user_is_asked_for(group, option):
    with pytest.raises(ConfigError) as caught:
        compose_experiment([f"{group}={option}"])
    for key in find_missing(group, option):
        assert f"{key} is missing; set it, as in {key}=…" in str(caught.value)


def test_a_student_that_the_task_has_no_use_for_is_refused():
    with pytest.raises(
        ConfigError, match=r"reranker_minilm: a student of kind reranker can't learn the task ambiguity"
    ):
        compose_experiment(["student=reranker_minilm"])


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.usefixtures("any_student")
def test_a_search_composes_and_its_space_holds_the_default_student(name):
    student = {"frozen": "frozen_minilm", "reranker": "reranker_minilm"}.get(name, "minilm")
    experiment = compose_search([f"search={name}", f"student={student}"])
    check_search(experiment)
    own = yaml.safe_load((CONF / "search" / f"{name}.yaml").read_text())["space"]
    assert len(experiment.search.space.dimensions()) == len(own["student"]) + len(own["filters"])


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "objective").glob("*.yaml")))
def test_an_objective_composes(name):
    assert compose_search([f"objective={name}", *OBJECTIVES[name]]).objective.kind == name


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_selection_composes_and_validates(name):
    selection = validate(SelectionConfig, compose_part(OF_SELECTIONS, name))
    assert selection.keep == "range" or selection.share < 1, "it selects"


@pytest.mark.parametrize(("group", "option"), OPTIONS_OF_INDEXES)
def test_an_option_of_an_index_composes(group, option):
    chosen = {"corpus": "ag_news", "retriever": "dense"} | ({group: option} if group != "encoder" else {})
    overrides = [f"{name}={choice}" for name, choice in chosen.items()]
    overrides += [f"{key}={TO_BE_SET_OF_INDEXES[key]}" for key in find_missing(group, option)]
    if group == "encoder":
        overrides.append(f"encoder@retriever.encoder={option}")
    config = compose_index(overrides)
    assert config.name == f"{chosen['corpus']}_{chosen['retriever']}"
    if group == "encoder":
        values = yaml.safe_load((CONF / group / f"{option}.yaml").read_text())
        assert config.retriever.encoder.model == values["model"]
    else:
        assert getattr(config, group).kind


def test_an_index_needs_a_corpus_and_says_which_there_are():
    with pytest.raises(ConfigCompositionException, match="realnews_india"):
        compose_index([])


def test_all_mistakes_of_an_index_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        compose_index(["corpus=ag_news", "+corpus.shards=3", "retriever.k1=-1"])
    assert "corpus.shards: unknown key" in str(caught.value)
    assert "retriever.k1: " in str(caught.value)


def test_tuning_is_refused_where_nothing_can_be_tuned():
    tuning = "tuning={queries: q.tsv, relevant: r.tsv, measure: recall@100, tie_break: nDCG@10, k1: [1.0], b: [0.5]}"
    assert compose_index(["corpus=ag_news", tuning]).tuning.k1 == (1.0,)
    with pytest.raises(ConfigError, match="k1 and b"):
        compose_index(["corpus=ag_news", "retriever=dense", tuning])


def test_some_options_do_leave_values_to_the_user():
    assert {pair for pair in OPTIONS if find_missing(*pair)} >= {("data", "labelled"), ("student", "classifier")}


def test_a_variable_that_is_not_set_is_told(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        compose_experiment(["tracking=server"])


def test_the_files_that_come_with_the_project_are_found_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = compose_experiment(["experiment=quickstart"]).arms["offline"].data.path
    assert Path(path).is_file()
    assert Path(path).is_absolute()


def is_secret(path, value) -> bool:
    if path and path[-1].endswith(("_env", "_file")):
        return False  # where a secret is, not the secret
    words = set(re.split(r"[_.\-@/]", "_".join(path).lower()))
    is_named = bool(words & {"password", "passwd", "secret", "token", "credential", "credentials", "apikey"})
    is_named |= "api_key" in "_".join(path).lower() or "access_key" in "_".join(path).lower()
    return is_named or bool(re.search(r"://[^/\s]*:[^/\s]*@", str(value)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_no_file_holds_a_secret(path):
    leaves = list(walk(yaml.safe_load(path.read_text())))
    assert leaves
    assert [leaf for leaf in leaves if is_secret(*leaf)] == []


def test_a_secret_would_be_seen():
    for path, value in [(("teacher", "api_key"), "x"), (("auth_token",), None), (("uri",), "http://me:pw@host")]:
        assert is_secret(path, value)
    assert not is_secret(("max_new_tokens",), 3)
    assert not is_secret(("tracking", "uri"), "${oc.env:MLFLOW_TRACKING_URI}")


def test_defaults_stand_in_the_files_and_not_in_the_models():
    for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        importlib.import_module(module.name)
    models, pending = [], [Config]
    while pending:
        found = [m for m in pending.pop().__subclasses__() if m.__module__.startswith("pipeline.")]
        models += found
        pending += found
    assert len(models) >= 15
    with_default = {
        f"{model.__name__}.{name}"
        for model in models
        for name, field in model.model_fields.items()
        if not field.is_required()
    }
    assert with_default == MAY_BE_LEFT_OUT
