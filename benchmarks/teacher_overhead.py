"""What hosting an engine costs: the same prompts, model and sampling through four hosts of vLLM.

`raw` is vLLM's engine in a plain process, `ours` the pool of `pipeline.teachers`, and `ray.data.llm` Ray's own batch
inference, as it comes and tuned. `python -m benchmarks.teacher_overhead` runs all of them on two models of random
weights, `tiny` (nearly everything measured is overhead) and `small` (the engine has something to do).
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness import (
    Contestant,
    ContestantError,
    Figures,
    Ratio,
    find_gpus,
    measure_steadiness,
    report,
    run_alone,
    run_rounds,
    write_topics,
)
from pipeline.config import validate
from pipeline.identity import derive_seed, digest
from pipeline.records import Completion, Message, Outcome, Request, Seed
from pipeline.teachers.tokens import encode_prompt
from pipeline.teachers.vllm import OVERBOOKING, VllmConfig, VllmTeacher, build_engine_args

MODULE = "benchmarks.teacher_overhead"
PROJECT = Path(__file__).parent.parent
SIZES = {"tiny": (2, 128), "small": (8, 512)}
"""Layers and width."""
ROWS = {"tiny": 1536}
DEFAULT_ROWS = 512
LOGICAL_CPUS = {"ours": 2, "ray.data.llm": 8}
"""Ours has what `conf/scale/local.yaml` says. The stages of `ray.data.llm` ask for nearly 8 together: with fewer they
starve its engine, and the job hangs."""


def write_requests(rows: int, tokens: int) -> list[Request]:
    """Return seeded chats of 100 to 200 tokens, each to be answered by free text."""
    draws = random.Random(0)
    topics = write_topics(rows)
    requests = []
    for row, topic in enumerate(topics):
        others = "; ".join(draws.choices(topics, k=draws.randint(1, 4)))
        messages = (
            Message("system", "You write realistic search queries. Reply with one query on each line."),
            Message(
                "user",
                f"Topic: {topic}\nPeople who care for it also asked about: {others}.\nFor each of them write one query "
                "that can be answered as it stands and one that needs a question first.",
            ),
        )
        name = f"row-{row}"
        requests.append(
            Request(digest(name), Seed(name, topic, name), (), messages, "", tokens, 1.0, 1.0, derive_seed(0, name))
        )
    return requests


def make_endless(model: Path, folder: Path) -> Path:
    """Copy a model without its end-of-sequence token, so that every reply has all tokens that were asked for.

    Only some hosts can tell the engine to go on past that token. Without one there is nothing to go on past.
    """
    shutil.copytree(model, folder)
    for name, keys in {
        "config.json": ("eos_token_id",),
        "generation_config.json": ("eos_token_id",),
        "tokenizer_config.json": ("eos_token",),
    }.items():
        if (path := folder / name).exists():
            path.write_text(json.dumps({**json.loads(path.read_text()), **dict.fromkeys(keys)}))
    return folder


def configure(model: str, sequences: int, on_gpu: bool) -> VllmConfig:
    """Return the teacher of all contestants, as users have it but for what a fair comparison needs."""
    base: dict[str, Any] = yaml.safe_load((PROJECT / "conf" / "teacher" / "vllm.yaml").read_text())
    engine: dict[str, Any] = {"load_format": "dummy"}
    environment: dict[str, str] = {}
    if not on_gpu:
        # Chunked prefill is off because a seeded request whose prompt is cut into chunks kills the engine on CPUs.
        engine = {"dtype": "float32", "enforce_eager": True, "enable_chunked_prefill": False}
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB
    changes = {
        "model": model,
        "environment": environment,
        "engine": {**base["engine"], **engine, "max_model_len": 2048, "max_num_seqs": sequences},
        "cpus": 1,
        "gpus": int(on_gpu),
    }
    return validate(VllmConfig, {**base, **changes})


@dataclass(frozen=True)
class Work:
    """What one contestant has to do."""

    config: VllmConfig
    requests: Sequence[Request]
    tokens: int


def measure_raw(work: Work) -> Figures:
    """Host the engine in this process, as lean as it gets: no statistics, only whole answers."""
    return asyncio.run(_measure_raw(work))


async def _measure_raw(work: Work) -> Figures:
    called_at = time.time()
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(replace(build_engine_args(work.config), disable_log_stats=True))
    tokenizer = engine.get_tokenizer()
    places = asyncio.Semaphore(ceil(OVERBOOKING * work.config.engine["max_num_seqs"]))

    async def ask(request: Request) -> tuple[float, float, int]:
        async with places:
            sent_at = time.time()
            prompt = {"prompt_token_ids": encode_prompt(tokenizer, request.messages, work.config.prompt_format)}
            sampling = SamplingParams(**_sample(request), output_kind=RequestOutputKind.FINAL_ONLY)
            (output,) = [whole async for whole in engine.generate(prompt, sampling, request.request_id)]
            return sent_at, time.time(), len(output.outputs[0].token_ids)

    answers = await asyncio.gather(*(ask(request) for request in work.requests))
    engine.shutdown()
    return _describe(called_at, answers, work)


def measure_ours(work: Work) -> Figures:
    """Teach, with a ledger on disk and with progress, as an experiment does."""
    import ray

    from pipeline.cluster import Report
    from pipeline.progress import Tally
    from pipeline.storage import Folder
    from pipeline.teachers.ledger import Ledger
    from pipeline.teachers.plan import Limits
    from pipeline.teachers.pool import PoolConfig, teach

    _start_cluster(LOGICAL_CPUS["ours"])
    tally = ray.remote(num_cpus=0)(Tally).remote()
    with tempfile.TemporaryDirectory() as root:
        ledger = Ledger.of(Folder.at(root), work.config.label)
        called_at = time.time()
        teach(
            work.requests,
            ledger,
            work.config,
            partial(VllmTeacher, work.config),
            accept,
            Limits(max_attempts=1, max_tries=1),
            PoolConfig(actors=1),
            report=Report(tally),
        )
        returned_at = time.time()
        completions, _ = ledger.read()
    answers = [(c.started_at, c.started_at + c.latency_s, c.n_completion_tokens) for c in completions]
    last = max(end for _, end, _ in answers)
    return {**_describe(called_at, answers, work), "close_s": returned_at - last}


def accept(request: Request, completion: Completion) -> Outcome:
    """Judge a reply that was cut off where it had to be as good."""
    return Outcome.OK if completion.outcome is Outcome.TRUNCATED else completion.outcome


def measure_ray_data_llm(work: Work, settings: Mapping[str, Any], rows_per_block: int | None) -> Figures:
    """Run Ray's own batch inference.

    Args:
        work: What to do.
        settings: Of its `vLLMEngineProcessorConfig`, besides what it needs on this machine.
        rows_per_block: None leaves the blocks as they come.
    """
    import ray.data
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    _start_cluster(LOGICAL_CPUS["ray.data.llm"])
    called_at = time.time()
    on_cpu = {} if work.config.gpus else {"placement_group_config": {"bundles": [{"CPU": 1}]}}
    config = vLLMEngineProcessorConfig(
        model_source=work.config.model,
        engine_kwargs=dict(work.config.engine),
        log_engine_metrics=False,  # it would need ray[serve]
        **on_cpu,
        **settings,
    )
    process = build_processor(config, preprocess=prepare_row, postprocess=time_row)
    data = ray.data.from_items(
        [
            {
                "messages": [{"role": m.role, "content": m.content} for m in request.messages],
                "sampling_params": _sample(request),
            }
            for request in work.requests
        ]
    )
    if rows_per_block is not None:
        data = data.repartition(target_num_rows_per_block=rows_per_block)
    answers = [(row["sent_at"], row["answered_at"], row["tokens"]) for row in process(data).iter_rows()]
    returned_at = time.time()
    last = max(end for _, end, _ in answers)
    return {**_describe(called_at, answers, work), "close_s": returned_at - last}


def prepare_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return what `ray.data.llm` asks the engine."""
    return {"messages": row["messages"], "sampling_params": row["sampling_params"]}


