"""Every file of `conf/` composes and validates, and holds the only defaults that there are."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import yaml
from hydra.errors import ConfigCompositionException

import pipeline
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.launch import CONF
from tests.composing import compose_experiment, compose_index

FILES = sorted(CONF.rglob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
OF_INDEXES = ("corpus", "retriever", "encoder")
"""Groups that `ray_jobs/index.py` alone composes."""
OPTIONS = sorted(
    (path.parent.name, path.stem)
    for path in CONF.glob("*/*.yaml")
    if path.parent.name not in ("experiment", *OF_INDEXES)
)
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
MAY_BE_LEFT_OUT = {"ArmConfig.teacher", "ArmConfig.method", "ArmConfig.students"}
"""Fields with a default in the model, because an arm in a file should not have to say that it has none."""


@pytest.fixture(autouse=True)
def _tracking_server(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")


def find_missing(group: str, option: str) -> list[str]:
    values = yaml.safe_load((CONF / group / f"{option}.yaml").read_text())
    parents = [entry for entry in values.get("defaults", []) if isinstance(entry, str) and entry != "_self_"]
    inherited = [key for parent in parents if "@" not in parent for key in find_missing(group, parent)]
    own = [f"{group}.{key}" for key, value in values.items() if value == "???"]
    return own + [key for key in inherited if key.partition(".")[2] not in values]


def test_all_files_are_found_and_each_is_one_that_a_test_composes():
    assert len(FILES) >= 31
    assert len(EXPERIMENTS) >= 3
    assert len(OPTIONS) >= 27
    assert len(OPTIONS_OF_INDEXES) >= 23
    # The two roots, and what all corpora build on.
    assert len(FILES) == 3 + len(EXPERIMENTS) + len(OPTIONS) + len(OPTIONS_OF_INDEXES)
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


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_an_option_composes_in_place_of_the_default_and_makes_a_difference(group, option):
    needs = NEEDS.get((group, option), [])
    given = [f"{key}={TO_BE_SET[key]}" for key in find_missing(group, option)]
    experiment = compose_experiment([f"{group}={option}", *needs, *given])
    if option == DEFAULTS[group]:
        assert experiment == compose_experiment(needs)
    else:
        assert experiment != compose_experiment(needs)


@pytest.mark.parametrize(("group", "option"), [pair for pair in OPTIONS if find_missing(*pair)])
def test_a_value_that_an_option_leaves_to_the_user_is_asked_for(group, option):
    with pytest.raises(ConfigError) as caught:
        compose_experiment([f"{group}={option}"])
    for key in find_missing(group, option):
        assert f"{key} is missing; set it, as in {key}=…" in str(caught.value)


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
    assert "corpus.ag_news.shards: unknown key" in str(caught.value)
    assert "retriever.bm25.k1" in str(caught.value)


def test_tuning_is_refused_where_nothing_can_be_tuned():
    tuning = "tuning={queries: q.tsv, relevant: r.tsv, measure: recall@100, k1: [1.0], b: [0.5]}"
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
