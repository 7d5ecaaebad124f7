"""What people say of answers: which answers they are shown, how far they agree, and how often an arm hallucinates.

An item is one arm's answer to one question. Its id tells nothing, so an annotator sees neither arm nor model nor
prompt; the key, kept apart, holds them. Protocol of Sy-SE-PQA's analysis (arXiv 2410.22182): docs/annotation.md.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from math import sqrt
from statistics import mean

from pipeline.errors import ConfigError, SourceError
from pipeline.identity import derive_seed, digest

CLAIM = "contains at least one unsupported or false claim"
"""What a label says of an answer."""
_Z = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


class Label(StrEnum):
    """Whether an answer contains at least one unsupported or false claim."""

    YES = "yes"
    NO = "no"
    CANT_TELL = "can't tell"


class Fault(StrEnum):
    """What is wrong with the worst claim of an answer labelled `yes`."""

    UNSUPPORTED = "unsupported"
    FALSE = "false"
    CONTRADICTS_QUESTION = "contradicts the question"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Answer:
    """One arm's answer to a question."""

    question_id: str
    community: str
    question: str
    text: str


@dataclass(frozen=True, slots=True)
class Writer:
    """Who wrote an arm's answers, and on which prompt; `-` where there is none, as for people."""

    model: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Item:
    """What an annotator sees."""

    item_id: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """What an annotator must not see of an item."""

    item_id: str
    question_id: str
    community: str
    arm: str
    model: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Sample:
    """The items of a sheet and their key, in the same order, by item id."""

    sheet: str
    """Made of the items, so that labels of another sheet are known by it."""
    items: tuple[Item, ...]
    key: tuple[KeyEntry, ...]
    n_incomplete: int
    """Questions that some arm lacks, and that could not be drawn."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """What one annotator says of one item."""

    item_id: str
    label: Label
    fault: Fault | None = None
    """Where the label is `yes`."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class LabelFile:
    """The labels of one annotator; items without one are not in it."""

    name: str
    """Of the file, for messages."""
    sheet: str
    annotator: str
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two annotators agree, beyond chance and in all."""

    first: str
    second: str
    n: int
    """Items that both labelled `yes` or `no`."""
    n_cant_tell: int
    """Items that both labelled, one of them as `can't tell`: left out."""
    observed: float | None
    """Share of the n items with the same label; None without any."""
    kappa: float | None
    """Cohen's (1960), -1 to 1. None: undefined, as both gave all items one and the same label, or no item is left."""
    counts: Mapping[str, int]
    """Items by `<first's label>/<second's label>`: the 2 x 2 table."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How large a share of a group's items hold a hallucination, with its Wilson 95 % interval."""

    group: tuple[str, ...]
    """By arm, model, prompt, or model and prompt."""
    value: float | None
    """None: no item was decided."""
    low: float | None
    high: float | None
    n: int
    """Items decided: at least one annotator said `yes` or `no`."""
    n_undecided: int
    """Items that nobody labelled, or only as `can't tell`: left out."""


def draw_sample(
    answers: Mapping[str, Mapping[str, Answer]], writers: Mapping[str, Writer], n_items: int, seed: int
) -> Sample:
    """Return items in equal numbers of each arm, all arms on the same questions, communities in their shares.

    A question can be drawn if every arm answers it. Each community gets its share of the questions by the largest
    remainder (ties in alphabetical order), and its questions are drawn without replacement.

    Args:
        answers: By arm and question id.
        writers: By arm.
        n_items: In all; a multiple of the number of arms.
        seed: Of the draw and of the items' ids.

    Raises:
        ConfigError: `n_items` is no multiple of the arms, or more than there are.
    """
    n_questions, rest = divmod(n_items, len(answers))
    if rest or not n_questions:
        raise ConfigError(
            f"{n_items} items can't be equal numbers of {len(answers)} arms ({', '.join(answers)}); "
            f"give a multiple of {len(answers)}"
        )
    of_arms = [set(of_arm) for of_arm in answers.values()]
    shared = set.intersection(*of_arms)
    if n_questions > len(shared):
        raise ConfigError(
            f"{n_items} items take {n_questions} questions that all of {', '.join(answers)} answer, and there are "
            f"{len(shared)}; give at most {len(shared) * len(answers)} items"
        )
    first = next(iter(answers.values()))
    strata: dict[str, list[str]] = {}
    for question_id in sorted(shared):
        strata.setdefault(first[question_id].community, []).append(question_id)
    drawn = [
        question_id
        for community, n in _allot(n_questions, {name: len(ids) for name, ids in sorted(strata.items())}).items()
        for question_id in random.Random(derive_seed(seed, "questions", community)).sample(strata[community], n)
    ]
    pairs = [(arm, answers[arm][question_id]) for question_id in drawn for arm in answers]
    # Shuffled before they get their ids, or an id's place would tell its arm.
    random.Random(derive_seed(seed, "items")).shuffle(pairs)
    names = _draw_names(len(pairs), derive_seed(seed, "ids"))
    ordered = sorted(zip(names, pairs, strict=True))
    items = tuple(Item(name, answer.question, answer.text) for name, (_, answer) in ordered)
    key = tuple(
        KeyEntry(name, answer.question_id, answer.community, arm, writers[arm].model, writers[arm].prompt)
        for name, (arm, answer) in ordered
    )
    sheet = digest([[item.item_id, item.question, item.answer] for item in items])
    return Sample(sheet, items, key, len(set.union(*of_arms) - shared))


