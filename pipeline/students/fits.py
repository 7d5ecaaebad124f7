"""Which fits a student needs: the folds of its cross-validation, then one final fit per seed.

The folds decide one thing, for how many epochs the final fits train. They hold out whole groups (topics, seeds,
askers), because two rows about one topic on both sides of a fold would let a student pass by memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

import numpy as np

from pipeline.errors import ConfigError
from pipeline.records import Example
from pipeline.students.config import FineTunedConfig, RerankerConfig, StudentConfig


@dataclass(frozen=True)
class Fit:
    """One training of a model from its start. Rows are positions in the data set; `held_out` may be empty."""

    name: str
    seed: int
    train: tuple[int, ...]
    held_out: tuple[int, ...]

    @property
    def is_fold(self) -> bool:
        """Whether this is a fold rather than a final fit."""
        return bool(self.held_out)


def plan_fits(examples: Sequence[Example], config: StudentConfig, seed: int) -> list[Fit]:
    """Return all fits in the order in which they run.

    Args:
        examples: The training rows.
        config: The student; its `folds` and `seeds` count the fits.
        seed: Draws the folds.

    Raises:
        ConfigError: There are fewer groups than folds, in some class where rows have one.
    """
    everything = tuple(range(len(examples)))
    finals = [Fit(f"final-{final_seed}", final_seed, everything, ()) for final_seed in config.seeds]
    # A pair of a query and its passage has no class; all in one, folds are as even in rows as their groups allow.
    labels = ["pair" if isinstance(config, RerankerConfig) else example.label for example in examples]
    return [*_plan_folds([example.group for example in examples], labels, config.folds, seed), *finals]


def choose_epochs(best_epochs: Sequence[int], config: FineTunedConfig) -> int:
    """Return for how many epochs the final fits train: the median of the folds' best, or all without folds."""
    return median_low(best_epochs) if best_epochs else config.epochs


def _plan_folds(group_names: Sequence[str], label_names: Sequence[str], n_folds: int, seed: int) -> list[Fit]:
    if not n_folds:
        return []
    from sklearn.model_selection import StratifiedGroupKFold

    labels, groups = np.array(label_names), np.array(group_names)
    smallest = min(len(set(groups[labels == label])) for label in set(labels))
    if smallest < n_folds:
        raise ConfigError(
            f"{n_folds} folds need at least {n_folds} groups (topics, askers) of every label, but one has {smallest}; "
            "set the student's `folds` lower, or 0 for none"
        )
    splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    return [
        Fit(f"fold-{fold}", seed, tuple(map(int, train)), tuple(map(int, held_out)))
        for fold, (train, held_out) in enumerate(splitter.split(labels, labels, groups))
    ]
