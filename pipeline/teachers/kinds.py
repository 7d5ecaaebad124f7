"""The kinds of teachers, told apart here and nowhere else."""

from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import Field

from pipeline.identity import digest, source_digest
from pipeline.records import Request
from pipeline.teachers import openai_config, vllm
from pipeline.teachers.offline import OfflineConfig, OfflineTeacher
from pipeline.teachers.openai import OpenAITeacher
from pipeline.teachers.openai_config import OpenAIConfig
from pipeline.teachers.teacher import Teacher
from pipeline.teachers.vllm import VllmConfig, VllmTeacher

AnyTeacherConfig = Annotated[OfflineConfig | OpenAIConfig | VllmConfig, Field(discriminator="kind")]
"""The union of all teachers' configurations."""


def pin_teacher(config: AnyTeacherConfig, offline_code: Sequence[str]) -> tuple[AnyTeacherConfig, dict[str, str]]:
    """Return a configuration that can't change under a run, and what tells its answers from another teacher's.

    Args:
        config: The teacher.
        offline_code: The modules that can change the offline teacher's replies: they are its weights.

    Raises:
        ConfigError: There is no such model.
    """
    match config:
        case VllmConfig():
            return vllm.pin(config)
        case OpenAIConfig():
            return config, openai_config.identify(config)
        case OfflineConfig():
            rules = source_digest(["pipeline.teachers.offline", *offline_code])
            return config, {"kind": config.kind, "revision": rules, "faults": digest(config.faults)}


def check_teacher(config: AnyTeacherConfig, is_local: bool) -> None:
    """Find a user's mistake before any cluster work.

    Args:
        config: The teacher.
        is_local: Whether actors run on this machine, so that what is missing here is missing there.

    Raises:
        ConfigError: The engine refuses its arguments or isn't installed, or a key is missing.
    """
    match config:
        case VllmConfig():
            if is_local or vllm.is_installed():
                vllm.build_engine_args(config)
        case OpenAIConfig():
            for endpoint in openai_config.list_endpoints(config):
                if is_local or endpoint.api_key_file is None:
                    openai_config.read_key(endpoint)


def make_teacher(config: AnyTeacherConfig, reply_offline: Callable[[Request, int], str], actors: int) -> Teacher:
    """Return the teacher of a configuration; called inside an actor.

    Args:
        config: The teacher, pinned.
        reply_offline: A task's rules, (request, seed) to reply.
        actors: How many actors share the endpoint's caps.
    """
    match config:
        case VllmConfig():
            return VllmTeacher(config)
        case OpenAIConfig():
            return OpenAITeacher(config, 1 / actors)
        case OfflineConfig():
            return OfflineTeacher(config, reply_offline)
