"""Community question answering: which answer would this asker accept?

After Sy-SE-PQA (arXiv 2410.22182) on SE-PQA (arXiv 2306.16261). The teacher answers questions that people asked; a
re-ranker learns from (question, answer) pairs to put the answer that people accepted first. Beyond the paper, answers
may be grounded in retrieved passages.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import log
from typing import Literal

from pydantic import Field

from pipeline.config import Config
from pipeline.identity import digest
from pipeline.prompts.replies import Parsed
from pipeline.prompts.templates import render
from pipeline.records import Completion, Example, Message, Outcome, Passage, Request, Seed
from pipeline.retrieval.bm25 import Bm25Config
from pipeline.retrieval.tuning import GridConfig
from pipeline.sources.answers import WrittenAnswer
from pipeline.sources.community import Communities, CommunitiesConfig, Thread
from pipeline.tasks.free_text import find_words, split_sentences, trim
from pipeline.tasks.task import MethodConfig, Prompt, Retrieved, Task, TaskConfig

_USER = "cqa/user.jinja"
SPARE_PASSAGES = 10
"""Retrieved beyond what a prompt quotes, because those that answer the very question are not quoted."""
QUERY, QUESTION_ID, COMMUNITY, OWN_ANSWERS = "query", "question_id", "community", "own_answers"
"""Among the extras of a seed or an example."""


class FirstStageConfig(Config):
    """What finds the candidates that students put in order."""

    bm25: Bm25Config
    """Its k1 and b where none are tried."""
    grid: GridConfig | None
    """What is tried on the validation queries of each benchmark; null: nothing."""
    depth: int = Field(gt=0)
    """Candidates for each query."""


class CqaConfig(TaskConfig):
    """The task: the communities whose questions are answered, and on which students are judged."""

    kind: Literal["cqa"]
    communities: CommunitiesConfig
    first_stage: FirstStageConfig
    fusion_step: float = Field(gt=0, le=1)
    """Weights of a fusion are multiples of it."""
    n_permutations: int = Field(ge=10_000)
    """Of the randomisation tests."""
    answer_sentences: int = Field(gt=0)
    """That the offline teacher takes from its passages."""
    support_recall: float = Field(gt=0, le=1)
    """Share of a claim's words that a passage has which supports it."""


class AnswerConfig(MethodConfig):
    """One answer for each question."""

    name: Literal["answer"]
    prompt: Literal["basic", "personalized", "contextual", "title_only"]
    """`basic`: title and body. `personalized`: and what the asker is interested in. `contextual`: and the community.
    `title_only`: title and interests, without the body, as in the authors' released data."""
    passages: int = Field(ge=0)
    """Retrieved passages that the answer is to rest on; 0: none."""
    max_new_tokens: int = Field(gt=0)
    truncated: Literal["reject", "trim", "keep"]
    """What becomes of a reply that was cut off: `trim` takes it back to its last whole sentence, `keep` leaves it."""

    @property
    def n_passages(self) -> int:
        """What is retrieved for each question."""
        return self.passages + SPARE_PASSAGES if self.passages else 0


def to_seed(thread: Thread) -> Seed:
    """Return a question as what a prompt starts from."""
    extras = {
        "title": thread.title,
        "body": thread.body,
        "interests": ", ".join(thread.interests),
        COMMUNITY: thread.community,
        OWN_ANSWERS: " ".join(thread.answer_ids),
    }
    return Seed(thread.question_id, thread.query, thread.asker, label="", extras=extras)


def to_example(thread: Thread) -> Example:
    """Return a question and the answer that people accepted."""
    extras = {
        QUERY: thread.query,
        QUESTION_ID: thread.question_id,
        COMMUNITY: thread.community,
        OWN_ANSWERS: " ".join(thread.answer_ids),
    }
    return Example(thread.answer_id, "", thread.asker, thread.answer, "", extras)


def to_written_examples(
    answers: Sequence[WrittenAnswer], communities: Communities, left_out: Counter[str]
) -> list[Example]:
    """Return answers that were written elsewhere, to training questions and to such as the communities don't have.

    Nothing says when the latter were asked: whoever names their file vouches that they are older than what is tested.

    Args:
        answers: The first to a question in the same words is taken.
        communities: Their questions that are not for training are left out, and with them the future; so are those
            beyond `max_training`.
        left_out: Answers that are, by why; added to.
    """
    threads = {thread.question_id: thread for thread in communities.training}
    found: dict[str, Example] = {}
    for answer in answers:
        row_id = digest([answer.question_id, answer.text])
        if row_id in found:
            left_out["repeated"] += 1
        elif thread := threads.get(answer.question_id):
            found[row_id] = replace(to_example(thread), row_id=row_id, text=answer.text)
        elif answer.question_id in communities.training_ids:
            left_out["of_questions_beyond_max_training"] += 1
        elif answer.question_id in communities.question_ids:
            left_out["of_questions_not_for_training"] += 1
        elif not answer.question:
            left_out["of_unknown_questions"] += 1
        else:
            community, _, _ = answer.question_id.rpartition("_")
            extras = {
                QUERY: answer.question, QUESTION_ID: answer.question_id, COMMUNITY: community, OWN_ANSWERS: "",
            }  # fmt: skip
            found[row_id] = Example(row_id, "", answer.question_id, answer.text, "", extras)
    return list(found.values())


