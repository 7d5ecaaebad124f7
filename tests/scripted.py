"""Chat completions for tests: what is asked, and a server that answers as it is told to."""

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import yaml
from aiohttp import web

from pipeline.config import validate
from pipeline.prompts.requests import make_request
from pipeline.prompts.schemas import array, record, text
from pipeline.records import Message, Seed
from pipeline.teachers.openai import OpenAITeacher
from pipeline.teachers.openai_config import OpenAIConfig
from tests.conftest import PROJECT
from tests.endpoint import key_prompt

KEY = "sk-verySecret/0123456789"
SCHEMA = record(answer=text(40), parts=array(text(9), 2))


def read_conf(name: str) -> dict:
    return yaml.safe_load((PROJECT / "conf" / f"{name}.yaml").read_text())


BASE = read_conf("teacher/openai")


def configure(base_url="http://localhost:1/v1", **changes) -> OpenAIConfig:
    return validate(OpenAIConfig, {**BASE, "base_url": base_url, "model": "sample", **changes})


def request_for(topic="bikes", schema=SCHEMA, choices=()):
    messages = (Message("system", "Reply in JSON."), Message("user", f"About {topic}"))
    teacher = {"model": "sample"}
    seed = Seed(topic, topic, topic)
    return make_request(
        seed, (), messages, None if choices else schema, choices=choices, temperature=0.7, top_p=0.9, teacher=teacher,
        run_seed=1,
    )  # fmt: skip


def answer(content="{}", finish_reason="stop", status=200, usage=None, logprobs=None, **message) -> web.Response:
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish_reason}
    body = {
        "choices": [choice | {"logprobs": logprobs}],
        "usage": usage or {"prompt_tokens": 7, "completion_tokens": 3},
    }
    return web.json_response(body, status=status)


def refuse(status, message="no", code="some_code", **headers) -> web.Response:
    return web.json_response({"error": {"message": message, "code": code}}, status=status, headers=headers)


LOST = "the connection is closed without an answer"
STALLED = "no answer comes"


@dataclass
class Scripted:
    """A server that gives its answers one after the other, the last one for ever, and keeps what it was sent."""

    answers: list
    base_url: str = ""
    bodies: list[dict] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    async def handle(self, request: web.Request):
        self.times.append(time.monotonic())
        self.keys.append(request.headers.get("Authorization"))
        self.bodies.append(await request.json())
        given = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if given == LOST:
            request.transport.close()
            return web.Response()
        if given == STALLED:
            await asyncio.sleep(3600)
        return web.Response(status=given.status, body=given.body, headers=given.headers)

    @asynccontextmanager
    async def run(self):
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield self
        await runner.cleanup()


def ask(answers, request=None, attempt=1, **changes):
    """Return what one request comes to at a server that gives these answers, and the server."""
    server = Scripted(answers)

    async def run():
        async with server.run():
            teacher = OpenAITeacher(configure(server.base_url, **changes), 1.0)
            try:
                return await teacher.complete(request or request_for(), attempt)
            finally:
                await teacher.close()

    return asyncio.run(run()), server


def walk_chain(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def complete_at(base_url, requests, **changes):
    async def run():
        teacher = OpenAITeacher(configure(base_url, **changes), 1.0)
        try:
            return await asyncio.gather(*(teacher.complete(request, 1) for request in requests))
        finally:
            await teacher.close()

    return asyncio.run(run())


def key_of(request) -> str:
    return key_prompt([{"role": m.role, "content": m.content} for m in request.messages])
