"""Response schemas that can't run away.

A JSON schema without bounds lets a constrained decoder write for ever, so every string and array here has one, and
the token budget is computed from them instead of guessed.
"""

import json
from collections.abc import Mapping
from math import ceil
from typing import Any

CHARACTERS_PER_TOKEN = 2.0
"""English runs at about four characters a token. Half of that leaves room for other scripts and odd words."""


def text(max_length: int) -> dict[str, Any]:
    """Return the schema of a non-empty string."""
    return {"type": "string", "minLength": 1, "maxLength": max_length}


def record(**properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that has exactly these properties."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def array(item: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return the schema of an array of exactly that many items."""
    return {"type": "array", "items": dict(item), "minItems": length, "maxItems": length}


def count_characters(schema: Mapping[str, Any]) -> int:
    """Return how many characters the longest valid reply has, written without spaces or escapes.

    Raises:
        ValueError: A string, an array or an object in the schema has no upper bound, or a type is not known here.
    """
    match schema:
        case {"enum": values}:
            return max(len(json.dumps(value)) for value in values)
        case {"type": "object", "properties": properties, "additionalProperties": False}:
            parts = [len(json.dumps(name)) + 1 + count_characters(part) for name, part in properties.items()]
            return 2 + sum(parts) + max(0, len(parts) - 1)
        case {"type": "array", "maxItems": length, "items": item}:
            return int(2 + length * count_characters(item) + max(0, length - 1))
        case {"type": "string", "maxLength": length}:
            return int(length) + 2
        case {"type": "boolean"}:
            return 5
        case {"type": "integer", "minimum": low, "maximum": high}:
            return max(len(str(low)), len(str(high)))
    raise ValueError(f"a response schema needs a bound on every string, array and number; this has none: {schema}")


def compute_max_new_tokens(schema: Mapping[str, Any]) -> int:
    """Return a token budget that the longest valid reply fits into."""
    return ceil(count_characters(schema) / CHARACTERS_PER_TOKEN)
