"""What the teachers of an experiment took, arm by arm and judge by judge, as its data sets and evaluations tell it."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.experiment import WITH_TAG
from pipeline.report.spending import ArmCost, Spent
from pipeline.stages.dataset import EFFICIENCY
from pipeline.stages.derive import DRAWN
from pipeline.steps import Step

_COSTS = ("usd", "device_s")


def list_spending(datasets: Mapping[str, Step], evaluations: Sequence[Step]) -> list[Spent]:
    """Return what each teacher of an arm and each judge took, in the order given."""
    found = [
        Spent("teaching", arm, step.folder.read_json(EFFICIENCY))
        for arm, step in datasets.items()
        if step.folder.exists(EFFICIENCY)
    ]
    return found + [
        Spent("judging", step.arm.partition("/")[0], step.folder.read_json(EFFICIENCY))
        for step in evaluations
        if step.folder.exists(EFFICIENCY)
    ]


def list_arm_costs(datasets: Mapping[str, Step]) -> dict[str, ArmCost]:
    """Return what the rows of each arm took, those that it has from other arms included."""
    per_row = {arm: read_costs(step) for arm, step in datasets.items()}
    costs = {arm: ArmCost(**measure_cost(arm, step, per_row)) for arm, step in datasets.items()}
    # The same students, ranking with users' interests beside.
    return costs | {f"{arm}{WITH_TAG}": cost for arm, cost in costs.items()}


def measure_cost(arm: str, dataset: Step, per_row: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """Return what the teachers took for a data set's rows; None where that was not measured of one of them.

    Args:
        arm: Whose rows they are.
        dataset: The data set. What a mix drew was paid for, also where its own filters left it out.
        per_row: By arm, `usd` and `device_s` of one row.
    """
    counts = dataset.manifest["counts"]
    drawn = {name.removeprefix(DRAWN): n for name, n in counts.items() if name.startswith(DRAWN)} or {
        arm: counts["rows"]
    }
    totals: dict[str, float | None] = {}
    for cost in _COSTS:
        parts = [(per_row[key][cost], n) for key, n in drawn.items()]
        measured = [amount * n for amount, n in parts if amount is not None]
        totals[cost] = sum(measured) if len(measured) == len(parts) else None
    return totals


def read_costs(dataset: Step) -> dict[str, float | None]:
    """Return what one row of a data set took; None where that was not measured."""
    found: dict[str, Any] = dataset.folder.read_json(EFFICIENCY) if dataset.folder.exists(EFFICIENCY) else {}
    return {cost: found.get(f"{cost}_per_row") for cost in _COSTS}
