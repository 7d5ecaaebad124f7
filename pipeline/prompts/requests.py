"""Requests: a prompt, how it is to be answered, and an id made of all that can change the answer."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.identity import derive_seed, digest
from pipeline.prompts.schemas import compute_max_new_tokens
from pipeline.records import Message, Passage, Request, Seed

CHOICE_TOKENS = 10
"""What a reply that should be one word may take, so that one with a few words around it can still be read."""


def make_request(
    seed: Seed,
    passages: Sequence[Passage],
    messages: Sequence[Message],
    schema: Mapping[str, Any] | None,
    *,
    choices: Sequence[str] = (),
    max_new_tokens: int | None = None,
    stop: Sequence[str] = (),
    temperature: float,
    top_p: float,
    teacher: Mapping[str, str],
    run_seed: int,
) -> Request:
    """Return the request that asks one prompt.

    Args:
        seed: What the request starts from.
        passages: The documents that the prompt quotes.
        messages: The rendered chat.
        schema: JSON schema of the reply, bounded everywhere; None where it is one of `choices`, or free text.
        choices: The only replies that are wanted.
        max_new_tokens: Of free text; what a schema or choices take is known.
        stop: Free text ends before the first of these.
        temperature: Sampling temperature; 0 is greedy.
        top_p: Nucleus of the sampling distribution.
        teacher: What tells one teacher from another, its revision included.
        run_seed: The experiment's seed; the row's own is derived from it and the seed's id.
    """
    row_seed = derive_seed(run_seed, seed.seed_id)
    if max_new_tokens is None:
        max_new_tokens = CHOICE_TOKENS if schema is None else compute_max_new_tokens(schema)
    # As text, in its own order: a constrained decoder writes properties in the order in which the schema has them.
    response_schema = "" if schema is None else json.dumps(schema)
    identity: dict[str, Any] = {
        "messages": [[message.role, message.content] for message in messages],
        "schema": response_schema,
        "temperature": float(temperature),
        "top_p": float(top_p),
        "max_new_tokens": max_new_tokens,
        "teacher": teacher,
        "row_seed": row_seed,
    }
    if choices:
        identity["choices"] = list(choices)
    if stop:
        identity["stop"] = list(stop)
    return Request(
        request_id=digest(identity),
        seed=seed,
        passages=tuple(passages),
        messages=tuple(messages),
        response_schema=response_schema,
        max_new_tokens=max_new_tokens,
        temperature=float(temperature),
        top_p=float(top_p),
        row_seed=row_seed,
        choices=tuple(choices),
        stop=tuple(stop),
    )
