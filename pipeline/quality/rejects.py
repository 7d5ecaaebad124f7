"""How every filter parts its rows: what isn't rejected is kept, in order, so none can vanish."""

from collections.abc import Mapping, Sequence

from pipeline.records import Example, Reject

STAGE = "filter"


def part(examples: Sequence[Example], found: Mapping[int, tuple[str, str]]) -> tuple[list[Example], list[Reject]]:
    """Return the rows to keep and those to reject, both in the order given.

    Args:
        examples: The rows a filter was given.
        found: The (reason, detail) of each row to reject, by its position.
    """
    kept = [example for position, example in enumerate(examples) if position not in found]
    rejects = [
        Reject(
            row_id=example.row_id,
            request_id=example.request_id,
            group=example.group,
            stage=STAGE,
            reason=found[position][0],
            text=example.text,
            label=example.label,
            detail=found[position][1],
        )
        for position, example in enumerate(examples)
        if position in found
    ]
    return kept, rejects


def cite(example: Example) -> str:
    """Return how a reject's detail names the row it collided with."""
    return f"{example.row_id}: {example.text}"
