"""Parquet files, streamed by row group."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from tunesmith.data.read.batch import Placed, RawBatch
from tunesmith.errors import RowError


@dataclass(frozen=True, slots=True)
class ColumnsBatch:
    """Rows as an Arrow stream; becomes Python objects where it is read."""

    name: str
    first: int
    """Number of the first row, from 1."""
    stream: bytes

    def rows(self) -> Iterator[Placed]:
        """Lists and structs are lists and dicts; null is None."""
        import pyarrow as pa

        with pa.ipc.open_stream(self.stream) as stream:
            rows = stream.read_all().to_pylist()
        for number, row in enumerate(rows, self.first):
            yield f"{self.name}:{number}", row


def read_parquet(file: IO[bytes], name: str, size: int) -> Iterator[RawBatch]:
    """`size` rows at a time; one row group's columns in memory at most."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        twice = sorted({column for column in names if names.count(column) > 1})
        if twice:
            raise RowError(f"{name} has the column {twice[0]!r} twice", where=name, fix="rename one of them")
        first = 1
        for batch in parquet.iter_batches(batch_size=size):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as stream:
                stream.write_batch(batch)
            yield ColumnsBatch(name, first, sink.getvalue().to_pybytes())
            first += batch.num_rows
    except pa.ArrowException as error:
        raise RowError(
            f"{name} is no sound Parquet file: {str(error).splitlines()[0]}",
            where=name,
            fix="write or download it again",
        ) from None
