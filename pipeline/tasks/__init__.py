"""The tasks, by name, and the methods that each of them knows."""

from pipeline.tasks.ambiguity import AMBIGUITY, PairedConfig
from pipeline.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (AMBIGUITY,)}
AnyMethodConfig = PairedConfig
"""The union of all methods' configurations, told apart by `name`."""
