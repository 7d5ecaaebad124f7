import pytest

from pipeline.errors import ConfigError
from pipeline.stages.inputs import JOB_VARIABLE, check_root, read_inputs
from tests.composing import compose_experiment

LABELS = "data.labels={yes: ambiguous, no: clear}"


def compose_seeds(tmp_path, *overrides):
    (tmp_path / "seeds.tsv").write_text("text\tlabel\nnear me\tyes\nopening hours of the museum\tno\n")
    places = [f"root={tmp_path}/runs", "tracking=none", f"data.path={tmp_path}/seeds.tsv"]
    return compose_experiment(["data=seeds", *places, LABELS, *overrides])


def test_seeds_with_labels_are_a_teacher_s(tmp_path):
    experiment = compose_seeds(tmp_path)
    assert list(experiment.arms) == ["offline"]
    inputs = read_inputs(experiment)
    assert [(seed.text, seed.label) for seed in inputs.seeds["offline"]] == [
        ("near me", "ambiguous"),
        ("opening hours of the museum", "clear"),
    ]
    assert not inputs.examples


def test_seeds_with_a_label_that_the_task_does_not_have_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"arms\.offline\.data: labels \['vague'\] are none of the task's"):
        read_inputs(compose_seeds(tmp_path, "data.labels={yes: vague, no: clear}"))


def test_a_benchmark_of_one_s_own_is_composed_of_rows(tmp_path):
    place = "task.own_benchmarks.desk"
    (tmp_path / "desk.tsv").write_text("text\tlabel\tlanguage\nhours\tyes\ten\nOeffnungszeiten\tno\tde\npi?\tno\ten\n")
    keys = {"name": "Desk", "path": f"{tmp_path}/desk.tsv", "sha256": "null", "where.language": "en"}
    labels = f"+{place}.labels={{yes: ambiguous, no: clear}}"
    overrides = [f"+rows@{place}=base", labels, *(f"+{place}.{key}={value}" for key, value in keys.items())]
    gold = read_inputs(compose_seeds(tmp_path, *overrides)).gold["Desk"]
    assert [(item.text, item.label) for item in gold.items] == [("hours", "ambiguous"), ("pi?", "clear")]


@pytest.mark.parametrize(
    ("overrides", "setting"),
    [
        (["data.path=seeds.tsv"], r"arms\.offline\.data\.path=seeds\.tsv"),
        (["data.path=[/x/a.tsv,b.tsv]"], r"arms\.offline\.data\.path\.1=b\.tsv"),
    ],
)
def test_a_submitted_job_reads_no_file_of_its_working_directory(tmp_path, monkeypatch, overrides, setting):
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    with pytest.raises(ConfigError, match=f"{setting} is a relative path"):
        check_root(compose_seeds(tmp_path, *overrides))


def test_the_name_of_a_data_set_of_the_hub_is_no_path(tmp_path, monkeypatch):
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    hub = "data.hub={config_name: null, split: train, revision: null}"
    check_root(compose_seeds(tmp_path, "data.path=some/set", "data.format=hub", hub))
