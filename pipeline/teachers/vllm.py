"""vLLM's asynchronous engine inside an actor.

The engine runs in a process of its own (with tensor parallelism, in several, by vLLM's multiprocess executor on the
actor's GPUs) and batches continuously whatever is in flight. The weights' precision comes from the checkpoint, all else
from the configuration.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError
from pydantic import Field, field_validator, model_validator

from pipeline.errors import ConfigError, TeacherDiedError, TeacherError
from pipeline.identity import derive_seed, digest
from pipeline.records import Completion, Outcome, Request
from pipeline.teachers.teacher import TeacherConfig, make_failure
from pipeline.teachers.tokens import encode_prompt, find_openings, read_choices, spell
from pipeline.weights import locate_model, pin_model

if TYPE_CHECKING:
    import psutil
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.outputs import RequestOutput

LOG = logging.getLogger(__name__)
OVERBOOKING = 1.25
"""Requests in flight per sequence that the engine runs at once, so that one is waiting whenever a place falls free."""
USUAL_MAX_NUM_SEQS = 256
"""vLLM's own `max_num_seqs` on most devices; on the largest GPUs it is more."""
LOG_TAIL_LINES = 30
SHUTDOWN_TIMEOUT_S, KILL_TIMEOUT_S = 5.0, 60.0
"""Until an engine is killed, and until it is gone: a kernel may take long to free what a large one held."""
GRAMMAR = {"backend": "guidance", "disable_any_whitespace": True}
"""How replies are held to their schema. Compact, because where any white space is legal some models never stop writing
it (vllm#38696); said to the engine, because the backends don't read the request's field of the same name. Not xgrammar,
which lets raw control characters into strings of bounded length: of 32 replies of the tiny model none was JSON."""

_SPEED_ONLY = (
    "block_size", "distributed_executor_backend", "enable_chunked_prefill", "enable_prefix_caching", "enforce_eager",
    "gpu_memory_utilization", "max_model_len", "max_num_batched_tokens", "max_num_seqs", "pipeline_parallel_size",
    "tensor_parallel_size",
)  # fmt: skip
"""Engine arguments that decide how fast and on what the answers come, not which."""


class VllmConfig(TeacherConfig):
    """A model and the engine that runs it."""

    kind: Literal["vllm"]
    model: str = Field(min_length=1)
    """Hub id or folder."""
    revision: str | None
    """Commit of the hub's repository; null for a folder, whose files are hashed, or for the newest."""
    lora: str | None
    """Hub id or folder of a LoRA adapter."""
    prompt_format: Literal["chat", "plain"]
    """`chat`: the tokenizer's own chat template; `plain`: the messages' texts, joined by blank lines."""
    engine: dict[str, Any]
    """Arguments of vLLM's `AsyncEngineArgs`; null: vLLM's own default."""
    environment: dict[str, str]
    """Variables that vLLM reads, such as `VLLM_CPU_KVCACHE_SPACE`."""
    stall_timeout_s: float = Field(gt=0)
    """Seconds without a step, while requests are in flight, after which the engine is replaced."""

    @property
    def engine_arguments(self) -> dict[str, Any]:
        """The arguments that are set."""
        return {name: value for name, value in self.engine.items() if value is not None}

    @property
    def devices(self) -> float:
        """The actor's GPUs; an engine on CPUs counts as one device."""
        return self.gpus or 1.0

    @field_validator("environment")
    @classmethod
    def _check_environment(cls, environment: dict[str, str]) -> dict[str, str]:
        if wrong := [name for name in environment if not name.startswith("VLLM_") or name == "VLLM_API_KEY"]:
            raise ValueError(f"{', '.join(wrong)}: only variables of vLLM itself; set others, and keys, on the nodes")
        return environment

    @model_validator(mode="after")
    def _check_engine(self) -> "VllmConfig":
        if taken := sorted({"model", "revision", "enable_lora", "disable_log_stats"} & set(self.engine)):
            raise ValueError(f"engine: {', '.join(taken)} are set by the teacher's own fields")
        wanted = self.engine_arguments.get("tensor_parallel_size", 1) * self.engine_arguments.get(
            "pipeline_parallel_size", 1
        )
        if wanted > 1 and self.gpus != wanted:
            raise ValueError(f"gpus: the engine spreads over {wanted} GPUs, the actor gets {self.gpus:g}")
        return self


