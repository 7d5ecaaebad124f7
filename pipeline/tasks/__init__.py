"""The tasks, by name."""

from pipeline.tasks.ambiguity import AMBIGUITY
from pipeline.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (AMBIGUITY,)}
