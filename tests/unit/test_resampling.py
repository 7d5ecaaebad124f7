"""Other topics in place of those not asked yet: which are drawn, that the draw lasts, and who may ask for it."""

import pytest

from pipeline.cluster import Cluster
from pipeline.errors import ConfigError, RepetitionError
from pipeline.records import Completion, Example, Outcome, from_table
from pipeline.stages.ask import Ask
from pipeline.stages.generate import build_datasets, plan_arms
from pipeline.stages.inputs import read_inputs
from pipeline.steps import Steps
from pipeline.storage import Folder
from tests.composing import compose_experiment

RESAMPLING = ("watch=default", "watch.min_distinct=0.5", "watch.resample_topics=true")


@pytest.fixture
def command(tmp_path):
    (tmp_path / "topics.txt").write_text("".join(f"Topic {n}\n" for n in range(12)))
    return (
        "task=ambiguity", "data=topics", f"data.path={tmp_path}/topics.txt", "data.limit=8", "teacher=offline",
        "tracking=none", f"root={tmp_path}/runs",
    )  # fmt: skip


def plan(*overrides):
    """Return what the one arm's teacher is asked, and the spare topics."""
    experiment = compose_experiment(overrides)
    inputs, root = read_inputs(experiment), Folder.at(experiment.root)
    with Cluster(experiment.scale, root, root_is_shared=False) as cluster:
        (ask,) = plan_arms(experiment, inputs, Steps(root), cluster).values()
    return ask, inputs.spare_topics.get(ask.key, [])


def answer(ask, *topics):
    ids = [request.request_id for request in ask.requests if request.seed.text in topics]
    assert len(ids) == len(topics)
    ask.ledger.store([Completion(i, 1, Outcome.REFUSED, "", "", 0, 0, 1.0, 1.0) for i in ids], "answers")


def list_topics(ask):
    return [request.seed.text for request in ask.requests]


def test_topics_not_asked_yet_give_way_and_the_others_keep_their_answers(command):
    ask, spare = plan(*command, *RESAMPLING)
    assert [seed.text for seed in spare] == [f"Topic {n}" for n in range(8, 12)]
    answer(ask, *(f"Topic {n}" for n in (0, 1, 2, 4, 7)))
    assert ask.redraw(spare, 1) == 3
    new, _ = plan(*command, *RESAMPLING)
    assert list_topics(new)[:5] == [f"Topic {n}" for n in (0, 1, 2, 4, 7)]
    assert set(list_topics(new)[5:]) < {f"Topic {n}" for n in range(8, 12)}
    assert new.step.fingerprint != ask.step.fingerprint
    assert len(new.find_missing()) == 3
    assert all(new.read()[request.request_id] for request in ask.requests[:3])

    again, _ = plan(*command, *RESAMPLING)
    assert list_topics(again) == list_topics(new)
    without, spare = plan(*command)
    assert list_topics(without) == list_topics(ask)
    assert spare == []


def test_as_many_give_way_as_there_are_others_and_then_none(command):
    ask, spare = plan(*command, *RESAMPLING)
    answer(ask, "Topic 0")
    assert ask.redraw(spare, 1) == 4
    second, _ = plan(*command, *RESAMPLING)
    answer(ask, "Topic 1", "Topic 2")
    assert ask.redraw(spare, 2) == 4
    assert list_topics(plan(*command, *RESAMPLING)[0]) == list_topics(second), "the first draw stands"
    assert set(list_topics(second)) == {f"Topic {n}" for n in (0, 1, 2, 3, 8, 9, 10, 11)}
    assert second.redraw(spare, 1) == 0
    assert list_topics(plan(*command, *RESAMPLING)[0]) == list_topics(second)


def test_where_all_was_asked_nothing_gives_way(command):
    ask, spare = plan(*command, *RESAMPLING)
    answer(ask, *list_topics(ask))
    assert ask.redraw(spare, 1) == 0
    assert not ask.read_redraw()


def test_a_second_draw_goes_on_from_the_first_and_its_looks_are_all_there(command):
    ask, spare = plan(*command, *RESAMPLING)
    answer(ask, *(f"Topic {n}" for n in range(6)))
    assert ask.redraw(spare, 1) == 2
    second, _ = plan(*command, *RESAMPLING)
    answer(second, list_topics(second)[6])
    assert second.redraw(spare, 1) == 1  # for the other one drawn
    third, _ = plan(*command, *RESAMPLING)
    assert list_topics(third)[:7] == list_topics(second)[:7]
    assert list_topics(third)[7] not in list_topics(second)
    assert third.earlier == (ask.digest, second.digest)
    assert third.redraw(spare, 1) == 1  # the last of four
    fourth, _ = plan(*command, *RESAMPLING)
    assert fourth.redraw(spare, 1) == 0, "what was drawn and given up never comes back, so draws make no circle"


def test_without_topics_to_draw_from_resampling_is_a_mistake(command):
    with pytest.raises(ConfigError, match=r"resample_topics.*data\.limit"):
        compose_experiment([*command, *RESAMPLING, "data.limit=null"])


def test_arms_that_ask_the_same_go_on_with_the_same_topics(command, monkeypatch):
    experiment = compose_experiment([*command, *RESAMPLING])
    (arm,) = experiment.arms.values()
    experiment = experiment.model_copy(update={"arms": {"first": arm, "second": arm}})
    inputs, root = read_inputs(experiment), Folder.at(experiment.root)
    stopped = []

    def complete(self, cluster, watch):
        """Answer five topics and stop; then answer all."""
        missing = [request for request, _ in self.find_missing()]
        found = missing if stopped else missing[:5]
        self.ledger.store([answer_well(self, request) for request in found], "answers")
        if not stopped:
            stopped.append(self.key)
            raise RepetitionError("too much alike")
        return self.read()

    monkeypatch.setattr(Ask, "complete", complete)
    with Cluster(experiment.scale, root, root_is_shared=False) as cluster:
        datasets = build_datasets(experiment, inputs, Steps(root), cluster)
    asked = [request.seed.text for request in plan(*command, *RESAMPLING)[0].requests]
    assert len({*asked} - {f"Topic {n}" for n in range(8)}) == 3
    for dataset in datasets.values():
        rows = from_table(Example, dataset.folder.read_table("examples.parquet"))
        assert {row.extras["topic"] for row in rows} <= {*asked}
        assert dataset.manifest["counts"]["completions"] == len(asked)


def test_where_no_others_are_left_the_teacher_is_stopped(command, monkeypatch):
    def complete(self, cluster, watch):
        raise RepetitionError("too much alike")

    experiment = compose_experiment([*command, *RESAMPLING, "data.limit=12"])
    inputs, root = read_inputs(experiment), Folder.at(experiment.root)
    monkeypatch.setattr(Ask, "complete", complete)
    with Cluster(experiment.scale, root, root_is_shared=False) as cluster, pytest.raises(RepetitionError):
        build_datasets(experiment, inputs, Steps(root), cluster)


def answer_well(ask, request):
    return Completion(request.request_id, 1, Outcome.OK, ask.reply_offline(request, 1), "stop", 1, 1, 1.0, 1.0)
