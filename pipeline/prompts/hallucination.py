"""What an LLM is asked to judge whether an answer hallucinates; `read_choice` reads what it says.

Its labels stand beside people's, with their agreement, and never in their place.
"""

from collections.abc import Mapping, Sequence

from pipeline.prompts.requests import make_request
from pipeline.prompts.templates import render
from pipeline.records import Message, Passage, Request, Seed

TEMPLATE = "hallucination/judge.jinja"
CHOICES = ("yes", "no")
"""`yes`: the answer contains at least one unsupported or false claim."""


def ask_of_answer(
    item_id: str,
    question: str,
    answer: str,
    passages: Sequence[Passage] = (),
    *,
    teacher: Mapping[str, str],
    run_seed: int,
) -> Request:
    """Return the request that asks whether an answer contains an unsupported or false claim.

    The judge is as blind as people: it sees neither arm nor model nor prompt. It is asked greedily.

    Args:
        item_id: Of the sheet's item.
        question: As the asker wrote it.
        answer: To be judged.
        passages: What the answer was to rest on; without any, general knowledge is the measure.
        teacher: What tells one teacher from another, its revision included.
        run_seed: The experiment's seed.
    """
    content = render(TEMPLATE, question=question, answer=answer, passages=passages)
    return make_request(
        Seed(item_id, question, group=item_id),
        passages,
        (Message("user", content),),
        schema=None,
        choices=CHOICES,
        temperature=0.0,
        top_p=1.0,
        teacher=teacher,
        run_seed=run_seed,
    )