def pin(config: VllmConfig) -> tuple[VllmConfig, dict[str, str]]:
    """Return a configuration whose weights can't change under a run, and what identifies its answers.

    Raises:
        ConfigError: There is no such model or adapter.
    """
    model = pin_model(config.model, config.revision)
    identity = {
        "kind": config.kind,
        "weights": model.identity,
        "lora": pin_model(config.lora, None, "adapter_config.json").identity if config.lora else "",
        "prompt_format": config.prompt_format,
        "grammar": digest(GRAMMAR),
        "engine": digest({name: value for name, value in config.engine_arguments.items() if name not in _SPEED_ONLY}),
    }
    return config.model_copy(update={"model": model.location, "revision": model.revision}), identity


def is_installed() -> bool:
    """Return whether vLLM is on this machine."""
    return find_spec("vllm") is not None


def count_prompt_tokens(config: VllmConfig, requests: Sequence[Request]) -> list[float]:
    """Return the tokens of each request's prompt, counted by the engine's tokenizer without the engine."""
    from transformers import AutoTokenizer

    name = config.engine_arguments.get("tokenizer", config.model)
    tokenizer = AutoTokenizer.from_pretrained(locate_model(name), revision=config.revision)
    return [float(len(encode_prompt(tokenizer, r.messages, config.prompt_format))) for r in requests]


def count_slots(config: VllmConfig) -> int:
    """Return how many requests one actor keeps open, as far as that is known without the engine."""
    max_num_seqs = config.engine_arguments.get("max_num_seqs", USUAL_MAX_NUM_SEQS)
    return config.max_in_flight or ceil(OVERBOOKING * max_num_seqs)


def build_engine_args(config: VllmConfig) -> "AsyncEngineArgs":
    """Return vLLM's own arguments for a configuration.

    Raises:
        ConfigError: vLLM is not installed, or doesn't know an argument.
    """
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
    except ImportError as error:
        raise ConfigError(
            f"the teacher {config.label} needs vLLM, which can't be imported here ({error}); install the extra `gpu`, "
            "or on a machine without a GPU run `make install-vllm`"
        ) from None
    arguments = {
        # Left to itself, vLLM would hand the workers of a tensor-parallel engine back to Ray.
        "distributed_executor_backend": "mp" if config.gpus > 1 else "uni",
        "structured_outputs_config": GRAMMAR,
        **config.engine_arguments,
        "model": locate_model(config.model),
        "revision": config.revision,
        "enable_lora": config.lora is not None,
        "disable_log_stats": True,
    }
    try:
        return AsyncEngineArgs(**arguments)
    except (TypeError, ValueError, OSError) as error:  # an unknown argument, a refused value, a model that isn't there
        raise ConfigError(f"teacher {config.label}: vLLM refuses its model or its `engine`: {error}") from None


