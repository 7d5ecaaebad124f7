"""Completions of many at a time: as columns, which is how segments hold them, and as records, each counted once."""

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from pipeline.records import SCHEMAS, Completion, Outcome


def as_completions(table: pa.Table) -> pa.Table:
    """Return a segment's table with the columns of today's schema, as far as it has them.

    Raises:
        ValueError: Neither this version nor an older or newer one wrote it.
    """
    schema = SCHEMAS[Completion]
    missing = set(schema.names) - set(table.column_names)
    # An older version knew fewer columns, a newer one knows more; one with both was written by none.
    if missing & _REQUIRED or (missing and set(table.column_names) - set(schema.names)):
        raise ValueError(f"it has the columns {', '.join(table.column_names)}, not those of a completion")
    for wanted in schema:
        if wanted.name in missing:
            column = pa.array([_DEFAULTS[wanted.name]] * table.num_rows, wanted.type)
            table = table.append_column(wanted.name, column)
        elif table.schema.field(wanted.name).type != wanted.type:
            raise ValueError(f"its column {wanted.name} is no {wanted.type}")
    return table.select(schema.names).cast(schema)


_DEFAULTS = {
    f.name: f.default if f.default_factory is MISSING else f.default_factory()
    for f in fields(Completion)
    if (f.default, f.default_factory) != (MISSING, MISSING)
}
_REQUIRED = {f.name for f in fields(Completion)} - {*_DEFAULTS}


@dataclass
class Gathered:
    """Tables that are worked on together once they are large enough."""

    tables: list[pa.Table] = field(default_factory=list)
    n_rows: int = 0

    def add(self, table: pa.Table) -> None:
        """Put a table to the others."""
        self.tables.append(table)
        self.n_rows += table.num_rows

    def take(self) -> pa.Table:
        """Return what has gathered as one table, and begin anew."""
        table = pa.concat_tables([SCHEMAS[Completion].empty_table(), *self.tables])
        self.tables, self.n_rows = [], 0
        return table


@dataclass
class Packed:
    """Completions that are compressed until they are wanted, to less than half even where texts are noise."""

    _parts: list[bytes] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, table: pa.Table) -> None:
        """Put a table to the others, unless it is empty."""
        if table.num_rows:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
                writer.write_table(table.combine_chunks())
            self._parts.append(sink.getvalue().to_pybytes())

    def read(self) -> pa.Table:
        """Return all as one table."""
        tables = [pa.ipc.open_stream(part).read_all() for part in self._parts]
        return pa.concat_tables([SCHEMAS[Completion].empty_table(), *tables])


def drop_repeats(table: pa.Table) -> pa.Table:
    """Return the rows of completions that `unique` would keep, in its order."""
    order = [(name, "ascending") for name in ("started_at", "request_id", "attempt")]
    table = table.take(pc.sort_indices(table, sort_keys=order))
    failed_at = pc.if_else(pc.is_in(table["outcome"], pa.array(_ANSWERS)), 0.0, table["started_at"])
    keys = table.select(["request_id", "attempt"]).append_column("failed_at", failed_at)
    firsts = keys.append_column("row", pa.array(range(table.num_rows))).group_by(keys.column_names)
    return table.take(firsts.aggregate([("row", "min")])["row_min"].sort())


_ANSWERS = [outcome.value for outcome in Outcome if outcome.is_answer]


def unique(completions: Iterable[Completion]) -> list[Completion]:
    """Return each completion once, in the order in which they were asked."""
    by_key = {
        (c.request_id, c.attempt, 0.0 if c.outcome.is_answer else c.started_at): c
        for c in sorted(completions, key=lambda c: (c.started_at, c.request_id), reverse=True)
    }
    return sorted(by_key.values(), key=lambda c: (c.started_at, c.request_id, c.attempt))


def group_by_request(completions: Iterable[Completion]) -> dict[str, list[Completion]]:
    """Return completions by request, each request's as `sort_history` has them."""
    groups: dict[str, list[Completion]] = {}
    for completion in completions:
        groups.setdefault(completion.request_id, []).append(completion)
    return {i: sort_history(group) if len(group) > 1 else group for i, group in groups.items()}


def sort_history(completions: Iterable[Completion]) -> list[Completion]:
    """Return one request's completions, each once, in the order of attempts and tries."""
    return sorted(unique(completions), key=lambda c: (c.attempt, c.started_at))
