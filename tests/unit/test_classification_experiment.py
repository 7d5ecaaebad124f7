"""What an experiment of a classification task may ask for, and what is told of a mistake before any work."""

import pytest

from pipeline.errors import ConfigError
from tests.composing import compose_experiment

SEEDS = ["task=ag_news", "data=ag_news_seeds"]
RETRICL = [*SEEDS, "method=retricl", "corpus=ag_news"]


def explain(*overrides) -> str:
    with pytest.raises(ConfigError) as caught:
        compose_experiment(list(overrides))
    return str(caught.value)


def test_a_corpus_and_a_retriever_are_the_index_of_the_arm():
    experiment = compose_experiment([*RETRICL, "retriever=hybrid"])
    assert list(experiment.indexes) == ["ag_news_hybrid"]
    assert experiment.arms["offline"].index == "ag_news_hybrid"
    assert experiment.name == "ag_news_offline_minilm"


@pytest.mark.parametrize(
    ("overrides", "mistake"),
    [
        ([*SEEDS, "method=retricl"], "the method retricl asks about retrieved documents; name an `index`"),
        ([*SEEDS, "method=fewgen", "corpus=ag_news"], "the method fewgen retrieves no documents; leave out `index`"),
        ([*SEEDS, "method=fewgen"], "copies from a retrieved document, and the method fewgen has none"),
        (SEEDS, "arms.offline.method: paired is none of the methods of the task ag_news"),
        (["data=everyday_topics", "method=fewgen"], "Interpolation key 'task.rows_per_label' not found"),
        ([*RETRICL, "task.settings=[standard,dev-selected]"], "a threshold, which takes a task with a positive label"),
        ([*RETRICL, "judge=few_shot", "teacher=gpt_4_1"], "ag_news can't be asked few_shot; choose zero_shot"),
        ([*RETRICL, "oracle=gold/minilm"], "oracle: gold/minilm is not trained; trained are offline/minilm"),
        ([*RETRICL, "task.labels.World.verbalised=''"], "task.labels.World.verbalised: "),
        ([*RETRICL, "task.instruction='{{ topic }}'"], "'topic' is undefined"),
        (
            [*RETRICL, "+task.labels.Weather={prototype: Rain., subtopics: []}"],
            "labels.Weather.verbalised: is missing",
        ),
        ([*RETRICL, "method.synthesis_ranks={first: 9, last: 3}"], "first=9 is above last=3"),
        ([*RETRICL, "filters.label_shares={World: 0.5}"], "shares sum to 0.5; they must sum to 1"),
        (["experiment=agnews_synthesizrr", "arms.copy.index=new"], "arms.copy.index: no index new; have ['news'"),
        (
            ["experiment=agnews_synthesizrr", "arms.copy_filtered.data.student.seeds=[1,2]"],
            "arms.copy_filtered.data.student: Value error, training dynamics are those of one fit",
        ),
        (["experiment=agnews_synthesizrr", "corpus=ag_news"], "corpus=… has no effect beside experiment="),
    ],
)
def test_a_mistake_is_told_with_its_place(overrides, mistake):
    assert mistake in explain(*overrides)


def test_an_experiment_sets_values_of_the_root_file_and_the_command_line_sets_them_over_it():
    assert compose_experiment(["experiment=agnews_synthesizrr"]).oracle == "gold_full/frozen_minilm"
    assert compose_experiment(["experiment=agnews_synthesizrr", "oracle=null"]).oracle is None
