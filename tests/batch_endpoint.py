"""The endpoint of the tests with OpenAI's Batch API beside: files, batches, rows that fail or never end.

`python -m tests.batch_endpoint` serves until it is stopped; tests use `serve_batches`. What a row comes to is drawn
like the fault of a request that is sent by itself: `stall` never ends, so its batch expires; other faults stand in the
error file. The log has, besides the lines of `tests.endpoint`, one for each call: `{"call": …, "id": …}`.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.endpoint import Endpoint, Options, Served, key_prompt, main, serve

STAGES = ("upload", "uploaded", "create", "created", "poll", "download")
"""Where the first call of a kind can be held: before and after a file is kept, before and after a batch is, …"""


@dataclass(frozen=True)
class BatchOptions(Options):
    """How batches behave."""

    batch_s: float = 0.1
    """From a batch's creation to its end."""
    hold: str = ""
    """One of `STAGES`: the first call that comes there gets no answer."""
    not_taken: int = 0
    """So many batches fail because too much waits already."""
    bad_word: str = ""
    """A batch with this word in one of its rows fails, and that row is blamed."""
    cancel_first: int = 0
    """1: the first batch is cancelled by somebody, half done."""
    lose_created: int = 0
    """So many answers to the creation of a batch get lost."""


class BatchEndpoint(Endpoint):
    """Answers rows of files as it answers requests."""

    def __init__(self, options: BatchOptions, log: Any) -> None:
        super().__init__(options, log)
        self._settings = options
        self._files: dict[str, tuple[str, bytes]] = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self._calls: Counter[str] = Counter()

    def make_app(self) -> web.Application:
        app = super().make_app()
        app.router.add_post("/v1/files", self._upload)
        app.router.add_get("/v1/files", self._list_files)
        app.router.add_get("/v1/files/{id}/content", self._download)
        app.router.add_post("/v1/batches", self._create)
        app.router.add_get("/v1/batches", self._list_batches)
        app.router.add_get("/v1/batches/{id}", self._retrieve)
        return app

    async def _pass(self, stage: str, id_: str = "") -> None:
        """Log that a call has come to a stage; hold the first one if that is asked for."""
        self._calls[stage] += 1
        self._log.write(json.dumps({"call": stage, "id": id_, "at": time.time()}) + "\n")
        self._log.flush()
        if stage == self._settings.hold and self._calls[stage] == 1:
            await asyncio.sleep(1e9)

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["purpose"] == "batch"
        await self._pass("upload")
        name, content = form["file"].filename, form["file"].file.read()
        id_ = self._keep(name, content)
        await self._pass("uploaded", id_)
        return web.json_response({"id": id_, "object": "file", "filename": name, "bytes": len(content)})

    def _keep(self, name: str, content: bytes) -> str:
        id_ = f"file-{len(self._files) + 1}"
        self._files[id_] = (name, content)
        return id_

    async def _list_files(self, request: web.Request) -> web.Response:
        return self._list(request, [{"id": id_, "filename": name} for id_, (name, _) in self._files.items()])

    async def _list_batches(self, request: web.Request) -> web.Response:
        return self._list(request, [self._show(id_) for id_ in self._batches])

    def _list(self, request: web.Request, found: list[dict[str, Any]]) -> web.Response:
        """Answer with a page of two, newest first, whatever is asked for, so that every list has pages."""
        found = found[::-1]
        after = request.query.get("after")
        start = next((n for n, item in enumerate(found, start=1) if item["id"] == after), 0)
        page = found[start : start + 2]
        return web.json_response({"object": "list", "data": page, "has_more": start + 2 < len(found)})

    async def _download(self, request: web.Request) -> web.Response:
        await self._pass("download", request.match_info["id"])
        return web.Response(body=self._files[request.match_info["id"]][1])

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        await self._pass("create")
        if body["input_file_id"] not in self._files:
            return web.json_response({"error": {"message": "no such file"}}, status=400)
        id_ = f"batch-{len(self._batches) + 1}"
        rows = [json.loads(line) for line in self._files[body["input_file_id"]][1].splitlines()]
        assert all(row["url"] == body["endpoint"] and row["method"] == "POST" for row in rows)
        assert len({row["custom_id"] for row in rows}) == len(rows)
        faults = self._find_faults(rows)
        self._batches[id_] = {**body, "id": id_, "created_at": time.time(), "rows": rows, "faults": faults}
        if not faults:
            self._ask_rows(id_, request.headers.get("Authorization", ""))
        await self._pass("created", id_)
        if self._calls["created"] <= self._settings.lose_created:
            request.transport.close()
        return web.json_response(self._show(id_))

    def _find_faults(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if len(self._batches) < self._settings.not_taken:
            return [{"code": "token_limit_exceeded", "message": "too much waits", "line": None}]
        bad = self._settings.bad_word
        lines = [n for n, row in enumerate(rows, start=1) if bad and bad in json.dumps(row["body"])]
        return [{"code": "invalid_request", "message": f"no {bad} here", "line": line} for line in lines]

    def _ask_rows(self, id_: str, key: str) -> None:
        """Answer all rows of a batch at once; who asks sees them when the batch has ended."""
        batch, output, errors = self._batches[id_], [], []
        is_cancelled = bool(self._settings.cancel_first) and len(self._batches) == 1
        rows = batch["rows"][: len(batch["rows"]) // 2] if is_cancelled else batch["rows"]
        batch["end"] = "cancelled" if is_cancelled else "completed"
        for row in rows:
            prompt = key_prompt(row["body"]["messages"])
            kind = self._draw(prompt)
            self._write_line(prompt, self._counts[prompt], kind, finished=kind != "stall")
            if kind == "stall":
                batch["end"] = "expired"
                error = {"code": "batch_expired", "message": "not executed in time"}
                errors.append({"custom_id": row["custom_id"], "response": None, "error": error})
                continue
            answer = self._answer(row["body"], prompt, kind, key)
            result = {
                "custom_id": row["custom_id"],
                "response": {"status_code": answer.status, "body": json.loads(answer.body)},
                "error": None,
            }
            (output if answer.status == 200 else errors).append(result)
        for name, found in (("output_file_id", output), ("error_file_id", errors)):
            lines = "".join(json.dumps(result) + "\n" for result in found)
            batch[name] = self._keep(f"{id_}.jsonl", lines.encode()) if found else None

    async def _retrieve(self, request: web.Request) -> web.Response:
        id_ = request.match_info["id"]
        if id_ not in self._batches:
            return web.json_response({"error": {"message": "no such batch"}}, status=404)
        await self._pass("poll", id_)
        return web.json_response(self._show(id_))

    def _show(self, id_: str) -> Mapping[str, Any]:
        batch = self._batches[id_]
        shown = {key: batch[key] for key in ("id", "input_file_id", "endpoint", "metadata", "created_at")}
        if batch["faults"]:
            return shown | {"status": "failed", "errors": {"object": "list", "data": batch["faults"]}}
        ended_at = batch["created_at"] + self._settings.batch_s
        if time.time() < ended_at:
            share = 1 - (ended_at - time.time()) / self._settings.batch_s
            counts = {"total": len(batch["rows"]), "completed": int(share * len(batch["rows"])), "failed": 0}
            no_files = {"output_file_id": None, "error_file_id": None}
            return shown | no_files | {"status": "in_progress", "request_counts": counts}
        files = {name: batch[name] for name in ("output_file_id", "error_file_id")}
        return shown | files | {"status": batch["end"], f"{batch['end']}_at": ended_at}


@contextmanager
def serve_batches(**options: Any) -> Iterator[Served]:
    """Run an endpoint with batches in a process of its own until the block ends; options as in `BatchOptions`."""
    with serve(module="tests.batch_endpoint", make_options=BatchOptions, **options) as served:
        yield served


if __name__ == "__main__":
    main(BatchOptions, BatchEndpoint)
