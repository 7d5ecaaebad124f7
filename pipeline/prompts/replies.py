"""Replies read back: from a completion's text to a value that fits its schema, or the outcome that says why not.

A reply is never repaired by guessing. Text around the JSON is tolerated in one well-defined form, a Markdown fence,
because chat models without constrained decoding add one.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipeline.records import Completion, Example, Outcome, Request

_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class Parsed:
    """What a task makes of a completion: its outcome, and examples where that is `ok`."""

    outcome: Outcome
    examples: tuple[Example, ...] = ()
    detail: str = ""
    """What was wrong, for a person to read."""


@dataclass(frozen=True)
class Reply:
    """A completion's text as a value. `value` means something only where the outcome is `ok`."""

    outcome: Outcome
    value: Any = None
    detail: str = ""


def read_reply(request: Request, completion: Completion) -> Reply:
    """Return the value of a completion that should be JSON of the request's schema."""
    if completion.outcome is not Outcome.OK:
        return Reply(completion.outcome, detail=completion.error or completion.finish_reason)
    fenced = _FENCE.match(completion.text)
    try:
        value = json.loads(fenced.group(1) if fenced else completion.text)
        json.dumps(value, ensure_ascii=False).encode()  # an escaped half of a surrogate pair can't be stored
    except (ValueError, RecursionError) as error:  # no JSON, or a number or nesting without end
        return Reply(Outcome.INVALID_JSON, detail=str(error))
    problem = next(_validator(request.response_schema).iter_errors(value), None)
    if problem is not None:
        where = "/".join(str(part) for part in problem.absolute_path) or "(reply)"
        return Reply(Outcome.SCHEMA_MISMATCH, detail=f"{where}: {problem.message[:200]}")
    return Reply(Outcome.OK, value)


def read_choice(request: Request, completion: Completion) -> Reply:
    """Return the last of the request's choices that a completion says as a word of its own, in any case.

    A reply that was cut off counts as well: models that talk around the word say it first.
    """
    if completion.outcome not in (Outcome.OK, Outcome.TRUNCATED):
        return Reply(completion.outcome, detail=completion.error or completion.finish_reason)
    words = {choice.casefold(): choice for choice in request.choices}
    said = re.findall(rf"\b({'|'.join(map(re.escape, words))})\b", completion.text.casefold())
    if said:
        return Reply(Outcome.OK, words[said[-1]])
    if completion.outcome is Outcome.TRUNCATED:
        return Reply(Outcome.TRUNCATED, detail=completion.finish_reason)
    return Reply(Outcome.SCHEMA_MISMATCH, detail=f"none of {', '.join(request.choices)} is said")


@lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema))
