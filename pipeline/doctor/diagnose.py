"""All checks of a set-up, in the order in which one fault causes another."""

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.doctor.finding import Finding
from pipeline.doctor.folders import check_data, check_root
from pipeline.doctor.installation import check_installation
from pipeline.doctor.machine import check_gpus, check_machine, read_gpus
from pipeline.doctor.model_fit import check_fit
from pipeline.doctor.ray_cluster import check_ray
from pipeline.doctor.services import check_endpoint, check_tracking
from pipeline.experiment import ExperimentConfig
from pipeline.storage import Folder
from pipeline.teachers.kinds import AnyTeacherConfig
from pipeline.teachers.openai_config import OpenAIConfig
from pipeline.teachers.vllm import VllmConfig

PROJECT = Path(__file__).parents[2]


class DoctorConfig(ExperimentConfig):
    """An experiment whose set-up is looked at, and not run."""

    output: str | None
    """File that the findings are written to as JSON; null: none."""


def diagnose(experiment: ExperimentConfig) -> list[Finding]:
    """Return what was found. Nothing is started, and what is written is deleted.

    Args:
        experiment: What would run.
    """
    gpu_memory = read_gpus()
    is_local = not (os.environ.get("RAY_ADDRESS") or experiment.scale.address)
    findings = [
        *check_installation([PROJECT, Path.cwd()]),
        *check_machine(),
        check_gpus(gpu_memory, _count_gpus(experiment), is_local),
        *check_ray(os.environ, experiment.scale.address, Path.home()),
        *check_root(experiment.root),
        check_data(experiment.data.root),
        *check_tracking(experiment.tracking, Folder.at(experiment.root), os.environ),
    ]
    for setting, teacher in _list_teachers(experiment):
        match teacher:
            case OpenAIConfig():
                findings += check_endpoint(setting, teacher)
            case VllmConfig():
                findings.append(check_fit(setting, teacher, gpu_memory))
    return list(dict.fromkeys(findings))


def write_findings(findings: list[Finding], path: Path) -> None:
    """Write findings as a JSON list.

    Raises:
        StorageError: The file can't be written.
    """
    rows: list[dict[str, Any]] = [asdict(finding) for finding in findings]
    Folder.at(path.parent).write_json(path.name, rows)


def _list_teachers(experiment: ExperimentConfig) -> Iterator[tuple[str, AnyTeacherConfig]]:
    """Yield each teacher and where its configuration stands; of equal ones, the first."""
    seen: list[AnyTeacherConfig] = []
    parts = {f"arms.{key}.teacher": arm.teacher for key, arm in experiment.arms.items()}
    parts |= {f"judges.{key}.teacher": judge.teacher for key, judge in experiment.judges.items()}
    for setting, teacher in parts.items():
        if teacher is not None and teacher not in seen:
            seen.append(teacher)
            yield setting, teacher


def _count_gpus(experiment: ExperimentConfig) -> float:
    """Return the most GPUs that anything asks for in one piece."""
    wanted = [teacher.gpus for _, teacher in _list_teachers(experiment)]
    return max([*wanted, experiment.scale.training.gpus_per_worker])
