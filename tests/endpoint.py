"""A small OpenAI-compatible endpoint in a process of its own, with faults on request and a log that survives.

`python -m tests.endpoint --latency-s 0.1` prints its port and serves until it is stopped; tests use `serve`. Which
fault a request meets is a pure function of its prompt and of how often that was asked before, so that a test knows in
advance how many requests each prompt needs.
"""

import argparse
import asyncio
import hashlib
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from aiohttp import web

FAULTS = ("rate_limited", "quota", "broken", "malformed", "truncated", "stall")
OK = "ok"
LOST, OVER_LIMIT = "lost", "over_limit"
"""What meets a request because of when it comes."""
PROJECT = Path(__file__).parent.parent
STARTS = ("ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "ne", "pi", "ro", "su", "ta", "ve")
ENDS = ("lan", "mer", "nit", "pol", "run", "sab", "tek", "vim", "zor", "dak", "fen", "gil", "hop", "jut", "kas", "lem")
WORDS = tuple(start + end for start in STARTS for end in ENDS)
DEFAULT_LONGEST, MOST_WORDS = 80, 9
"""Characters of a string whose schema has no bound, and words of any string that may be so long."""


@dataclass(frozen=True)
class Options:
    """How the endpoint behaves; faults are shares of the requests."""

    latency_s: float = 0.0
    latency_spread: float = 0.0
    """Latencies are drawn evenly from this share below to this share above."""
    seed: int = 0
    rate_limited: float = 0.0
    """429, to be sent again after `retry_after_s`."""
    retry_after_s: float = 0.0
    quota: float = 0.0
    """429 that no waiting helps against."""
    broken: float = 0.0
    """500."""
    malformed: float = 0.0
    """200 with JSON that ends in the middle, as if it were all."""
    truncated: float = 0.0
    """200 with a text that ends in the middle, because its tokens were used up."""
    stall: float = 0.0
    """No answer, ever."""
    padding: float = 0.0
    """White space behind a reply, up to so many times its length: replies of very different lengths."""
    requests_per_s: float = 0.0
    """429 at once for whatever comes above that, with a second's worth as a burst; 0: no limit."""
    rise_s: float = 0.0
    """Seconds from the first request over which the limit rises to that, from a twentieth of it."""
    outage_at_s: float = 0.0
    """Seconds from the first request after which connections are closed without an answer."""
    outage_s: float = 0.0
    """How long they are."""
    echo_key: int = 0
    """1: bodies of errors repeat the header that holds the key; 2: so do half of the replies."""
    wanted_key: str = ""
    """401 for any other; empty: none is wanted."""
    models: str = "sample"
    """What it says to serve; it answers for any model."""

    @property
    def shares(self) -> dict[str, float]:
        return {fault: getattr(self, fault) for fault in FAULTS}


def key_prompt(messages: list[Mapping[str, str]]) -> str:
    """Return what names a prompt in the log."""
    text = json.dumps([[message["role"], message["content"]] for message in messages])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def draw(seed: int, shares: Mapping[str, float], prompt_key: str, n: int) -> str:
    """Return the fault that the n-th request for a prompt meets (from 1), or `ok`."""
    chance = random.Random(f"{seed}-{prompt_key}-{n}").random()
    for fault in FAULTS:
        if chance < shares.get(fault, 0.0):
            return fault
        chance -= shares.get(fault, 0.0)
    return OK


def write_value(schema: Mapping[str, Any], words: random.Random) -> Any:
    """Return a value that is valid against a schema of the kinds that Raystill's own schemas are made of."""
    match schema:
        case {"enum": [first, *_]}:
            return first
        case {"type": "object", "properties": properties}:
            return {name: write_value(part, words) for name, part in properties.items()}
        case {"type": "array", "items": item}:
            return [write_value(item, words) for _ in range(schema.get("minItems", 1))]
        case {"type": "string"}:
            return write_text(schema.get("minLength", 0), schema.get("maxLength", DEFAULT_LONGEST), words)
        case {"type": "boolean"}:
            return words.random() < 0.5
        case {"type": "integer", "minimum": low, "maximum": high}:
            return words.randint(low, high)
    raise ValueError(f"no value for the schema {schema}")


def write_text(shortest: int, longest: int, words: random.Random) -> str:
    text = " ".join(words.choices(WORDS, k=words.randint(4, MOST_WORDS)))
    while len(text) < shortest:
        text += " " + words.choice(WORDS)
    return text[:longest].rstrip().ljust(shortest, "x")


class Endpoint:
    """Answers, and counts by prompt what it was asked since it was started."""

    def __init__(self, options: Options, log: TextIO) -> None:
        self._options = options
        self._log = log
        self._counts: Counter[str] = Counter()
        self._first_at = math.inf
        self._refilled_at = 0.0
        self._left = 0.0

    def make_app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._list_models)
        return app

    async def _list_models(self, request: web.Request) -> web.Response:
        models = [{"id": model, "object": "model"} for model in self._options.models.split(",")]
        return web.json_response({"object": "list", "data": models})

    async def _complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        prompt = key_prompt(body["messages"])
        drawn = self._draw(prompt)
        n, kind = self._counts[prompt], self._refuse(time.monotonic()) or drawn
        self._write_line(prompt, n, kind, finished=False)
        if kind == LOST:
            request.transport.close()
            return web.Response()
        if kind == OVER_LIMIT:
            return _fail(429, "rate_limit_exceeded", "over the limit")
        spread = self._options.latency_spread * random.Random(f"{prompt}-{n}").uniform(-1, 1)
        await asyncio.sleep(1e9 if kind == "stall" else self._options.latency_s * (1 + spread))
        response = self._answer(body, prompt, kind, request.headers.get("Authorization", ""))
        self._write_line(prompt, n, kind, finished=True)
        return response

    def _draw(self, prompt: str) -> str:
        self._counts[prompt] += 1
        return draw(self._options.seed, self._options.shares, prompt, self._counts[prompt])

    def _refuse(self, now: float) -> str:
        """Return why no request gets an answer at that moment; else nothing."""
        options, self._first_at = self._options, min(self._first_at, now)
        age_s = now - self._first_at
        if options.outage_at_s <= age_s < options.outage_at_s + options.outage_s:
            return LOST
        if not options.requests_per_s:
            return ""
        risen = min(1.0, age_s / options.rise_s) if options.rise_s else 1.0
        rate = options.requests_per_s * (0.05 + 0.95 * risen)
        self._left = min(rate, self._left + rate * (now - self._refilled_at))
        self._refilled_at = now
        if self._left < 1:
            return OVER_LIMIT
        self._left -= 1
        return ""

    def _write_line(self, prompt: str, n: int, kind: str, *, finished: bool) -> None:
        line = {"prompt": prompt, "n": n, "kind": kind, "at": time.time(), "finished": finished}
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()

    def _answer(self, body: Mapping[str, Any], prompt: str, kind: str, key: str) -> web.Response:
        echo = f" {key}" if self._options.echo_key else ""
        if self._options.wanted_key and key != f"Bearer {self._options.wanted_key}":
            return _fail(401, "invalid_api_key", f"wrong key{echo}")
        match kind:
            case "rate_limited":
                after = {"Retry-After": f"{self._options.retry_after_s:g}"}
                return _fail(429, "rate_limit_exceeded", f"too many requests{echo}", after)
            case "quota":
                return _fail(429, "insufficient_quota", f"no credit left{echo}")
            case "broken":
                return _fail(500, "server_error", f"something broke{echo}")
        draws = random.Random(f"{self._options.seed}-{prompt}-{body.get('seed')}")
        text, logprobs = _reply(body, draws)
        if self._options.echo_key > 1 and draws.random() < 0.5:
            text = text.replace('"query": "', f'"query": "{key} ')
        if kind in ("malformed", "truncated"):
            text = text[: len(text) // 2]
        text += " " * int(len(text) * draws.uniform(0.0, self._options.padding))
        n_prompt = sum(len(message["content"]) for message in body["messages"]) // 4
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "logprobs": logprobs,
            "finish_reason": "length" if kind == "truncated" else "stop",
        }
        n_completion = max(1, len(text) // 4)
        usage = {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_completion,
            "total_tokens": n_prompt + n_completion,
        }
        made = {"id": f"chatcmpl-{prompt}", "object": "chat.completion", "created": int(time.time())}
        return web.json_response({**made, "model": body["model"], "choices": [choice], "usage": usage})


def _fail(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"message": message, "code": code}}, status=status, headers=headers)


