"""The kinds of teachers, told apart here and nowhere else."""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

from pydantic import Field

from pipeline.identity import digest, source_digest
from pipeline.records import Request
from pipeline.teachers import batch_config, openai_config, vllm
from pipeline.teachers.batch_config import OpenAIBatchConfig
from pipeline.teachers.efficiency import Session
from pipeline.teachers.ledger import Ledger
from pipeline.teachers.offline import OfflineConfig, OfflineTeacher
from pipeline.teachers.openai import OpenAITeacher
from pipeline.teachers.openai_batch import OpenAIBatchTeacher
from pipeline.teachers.openai_config import OpenAIConfig, list_endpoints
from pipeline.teachers.projection import Pace
from pipeline.teachers.teacher import Teacher
from pipeline.teachers.vllm import VllmConfig, VllmTeacher

AnyTeacherConfig = Annotated[OfflineConfig | OpenAIConfig | OpenAIBatchConfig | VllmConfig, Field(discriminator="kind")]
"""The union of all teachers' configurations."""
_SLOTS = 64
"""Requests that an actor keeps open where neither the configuration nor an engine says."""


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


def check_teacher(config: AnyTeacherConfig, requests: Iterable[Request], is_local: bool) -> None:
    """Find a user's mistake before any cluster work.

    Args:
        config: The teacher.
        requests: What it is to be asked.
        is_local: Whether actors run on this machine, so that what is missing here is missing there.

    Raises:
        ConfigError: The engine refuses its arguments or isn't installed, a key is missing, or a request is of a kind
            that the teacher can't be asked.
    """
    if isinstance(config, OpenAIBatchConfig):
        batch_config.check_requests(config, requests)
    match config:
        case VllmConfig():
            if is_local or vllm.is_installed():
                vllm.build_engine_args(config)
        case OpenAIConfig():
            for endpoint in openai_config.list_endpoints(config):
                if is_local or endpoint.api_key_file is None:
                    openai_config.read_key(endpoint)


def make_teacher(
    config: AnyTeacherConfig, reply_offline: Callable[[Request, int], str], actors: int, ledger: Ledger
) -> Teacher:
    """Return the teacher of a configuration; called inside an actor.

    Args:
        config: The teacher, pinned.
        reply_offline: A task's rules, (request, seed) to reply.
        actors: How many actors share the endpoint's caps.
        ledger: That of the teacher.
    """
    match config:
        case VllmConfig():
            return VllmTeacher(config)
        case OpenAIBatchConfig():
            return OpenAIBatchTeacher(config, ledger)
        case OpenAIConfig():
            return OpenAITeacher(config, 1 / actors)
        case OfflineConfig():
            return OfflineTeacher(config, reply_offline)


def size_prompts(config: AnyTeacherConfig, requests: Sequence[Request]) -> list[float]:
    """Return what each prompt's tokens are in proportion to.

    These are the tokens themselves where the model's tokenizer is ours, and characters where it is elsewhere.
    """
    if isinstance(config, VllmConfig):
        return vllm.count_prompt_tokens(config, requests)
    return [float(sum(len(message.content) for message in request.messages)) for request in requests]


def make_pace(config: AnyTeacherConfig, actors: int, session: Session) -> Pace:
    """Return how fast a teacher may be asked.

    Args:
        config: The teacher.
        actors: How many actors ask it.
        session: What asking some requests came to.
    """
    match config:
        case VllmConfig():
            return Pace(session, actors * vllm.count_slots(config), None, None)
        case OpenAIConfig():
            n, caps = len(list_endpoints(config)), (config.requests_per_minute, config.tokens_per_minute)
            slots = actors * (config.max_in_flight or _SLOTS)  # an actor's, over all its endpoints
            return Pace(session, slots, *(None if cap is None else cap * n for cap in caps))
        case OfflineConfig():
            return Pace(session, actors * (config.max_in_flight or _SLOTS), None, None)