def order_items(items: Sequence[Item], annotator: str, seed: int) -> list[Item]:
    """Return the items in an annotator's own order, so that tiredness falls on other items for each."""
    ordered = list(items)
    random.Random(derive_seed(seed, "order", annotator)).shuffle(ordered)
    return ordered


def check_labels(files: Sequence[LabelFile], sheet: str, key: Sequence[KeyEntry]) -> dict[str, int]:
    """Return how many items each annotator left without a label.

    Raises:
        SourceError: A file is of another sheet, labels an item twice or one that is not of the sheet, or is the
            second of an annotator; every mistake is named.
    """
    known, mistakes = {entry.item_id for entry in key}, []
    for file in files:
        if file.sheet != sheet:
            mistakes.append(f"{file.name}: is of the sheet {file.sheet}, and the key is of {sheet}; give its own key")
            continue
        for item_id, n in Counter(annotation.item_id for annotation in file.annotations).items():
            if item_id not in known:
                mistakes.append(f"{file.name}: item {item_id}: is not of the sheet {sheet}; remove it")
            if n > 1:
                mistakes.append(f"{file.name}: item {item_id}: is labelled {n} times; leave one label")
    for annotator, n in Counter(file.annotator for file in files).items():
        if n > 1:
            names = ", ".join(file.name for file in files if file.annotator == annotator)
            mistakes.append(f"{names}: are all of the annotator {annotator}; give one file for each")
    if mistakes:
        raise SourceError("\n".join(mistakes))
    return {file.annotator: len(known) - len(file.annotations) for file in files}


def measure_agreement(first: LabelFile, second: LabelFile) -> Agreement:
    """Return the agreement of two annotators on the items that both labelled `yes` or `no`."""
    return _agree(first.annotator, second.annotator, _read_labels(first), _read_labels(second))


def measure_agreements(files: Sequence[LabelFile]) -> list[Agreement]:
    """Return the agreement of every two annotators."""
    return [measure_agreement(first, second) for first, second in combinations(files, 2)]


def compare_judge(judge: LabelFile, files: Sequence[LabelFile]) -> Agreement:
    """Return the agreement of an LLM judge with what people say: theirs first, the judge's second.

    An item's human label is that of most annotators who said `yes` or `no`; where as many said one as the other it has
    none, and counts as `can't tell`.
    """
    people = {item: _decide(share) for item, share in merge_labels(files).items()}
    return _agree("people", judge.annotator, people, _read_labels(judge))


def merge_labels(files: Sequence[LabelFile]) -> dict[str, float | None]:
    """Return for each labelled item the share of its annotators who say `yes`, `can't tell` left out.

    So two labels become one by their mean: 1, 0, or .5 where they differ. None: all said `can't tell`.
    """
    said: dict[str, list[float]] = {}
    for file in files:
        for annotation in file.annotations:
            votes = said.setdefault(annotation.item_id, [])
            if annotation.label is not Label.CANT_TELL:
                votes.append(float(annotation.label is Label.YES))
    return {item: mean(votes) if votes else None for item, votes in said.items()}


