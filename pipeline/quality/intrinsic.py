"""What a data set looks like by itself: every measure for each label and for all, on equally many texts."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from pydantic import Field

from pipeline.config import Config
from pipeline.encoder import EncoderConfig
from pipeline.errors import ConfigError, NotMeasuredError
from pipeline.identity import derive_seed
from pipeline.quality.diversity import (
    Entity,
    Vectors,
    distinct_n,
    entity_entropy,
    find_entities,
    mean_cosine,
    vendi_score,
)
from pipeline.quality.mauve import MauveConfig, measure_mauve
from pipeline.quality.optional import HOW_TO_INSTALL, find_version
from pipeline.quality.self_bleu import self_bleu
from pipeline.quality.tokens import TOKENISERS, Tokeniser, tokenise
from pipeline.weights import pin_model


class QualityConfig(Config):
    """How data sets are measured, the same for all that are compared."""

    sample_size: int = Field(ge=2)
    """Texts drawn of each label, and as many of all labels; where there are fewer, the result says so."""
    seed: int = Field(ge=0)
    """Of the draws, of the order of MAUVE's gold texts, and of its clusterings."""
    tokeniser: Tokeniser
    self_bleu_max_n: int = Field(ge=1)
    distinct_max_n: int = Field(ge=1)
    entity_model: str | None
    """An installed pipeline of spaCy that finds entities, or its folder; null leaves entities out."""
    encoder: EncoderConfig | None
    """Of the vectors behind Vendi score, cosine and MAUVE; null leaves all three out."""
    mauve: MauveConfig | None
    """Null leaves it out."""


def pin_tools(config: QualityConfig) -> dict[str, str | None]:
    """Return the versions of optional packages that the result depends on, for the identity of whoever keeps it.

    Null stands where something is not installed: the measures that need it are then left out, and once it is there
    they are taken.

    Raises:
        ConfigError: The tokeniser is not installed, so nothing could be measured as it was asked.
    """
    spacy = find_version("spacy")
    if config.tokeniser == "spacy" and spacy is None:
        raise ConfigError(
            f"quality.tokeniser=spacy needs the package spacy; {HOW_TO_INSTALL['spacy']}, or set it to words"
        )
    tools: dict[str, str | None] = {}
    if config.tokeniser == "spacy" or config.entity_model is not None:
        tools["spacy"] = spacy
    if config.entity_model is not None:
        is_folder = Path(config.entity_model).is_dir()
        tools["entity_model"] = (
            pin_model(config.entity_model, None, marker="meta.json").identity
            if is_folder
            else find_version(config.entity_model)
        )
    if config.mauve is not None:
        tools["mauve-text"] = find_version("mauve-text")
    return tools


def measure_intrinsic(
    texts: Mapping[str, Sequence[str]],
    config: QualityConfig,
    *,
    vectors: Mapping[str, Vectors] | None = None,
    gold: Mapping[str, Vectors] | None = None,
) -> dict[str, Any]:
    """Return all measures of a data set for each label and overall, ready for JSON.

    Of each label `sample_size` texts are drawn by seed, and as many of all texts, whatever their labels' shares: every
    figure is taken on such a sample, and says how large it was. What the measures are is in docs/measures.md.

    Args:
        texts: By label.
        config: What is measured, and how.
        vectors: Of the same texts in the same order, by `config.encoder`; shape (texts, dimensions). None: they aren't
            known, and what needs them is left out.
        gold: Vectors of gold texts by label, for MAUVE; None leaves it out, as where the texts are gold themselves.

    Returns:
        `overall`, and under `labels` each label: the `rows` and `gold_rows` there are, and `measures`, each with its
        `value` and the `n` texts that it was taken on. A value is None where it was not measured, and `notes` say why.
        `tokens` and `featuriser` tell what was made of the texts.

    Raises:
        ValueError: There are no texts, or not as many vectors as texts, or vectors by no encoder.
    """
    _check(texts, config, vectors)
    labels = sorted(texts)
    scopes: dict[str | None, list[str]] = {None: labels, **{label: [label] for label in labels}}
    samples = [_draw(scope, of, texts, vectors, gold, config) for scope, of in scopes.items()]
    notes = _Notes()
    entities = _find_entities(samples, config, notes)
    overall, *by_label = (
        {
            "rows": sample.n_rows,
            "gold_rows": None if sample.gold is None else len(sample.gold),
            "measures": _measure(sample, entities, config, notes),
        }
        for sample in samples
    )
    return {
        "sample_size": config.sample_size,
        "seed": config.seed,
        "tokens": TOKENISERS[config.tokeniser],
        "featuriser": config.encoder and f"{config.encoder.model}, at most {config.encoder.max_tokens} tokens",
        "overall": overall,
        "labels": dict(zip(labels, by_label, strict=True)),
        "notes": notes.render(len(samples)),
    }


def label_preservation(predicted: Sequence[str], intended: Sequence[str]) -> float:
    """Return the share of rows whose label an oracle predicts as it was intended; from 0 to 1, higher is better.

    The oracle is a classifier trained on gold rows. As in SynthesizRR (arXiv 2405.10040).

    Raises:
        ValueError: The lists differ in length, or are empty.
    """
    if not predicted or len(predicted) != len(intended):
        raise ValueError(f"a prediction for each label is needed, given {len(predicted)} for {len(intended)}")
    return mean(float(one == other) for one, other in zip(predicted, intended, strict=True))


