"""Requests: a prompt, how it is to be answered, and an id made of all that can change the answer."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.identity import derive_seed, digest
from pipeline.prompts.schemas import compute_max_new_tokens
from pipeline.records import Message, Passage, Request, Seed


def make_request(
    seed: Seed,
    passages: Sequence[Passage],
    messages: Sequence[Message],
    schema: Mapping[str, Any],
    *,
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
        schema: JSON schema of the reply, bounded everywhere.
        temperature: Sampling temperature; 0 is greedy.
        top_p: Nucleus of the sampling distribution.
        teacher: What tells one teacher from another, its revision included.
        run_seed: The experiment's seed; the row's own is derived from it and the seed's id.
    """
    row_seed = derive_seed(run_seed, seed.seed_id)
    max_new_tokens = compute_max_new_tokens(schema)
    identity = {
        "messages": [[message.role, message.content] for message in messages],
        "schema": schema,
        "temperature": float(temperature),
        "top_p": float(top_p),
        "max_new_tokens": max_new_tokens,
        "teacher": teacher,
        "row_seed": row_seed,
    }
    return Request(
        request_id=digest(identity),
        seed=seed,
        passages=tuple(passages),
        messages=tuple(messages),
        response_schema=json.dumps(schema, sort_keys=True),
        max_new_tokens=max_new_tokens,
        temperature=float(temperature),
        top_p=float(top_p),
        row_seed=row_seed,
    )
