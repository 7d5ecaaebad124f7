"""What tokens, money and device time were spent on: rows that are kept, and what came to nothing."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.records import Completion, Outcome
from pipeline.teachers.teacher import PriceConfig

KEPT, FILTERED = "kept", "filtered"
"""Ends of an accepted completion: its rows are in the data set, or a filter took them."""


@dataclass
class _Share:
    """What all completions of one end took."""

    completions: list[Completion] = field(default_factory=list)
    part: float = 1.0
    """Of them."""

    @property
    def tokens(self) -> float:
        return self.part * sum(c.n_prompt_tokens + c.n_completion_tokens for c in self.completions)

    @property
    def busy_s(self) -> float:
        return self.part * sum(c.latency_s for c in self.completions)

    def charge(self, price: PriceConfig) -> float | None:
        usd = price.charge_all(self.completions)
        return None if usd is None else self.part * usd


def divide_spending(
    answers: Iterable[tuple[Completion, Outcome]], kept_share: float, device_s: float | None, price: PriceConfig
) -> dict[str, dict[str, float | None]]:
    """Return what was spent by what became of it; the parts make up the whole.

    A completion's tokens are those that its engine or endpoint counted: a timeout, or an error, has none, also where
    an endpoint bills them. Device time is divided by how long each completion was in flight.

    Args:
        answers: Every completion, with what parsing made of it.
        kept_share: Of the rows in accepted completions, those that filters left.
        device_s: Of all completions together; None where it was not measured.
        price: What tokens and devices cost.

    Returns:
        By `kept`, `filtered` and the outcomes that were not accepted, where there are any: `calls`, `tokens`,
        `token_share`, `device_s` and `usd`; None is what was not measured, or has no price.
    """
    accepted: list[Completion] = []
    others: dict[str, list[Completion]] = {outcome.value: [] for outcome in Outcome}
    for completion, outcome in answers:
        (accepted if outcome is Outcome.OK else others[outcome.value]).append(completion)
    shares = {KEPT: _Share(accepted, kept_share), FILTERED: _Share(accepted, 1 - kept_share)}
    shares |= {end: _Share(completions) for end, completions in others.items()}
    tokens, busy_s = sum(one.tokens for one in shares.values()), sum(one.busy_s for one in shares.values())
    found: dict[str, dict[str, float | None]] = {}
    for end, one in shares.items():
        if not one.completions or not one.part:
            continue
        own_s = device_s * one.busy_s / busy_s if device_s is not None and busy_s else None
        charges = [one.charge(price), None if own_s is None else price.charge_devices(own_s)]
        priced = [charge for charge in charges if charge is not None]
        found[end] = {
            "calls": one.part * len(one.completions),
            "tokens": one.tokens,
            "token_share": one.tokens / tokens if tokens else None,
            "device_s": own_s,
            "usd": sum(priced) if priced else None,
        }
    return found