def _check(texts: Mapping[str, Sequence[str]], config: QualityConfig, vectors: Mapping[str, Vectors] | None) -> None:
    if not texts or not all(texts.values()):
        empty = ", ".join(label for label, of in texts.items() if not of)
        raise ValueError(f"every label needs texts, given {len(texts)} labels; without any: {empty or 'none'}")
    if vectors is None:
        return
    if config.encoder is None:
        raise ValueError("vectors are given, but quality.encoder is null and says not by what")
    for label, of in texts.items():
        n_vectors = len(vectors[label]) if label in vectors else 0
        if n_vectors != len(of):
            raise ValueError(f"each text needs a vector: {label} has {len(of)} texts and {n_vectors} vectors")


@dataclass(frozen=True)
class _Sample:
    """The texts that one row of the result is about."""

    scope: str
    """As notes call it: a label, or all of them."""
    n_rows: int
    """That it was drawn from."""
    texts: list[str]
    vectors: Vectors | None
    gold: Vectors | None
    """Of all gold texts."""


@dataclass(frozen=True)
class _Notes:
    """Why a value is None, and what to mind about one that isn't."""

    scopes: dict[str, list[str]] = field(default_factory=dict)
    """Of each note, what it is true of."""

    def add(self, note: str, scope: str) -> None:
        self.scopes.setdefault(note, []).append(scope)

    def render(self, n_scopes: int) -> list[str]:
        return [
            note if len(scopes) == n_scopes else f"{note} ({', '.join(scopes)})" for note, scopes in self.scopes.items()
        ]


def _draw(
    label: str | None,
    labels: Sequence[str],
    texts: Mapping[str, Sequence[str]],
    vectors: Mapping[str, Vectors] | None,
    gold: Mapping[str, Vectors] | None,
    config: QualityConfig,
) -> _Sample:
    every = [text for one in labels for text in texts[one]]
    generator = random.Random(derive_seed(config.seed, "quality", *([] if label is None else [label])))
    chosen = sorted(generator.sample(range(len(every)), min(config.sample_size, len(every))))
    known = [gold[one] for one in labels if one in gold] if gold is not None else []
    return _Sample(
        label or "all labels",
        len(every),
        [every[place] for place in chosen],
        None if vectors is None else np.concatenate([vectors[one] for one in labels])[chosen],
        np.concatenate(known) if known else None,
    )


def _find_entities(
    samples: Sequence[_Sample], config: QualityConfig, notes: _Notes
) -> Mapping[str, Sequence[Entity]] | None:
    """Return the entities of each text of any sample; None where they can't be had."""
    texts = list(dict.fromkeys(text for sample in samples for text in sample.texts))
    try:
        if config.entity_model is None:
            raise NotMeasuredError("entity_model is null")
        return dict(zip(texts, find_entities(texts, config.entity_model), strict=True))
    except NotMeasuredError as error:
        for sample in samples:
            notes.add(f"entity_entropy: not measured: {error}", sample.scope)
        return None


def _measure(
    sample: _Sample, entities: Mapping[str, Sequence[Entity]] | None, config: QualityConfig, notes: _Notes
) -> dict[str, dict[str, Any]]:
    n = len(sample.texts)
    measures: dict[str, dict[str, Any]] = {}

    def take(name: str, names: Sequence[str], measure: Callable[[], Sequence[float | None]]) -> None:
        try:
            values = measure()
        except NotMeasuredError as error:
            notes.add(f"{name}: not measured: {error}", sample.scope)
            values = [None] * len(names)
        else:
            if None in values:
                notes.add(f"{name}: not all measured: too few texts, or too few tokens in them", sample.scope)
        measures.update({of: {"value": value, "n": n} for of, value in zip(names, values, strict=True)})

    if n < config.sample_size:
        notes.add(f"only {n} texts of {config.sample_size}: its figures don't compare with others'", sample.scope)
    tokens = tokenise(sample.texts, config.tokeniser)
    lengths = [len(text) for text in tokens]
    take("tokens", ["tokens_mean", "tokens_sd"], lambda: [mean(lengths), stdev(lengths) if n > 1 else None])
    take("Self-BLEU", _number("Self-BLEU", config.self_bleu_max_n), lambda: self_bleu(tokens, config.self_bleu_max_n))
    take("distinct-n", _number("distinct", config.distinct_max_n), lambda: distinct_n(tokens, config.distinct_max_n))
    take("Vendi", ["Vendi"], lambda: [vendi_score(_need(sample.vectors))])
    take("cosine", ["cosine"], lambda: [mean_cosine(_need(sample.vectors))])
    take("MAUVE", ["MAUVE", "MAUVE_sd"], lambda: _measure_mauve(sample, config))
    if entities is None:
        measures["entity_entropy"] = {"value": None, "n": n}
    else:
        found = [entity for text in sample.texts for entity in entities[text]]
        mentions = Counter(entity.kind for entity in found)
        for kind, entropy in entity_entropy(found).items():
            measures[f"entity_entropy/{kind}"] = {"value": entropy, "n": n, "mentions": mentions[kind]}
    return measures


def _measure_mauve(sample: _Sample, config: QualityConfig) -> Sequence[float]:
    if config.mauve is None:
        raise NotMeasuredError("mauve is null")
    if sample.gold is None:
        raise NotMeasuredError("there are no gold texts to compare with")
    return measure_mauve(_need(sample.vectors), sample.gold, config.mauve, config.seed)


def _need(vectors: Vectors | None) -> Vectors:
    if vectors is None:
        raise NotMeasuredError("the texts' vectors are not given")
    return vectors


def _number(name: str, max_n: int) -> list[str]:
    return [f"{name}-{n}" for n in range(1, max_n + 1)]