def write_query(seed: Seed, method: AnswerConfig) -> str:
    """Return the question."""
    return seed.text


def write_prompts(seeds: Sequence[Seed], retrieved: Retrieved, method: AnswerConfig, run_seed: int) -> list[Prompt]:
    """Return the prompt for each question's answer."""
    return [_write_prompt(seed, _ground(seed, retrieved, method), method) for seed in seeds]


def _ground(seed: Seed, retrieved: Retrieved, method: AnswerConfig) -> tuple[Passage, ...]:
    """Return the passages to quote: none that people wrote in answer to the very question."""
    own = set(seed.extras[OWN_ANSWERS].split())
    foreign = [passage for passage in retrieved.get(seed.seed_id, ()) if passage.passage_id not in own]
    return tuple(foreign[: method.passages])


def _write_prompt(seed: Seed, passages: tuple[Passage, ...], method: AnswerConfig) -> Prompt:
    content = render(
        _USER,
        title=seed.extras["title"],
        body="" if method.prompt == "title_only" else seed.extras["body"],
        interests=seed.extras["interests"] if method.prompt in ("personalized", "title_only") else "",
        community=seed.extras[COMMUNITY] if method.prompt == "contextual" else "",
        passages=passages,
    )
    return Prompt(seed, passages, (Message("user", content),), schema=None, max_new_tokens=method.max_new_tokens)


def parse(request: Request, completion: Completion, method: AnswerConfig) -> Parsed:
    """Return the answer as one example, whose query is the question."""
    if completion.outcome not in (Outcome.OK, Outcome.TRUNCATED):
        return Parsed(completion.outcome, detail=completion.error or completion.finish_reason)
    is_cut = completion.outcome is Outcome.TRUNCATED
    if is_cut and method.truncated == "reject":
        return Parsed(Outcome.TRUNCATED, detail=completion.finish_reason)
    text = (trim(completion.text) if is_cut and method.truncated == "trim" else completion.text).strip()
    if not text:
        return Parsed(Outcome.TRUNCATED if is_cut else Outcome.SCHEMA_MISMATCH, detail="no text is left of it")
    seed = request.seed
    extras = {QUERY: seed.text, QUESTION_ID: seed.seed_id}
    extras |= {name: seed.extras[name] for name in (COMMUNITY, OWN_ANSWERS)}
    if request.passages:
        extras["passage_text"] = "\n\n".join(passage.text for passage in request.passages)
    row_id = digest([request.request_id, completion.attempt])
    return Parsed(Outcome.OK, (Example(row_id, request.request_id, seed.group, text, seed.label, extras),))


def extract_answer(config: CqaConfig, request: Request, seed: int) -> str:
    """Return the sentences of the passages that share most words with the question, in the passages' order.

    A known family of baselines, and no writing at all. Sentences are compared by how many of the question's distinct
    words they hold, each divided by the logarithm of the sentence's length, so that length alone doesn't win.
    """
    question = find_words(request.seed.text)
    sentences = [
        sentence for passage in request.passages for sentence in split_sentences(passage.text) if find_words(sentence)
    ]

    def rate(place: int) -> float:
        words = find_words(sentences[place])
        return len(words & question) / log(2 + len(words))

    best = sorted(range(len(sentences)), key=lambda place: (-rate(place), place))[: config.answer_sentences]
    return " ".join(sentences[place] for place in sorted(best))


def export(examples: Sequence[Example]) -> Mapping[str, Sequence[str]]:
    """Return questions and answers."""
    return {
        QUESTION_ID: [e.extras[QUESTION_ID] for e in examples],
        COMMUNITY: [e.extras[COMMUNITY] for e in examples],
        "question": [e.extras[QUERY] for e in examples],
        "answer": [e.text for e in examples],
    }


def make_cqa(config: CqaConfig) -> Task:
    """Return the task as configured."""
    return Task(
        name=config.name,
        labels=(),
        positive=None,
        prototypes={},
        measures=("nDCG@10", "P@1", "nDCG@3", "MAP@100", "MRR", "R@100"),
        methods=(AnswerConfig,),
        student_kinds=("reranker",),
        settings=config.model_dump(mode="json", include={"answer_sentences"}),
        templates=(_USER,),
        code=(
            __name__,
            "pipeline.tasks.free_text",
            *(f"pipeline.prompts.{name}" for name in ("replies", "requests", "templates")),
        ),
        offline_code=(__name__, "pipeline.tasks.free_text"),
        write_query=write_query,
        write_prompts=write_prompts,
        parse=parse,
        reply_offline=partial(extract_answer, config),
        offline_needs_passages=True,
        export=export,
        judging=None,
    )