def time_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return when a row's request came to the engine, when the row was there, and how many tokens it got."""
    return {
        "sent_at": row["metrics"]["arrival_time"],
        "answered_at": time.time(),
        "tokens": row["num_generated_tokens"],
    }


BATCH_ROWS = 16
TUNED: dict[str, Any] = {
    # Many small batches: a batch is handed on when its last row is there.
    "batch_size": BATCH_ROWS,
    "max_concurrent_batches": 16,
    "concurrency": (1, 1),
    "tokenize_stage": False,
    "detokenize_stage": False,
    "chat_template_stage": {"num_cpus": 0.5},
}
CONTESTANTS: dict[str, Callable[[Work], Figures]] = {
    "raw": measure_raw,
    "ours": measure_ours,
    "ray.data.llm": partial(measure_ray_data_llm, settings=TUNED, rows_per_block=BATCH_ROWS),
    "ray.data.llm-defaults": partial(measure_ray_data_llm, settings={}, rows_per_block=None),
}


def _sample(request: Request) -> dict[str, Any]:
    """Return the sampling of a request's first attempt, as our teacher has it."""
    return {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_tokens": request.max_new_tokens,
        "seed": derive_seed(request.row_seed, 1),
    }


def _start_cluster(num_cpus: int) -> None:
    import ray

    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level="error")