class VllmTeacher:
    """Completes requests by an engine of its own."""

    def __init__(self, config: VllmConfig) -> None:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would report to vLLM's authors
        os.environ.update(config.environment)
        from vllm.envs import enable_envs_cache
        from vllm.v1.engine.async_llm import AsyncLLM

        self.config = config
        self._timeouts: set[asyncio.Timeout] = set()
        self._busy_since = self._stepped_at = 0.0
        self._watchdog: asyncio.Task[None] | None = None
        self._death = ""
        self._openings: dict[tuple[str, ...], Mapping[int, str]] = {}
        try:
            self._engine = AsyncLLM.from_engine_args(build_engine_args(config))
        except (RuntimeError, ValueError, OSError, ImportError) as error:
            raise TeacherError(f"vLLM can't start {config.model}: {error}\n{read_log_tail()}") from None
        self._processes = _find_processes(self._engine)
        enable_envs_cache()  # or a variable is looked up for every token
        self._note_steps()
        self._tokenizer: Any = self._engine.get_tokenizer()
        self._lora = _locate_lora(config.lora) if config.lora else None

    @property
    def capacity(self) -> int:
        """What keeps every place in the engine's batch taken."""
        max_num_seqs: int = self._engine.vllm_config.scheduler_config.max_num_seqs
        return ceil(OVERBOOKING * max_num_seqs)

    def measure_memory(self) -> int:
        """Return the bytes that the engine holds: what it reserved of its GPUs, or its processes' memory."""
        config = self._engine.vllm_config
        if self.config.gpus:
            from vllm.platforms import current_platform

            share: float = config.cache_config.gpu_memory_utilization
            return int(share * current_platform.get_device_total_memory() * config.parallel_config.world_size)
        return sum(map(_measure_memory, self._processes))

    def describe_state(self) -> Mapping[str, int]:
        """Return nothing: an engine answers, or is replaced."""
        return {}

    async def complete(self, request: Request, attempt: int) -> Completion:
        """Return what the model wrote; see `Teacher`."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        if self._watchdog is None:
            self._watchdog = asyncio.create_task(self._watch())
        started_at = time.time()
        prompt = self._encode(request)
        room = self._engine.vllm_config.model_config.max_model_len - len(prompt)
        if room < request.max_new_tokens:
            return make_failure(
                request,
                attempt,
                started_at,
                Outcome.ERROR,
                f"the prompt has {len(prompt)} tokens and the reply may have {request.max_new_tokens}, which is "
                f"{request.max_new_tokens - room} too many; raise engine.max_model_len",
            )
        try:
            async with self._in_flight():
                output = await self._generate(prompt, request, attempt)
        except TimeoutError:
            if self._death:
                raise TeacherDiedError(self._death) from None
            error = f"no answer within {self.config.timeout_s:g} s"
            return make_failure(request, attempt, started_at, Outcome.TIMEOUT, error)
        except EngineDeadError as error:
            self._death = self._death or f"the engine of {self.config.model} died\n{read_log_tail()}"
            raise TeacherDiedError(self._death) from error
        except (ValueError, VLLMClientError, EngineGenerateError) as error:  # what the engine can't serve, and lives on
            return make_failure(request, attempt, started_at, Outcome.ERROR, f"{type(error).__name__}: {error}")
        return self._read(output, request, attempt, started_at)

    async def close(self) -> None:
        """End the engine's processes, the hard way if need be."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._engine.shutdown(timeout=SHUTDOWN_TIMEOUT_S)
        await asyncio.to_thread(_end, self._processes)

    def _encode(self, request: Request) -> list[int]:
        try:
            return encode_prompt(self._tokenizer, request.messages, self.config.prompt_format)
        except (TemplateError, ValueError) as error:  # a role that the template doesn't know; no template
            raise TeacherError(
                f"{self.config.model} can't be asked by its chat template: {error}; set "
                "teacher.prompt_format=plain, or name a model that takes these messages"
            ) from None

    @contextlib.asynccontextmanager
    async def _in_flight(self) -> AsyncIterator[None]:
        """Bound a request's time, and let the watchdog end it early."""
        if not self._timeouts:
            self._busy_since = time.monotonic()
        async with asyncio.timeout(self.config.timeout_s) as timeout:
            self._timeouts.add(timeout)
            try:
                yield
            finally:
                self._timeouts.discard(timeout)

    async def _generate(self, prompt: list[int], request: Request, attempt: int) -> "RequestOutput":
        name = f"{request.request_id}-{attempt}-{time.monotonic_ns()}"
        inputs = {"prompt_token_ids": prompt}
        async for output in self._engine.generate(
            inputs, self._sample(request, attempt), name, lora_request=self._lora
        ):
            if output.finished:
                return output
        raise TeacherDiedError("the engine ended a request without an output")

    def _sample(self, request: Request, attempt: int) -> "SamplingParams":
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        allowed = None
        if request.response_schema:
            allowed = StructuredOutputsParams(json=request.response_schema)
        elif request.choices:
            allowed = StructuredOutputsParams(choice=[text for choice in request.choices for text in spell(choice)])
        return SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_new_tokens,
            stop=list(request.stop),
            # A greedy reply has no use for a seed, and each seeded sequence costs the sampler a call of its own.
            seed=derive_seed(request.row_seed, attempt) if request.temperature > 0 else None,
            structured_outputs=allowed,
            logprob_token_ids=sorted(self._find_openings(request.choices)) or None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _read(self, output: "RequestOutput", request: Request, attempt: int, started_at: float) -> Completion:
        (reply,) = output.outputs
        return Completion(
            request_id=request.request_id,
            attempt=attempt,
            outcome=Outcome.TRUNCATED if reply.finish_reason == "length" else Outcome.OK,
            text=reply.text,
            finish_reason=reply.finish_reason or "",
            n_prompt_tokens=len(output.prompt_token_ids or ()),
            n_completion_tokens=len(reply.token_ids),
            started_at=started_at,
            latency_s=time.time() - started_at,
            n_cached_tokens=output.num_cached_tokens or 0,
            choice_logprobs=read_choices(reply.logprobs, self._find_openings(request.choices)),
        )

    def _find_openings(self, choices: tuple[str, ...]) -> Mapping[int, str]:
        if choices not in self._openings:
            self._openings[choices] = find_openings(self._tokenizer, choices)
        return self._openings[choices]

    def _note_steps(self) -> None:
        """Remember when the engine last made a step.

        vLLM tells that to its statistics loggers too, but only along with statistics that cost a fifth of this
        process's time.
        """
        core = self._engine.engine_core
        get_output = core.get_output_async

        async def get_output_and_note() -> Any:
            output = await get_output()
            self._stepped_at = time.monotonic()
            return output

        core.get_output_async = get_output_and_note

    async def _watch(self) -> None:
        """Give up on the engine when it makes no step though requests wait for it."""
        while not self._death:
            await asyncio.sleep(self.config.stall_timeout_s / 10)
            idle_s = time.monotonic() - max(self._stepped_at, self._busy_since)
            if self._timeouts and idle_s > self.config.stall_timeout_s:
                self._death = f"the engine of {self.config.model} made no step for {idle_s:.0f} s\n{read_log_tail()}"
                for timeout in self._timeouts:
                    if not timeout.expired():
                        timeout.reschedule(asyncio.get_running_loop().time())


