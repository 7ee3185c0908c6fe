"""Files of an output, opened to be compared with the input."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pyarrow as pa

from domyn_swarm.batch.dataset import Dataset
from domyn_swarm.batch.input_files import InputFile
from domyn_swarm.batch.parquet_dataset import ParquetDataset
from domyn_swarm.batch.text_dataset import TextDataset
from domyn_swarm.batch.text_forms import TextForm
from domyn_swarm.errors import InvalidInput


def opened_output(
    names: Sequence[str], files: Sequence[InputFile], form: TextForm | None
) -> Dataset:
    """The rows of files; those of text with every value as its text (see `TextForm.read`).

    Raises:
        InvalidInput: one of them is damaged, or has other columns than `names`.
    """
    if form is None:
        return ParquetDataset(files)

    def read(file: InputFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            with contextlib.closing(file.open()) as opened:
                for batch in form.read(opened, names):
                    yield batch.select(list(columns))
        except (ValueError, pa.ArrowException) as error:
            raise InvalidInput(f"{file} cannot be read: {error}.") from error

    rows = [sum(part.num_rows for part in read(file, names)) for file in files]
    schema = pa.schema([(name, pa.string()) for name in names])
    return TextDataset(files, schema, rows, read)