def _describe(called_at: float, answers: Sequence[tuple[float, float, int]], work: Work) -> Figures:
    n_wrong = sum(tokens != work.tokens for _, _, tokens in answers)
    if n_wrong or len(answers) != len(work.requests):
        raise ContestantError(
            f"{len(answers)} of {len(work.requests)} rows came, {n_wrong} of them not with {work.tokens} tokens"
        )
    spans = [(start, end) for start, end, _ in answers]
    return {"start_s": min(spans)[0] - called_at, **measure_steadiness(spans, work.tokens)}


def list_ratios(models: Sequence[str]) -> list[Ratio]:
    """Return what ours is measured by, for each model."""
    return [
        Ratio(f"ours/{reference}@{model}", "steady_tokens_per_s", f"ours@{model}", f"{reference}@{model}")
        for model in models
        for reference in CONTESTANTS
        if reference != "ours"
    ]


def find_model(model: str, folder: Path) -> tuple[str, Path]:
    """Return a model's name for tables, and a folder inside `folder` that holds it without an end."""
    if model in SIZES:
        from tests.models import build_llm

        layers, width = SIZES[model]
        return model, make_endless(build_llm(folder / f"{model}-as-built", layers, width), folder / model)
    from huggingface_hub import snapshot_download

    found = Path(model).expanduser()
    name = found.name if found.is_dir() else model.rpartition("/")[2]
    return name, make_endless(found if found.is_dir() else Path(snapshot_download(model)), folder / name)


def read_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", nargs="+", default=list(SIZES), help="tiny, small, a folder or a hub id")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, help=f"default: {DEFAULT_ROWS}, and {ROWS['tiny']} of tiny")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens of each row")
    parser.add_argument("--sequences", type=int, default=64, help="that the engine runs at once")
    parser.add_argument("--gpu", action="store_true", help="one GPU for each engine, weights drawn at random")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--only", choices=CONTESTANTS, help="measure this one in this process, on a prepared folder")
    return parser.parse_args()


def main() -> None:
    """Measure all contestants, or the one that `--only` names."""
    arguments = read_arguments()
    if arguments.gpu and not find_gpus():
        sys.stdout.write("skipped: --gpu needs a GPU, and this machine has none\n")
        return
    shared = [f"--tokens={arguments.tokens}", f"--sequences={arguments.sequences}", *["--gpu"] * arguments.gpu]
    if arguments.only:
        config = configure(arguments.model[0], arguments.sequences, arguments.gpu)
        os.environ.update(config.environment)  # before vLLM is imported, and before Ray hands it on to its workers
        work = Work(config, write_requests(arguments.rows, arguments.tokens), arguments.tokens)
        sys.stdout.write(json.dumps(CONTESTANTS[arguments.only](work)) + "\n")
        return
    contestants, names = [], []
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.model:
            name, path = find_model(model, Path(folder))
            names.append(name)
            rows = arguments.rows or ROWS.get(name, DEFAULT_ROWS)
            for contestant in arguments.contestants:
                alone = [f"--only={contestant}", f"--model={path}", f"--rows={rows}", *shared]
                contestants.append(Contestant(f"{contestant}@{name}", partial(run_alone, MODULE, alone)))
        rounds = run_rounds(contestants, arguments.rounds)
    measured = {contestant.name for contestant in contestants}
    ratios = [ratio for ratio in list_ratios(names) if {ratio.contestant, ratio.reference} <= measured]
    report("teacher_overhead", rounds, ratios)


if __name__ == "__main__":
    main()