def _find_processes(engine: Any) -> "list[psutil.Process]":
    """Return an engine's processes and their workers, which can't be told from others once the engine is dead."""
    import psutil

    found = []
    for process in engine.engine_core.resources.engine_manager.processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # dead already, as the first request will learn
            core = psutil.Process(process.pid)
            found += [core, *core.children(recursive=True)]
    return found


def _measure_memory(process: "psutil.Process") -> int:
    import psutil

    try:
        rss: int = process.memory_info().rss
    except psutil.NoSuchProcess:  # the engine just died
        return 0
    return rss


def _end(processes: "list[psutil.Process]") -> None:
    """Kill what still runs and wait until it is gone: until then it holds the GPU memory that the next engine needs.

    vLLM neither waits for what it kills nor ends the workers of an engine that died.
    """
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(processes, timeout=KILL_TIMEOUT_S)
    if alive:
        LOG.warning("killed, but still there after %g s: %s", KILL_TIMEOUT_S, alive)


def read_log_tail() -> str:
    """Return the last lines that this process and its engine wrote, from the files that Ray sends them to."""
    lines = []
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # no such link on this system, or no file behind it
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if path.is_file():
                lines += path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return "\n".join(lines)


def _locate_lora(lora: str) -> Any:
    from huggingface_hub import snapshot_download
    from vllm.lora.request import LoRARequest

    folder = lora if Path(lora).expanduser().is_dir() else snapshot_download(lora)
    return LoRARequest("adapter", 1, str(Path(folder).expanduser()))