def measure_rates(files: Sequence[LabelFile], key: Sequence[KeyEntry], by: Sequence[str]) -> list[Rate]:
    """Return the share of hallucinations in each group of items.

    An item counts by the mean of its labels (`merge_labels`). The interval's n is items, not labels: two labels of one
    item are no two observations. Items of one question count as independent.

    Args:
        files: Of people; a judge is compared, never counted.
        key: Of all items.
        by: Fields of the key that make a group, such as `("model", "prompt")`.
    """
    merged = merge_labels(files)
    groups: dict[tuple[str, ...], list[float | None]] = {}
    for entry in key:
        group = tuple(str(getattr(entry, name)) for name in by)
        groups.setdefault(group, []).append(merged.get(entry.item_id))
    return [_rate(group, values) for group, values in sorted(groups.items())]


def count_faults(files: Sequence[LabelFile], key: Sequence[KeyEntry]) -> dict[str, dict[str, int]]:
    """Return by arm how many labels name each fault."""
    arms = {entry.item_id: entry.arm for entry in key}
    counts = {arm: dict.fromkeys(map(str, Fault), 0) for arm in sorted(set(arms.values()))}
    for file in files:
        for annotation in file.annotations:
            if annotation.fault is not None:
                counts[arms[annotation.item_id]][annotation.fault] += 1
    return counts


def find_disagreements(files: Sequence[LabelFile]) -> dict[str, dict[str, Annotation]]:
    """Return the items that annotators labelled differently, each with what every annotator said, by item id."""
    by_item: dict[str, dict[str, Annotation]] = {}
    for file in files:
        for annotation in file.annotations:
            by_item.setdefault(annotation.item_id, {})[file.annotator] = annotation
    return {item: said for item, said in sorted(by_item.items()) if len({one.label for one in said.values()}) > 1}


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share of n items (Wilson, JASA 1927), also where share * n is no integer.

    Raises:
        ValueError: There are no items, or the share is none.
    """
    if n < 1 or not 0 <= share <= 1:
        raise ValueError(f"a share from 0 to 1 of at least one item is needed, given {share} of {n}")
    scale = 1 + _Z**2 / n
    centre = (share + _Z**2 / (2 * n)) / scale
    half = _Z / scale * sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    # Rounding may leave a bound beyond what a share can be.
    return max(0.0, centre - half), min(1.0, centre + half)


def _allot(n: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return n places by the largest remainder; none gets more than its size, because n is at most their sum."""
    total = sum(sizes.values())
    places = {name: n * size // total for name, size in sizes.items()}
    rests = sorted(sizes, key=lambda name: (-(n * sizes[name] % total), name))
    for name in rests[: n - sum(places.values())]:
        places[name] += 1
    return places


def _draw_names(n: int, seed: int) -> list[str]:
    stream = random.Random(seed)
    names: dict[str, None] = {}
    while len(names) < n:
        names[f"{stream.getrandbits(32):08x}"] = None
    return list(names)


def _read_labels(file: LabelFile) -> dict[str, Label]:
    return {annotation.item_id: annotation.label for annotation in file.annotations}


def _decide(share: float | None) -> Label:
    if share is None or share == 0.5:
        return Label.CANT_TELL
    return Label.YES if share > 0.5 else Label.NO


def _agree(first: str, second: str, one: Mapping[str, Label], other: Mapping[str, Label]) -> Agreement:
    from sklearn.metrics import cohen_kappa_score

    shared = sorted(one.keys() & other.keys())
    pairs = [(one[item], other[item]) for item in shared if Label.CANT_TELL not in (one[item], other[item])]
    decided = (Label.YES, Label.NO)
    counts = {f"{left}/{right}": pairs.count((left, right)) for left in decided for right in decided}
    is_defined = len({label for pair in pairs for label in pair}) > 1
    kappa = (
        cohen_kappa_score([str(left) for left, _ in pairs], [str(right) for _, right in pairs]) if is_defined else None
    )
    return Agreement(
        first=first,
        second=second,
        n=len(pairs),
        n_cant_tell=len(shared) - len(pairs),
        observed=mean(left == right for left, right in pairs) if pairs else None,
        kappa=None if kappa is None else float(kappa),
        counts=counts,
    )


def _rate(group: tuple[str, ...], values: Iterable[float | None]) -> Rate:
    found = list(values)
    decided = [value for value in found if value is not None]
    if not decided:
        return Rate(group, None, None, None, 0, len(found))
    share = mean(decided)
    return Rate(group, share, *wilson_interval(share, len(decided)), len(decided), len(found) - len(decided))