def _reply(body: Mapping[str, Any], draws: random.Random) -> tuple[str, dict[str, Any] | None]:
    """Return a text, and its log-probabilities where they are asked for."""
    match body.get("response_format"):
        case {"json_schema": {"schema": schema}}:
            return json.dumps(write_value(schema, draws)), None
        case {"type": "json_object"}:
            return "{}", None
    p_yes = draws.uniform(0.01, 0.99)
    text = "yes" if p_yes >= 0.5 else "no"
    if not body.get("logprobs"):
        return text, None
    shares = {"yes": 0.7 * p_yes, " Yes": 0.2 * p_yes, "no": 0.9 * (1 - p_yes), "maybe": 0.1}
    alternatives = [{"token": token, "logprob": math.log(share)} for token, share in shares.items()]
    return text, {"content": [{"token": text, "logprob": math.log(shares[text]), "top_logprobs": alternatives}]}


@dataclass(frozen=True)
class Served:
    """An endpoint that is up."""

    base_url: str
    path: Path

    def log(self) -> list[dict[str, Any]]:
        """Return a line for each request that came, and one for each that was answered."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@contextmanager
def serve(
    log: Path | None = None,
    port: int = 0,
    module: str = "tests.endpoint",
    make_options: Callable[..., Options] = Options,
    **options: Any,
) -> Iterator[Served]:
    """Run an endpoint in a process of its own until the block ends.

    Args:
        log: The file that lines are appended to; None is a temporary one.
        port: 0 is any that is free.
        module: What is run.
        make_options: What it takes.
        options: As in `Options`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = log or Path(folder, "log.jsonl")
        settings = asdict(make_options(**options)) | {"port": port, "log": path, "parent": os.getpid()}
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        command = [sys.executable, "-m", module, *arguments]
        process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        try:
            first = process.stdout.readline().strip()
            assert first.isdecimal(), f"the endpoint did not start: {first!r}, exit status {process.poll()}"
            yield Served(f"http://127.0.0.1:{first}/v1", path)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


async def _run(endpoint: Callable[[TextIO], Endpoint], port: int, log: Path, parent: int) -> None:
    with log.open("a") as lines:
        # Cancelled with its client, so that only an answer that somebody waited for is logged as finished.
        runner = web.AppRunner(endpoint(lines).make_app(), access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
        sys.stdout.write(f"{runner.addresses[0][1]}\n")
        sys.stdout.flush()
        while not parent or os.getppid() == parent:
            await asyncio.sleep(1)


def main(options: type[Options] = Options, endpoint: type[Endpoint] = Endpoint) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path(os.devnull))
    parser.add_argument("--parent", type=int, default=0, help="process to end with; 0: none")
    for field in fields(options):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default)
    given = vars(parser.parse_args())
    port, log, parent = (given.pop(name) for name in ("port", "log", "parent"))
    asyncio.run(_run(partial(endpoint, options(**given)), port, log, parent))


if __name__ == "__main__":
    main()
