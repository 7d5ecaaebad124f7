"""Records to Arrow columns and back, a column at a time: taking rows apart one by one costs many times as much."""

from collections.abc import Sequence
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from itertools import accumulate, chain, pairwise
from typing import Any, TypeVar, get_origin, get_type_hints

import pyarrow as pa
from pydantic import TypeAdapter

R = TypeVar("R")


def write_column(kind: pa.DataType, values: Sequence[Any]) -> pa.Array:
    """Return the values of one field as a column."""
    if pa.types.is_struct(kind):
        fields = [kind.field(place) for place in range(kind.num_fields)]
        columns = [write_column(field.type, [getattr(value, field.name) for value in values]) for field in fields]
        return pa.StructArray.from_arrays(columns, fields=fields)
    if pa.types.is_list(kind):
        ends = pa.array(accumulate(map(len, values), initial=0), pa.int32())
        return pa.ListArray.from_arrays(ends, write_column(kind.value_type, list(chain.from_iterable(values))), kind)
    return pa.array(values, kind)


def read_records(kind: type[R], rows: pa.StructArray) -> list[R]:
    """Return a column of structs as records.

    Args:
        kind: A dataclass.
        rows: With the fields of that class, in order, of the types that its schema says.

    Raises:
        pydantic.ValidationError: A value is missing, or none that its field may have.
    """
    columns = (_read_column(hint, rows.field(place)) for place, hint in enumerate(_hints(kind)))  # type: ignore[arg-type]
    return list(map(kind, *columns))


def _read_column(hint: Any, column: pa.Array) -> list[Any]:
    if column.null_count:
        return _validate(hint, column)
    if is_dataclass(hint) and isinstance(hint, type):
        return read_records(hint, column)
    if get_origin(hint) is tuple:
        flat = _read_column(hint.__args__[0], column.flatten())
        ends = column.offsets.to_numpy()
        return [tuple(flat[start:end]) for start, end in pairwise((ends - ends[0]).tolist())]
    if get_origin(hint) is dict:
        ends = column.offsets
        if ends[0].equals(ends[-1]):  # which most are
            return [{} for _ in range(len(column))]
        return list(column.to_pylist(maps_as_pydicts="strict"))
    if isinstance(hint, type) and not issubclass(hint, Enum):
        return list(column.to_pylist())
    known = {value: _validate(hint, [value])[0] for value in column.unique().to_pylist()}
    return [known[value] for value in column.to_pylist()]


def _validate(hint: Any, values: Any) -> list[Any]:
    """Return values as what a field may have, one by one."""
    adapter = _adapter(hint)
    plain = values.to_pylist(maps_as_pydicts="strict") if isinstance(values, pa.Array) else values
    return [adapter.validate_python(value) for value in plain]


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


@cache
def _hints(kind: type) -> tuple[Any, ...]:
    return tuple(get_type_hints(kind).values())
