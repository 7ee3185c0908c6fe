"""The plan of an output: its columns, its destination, and checks that it can be written."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import pyarrow as pa

from domyn_swarm.batch.checkpoint.index import RowIndex
from domyn_swarm.batch.checkpoint.job_store import input_key
from domyn_swarm.batch.input.dataset import Dataset
from domyn_swarm.batch.input.file_facts import InputFacts
from domyn_swarm.batch.input.file_systems import is_there, reaching
from domyn_swarm.batch.input.input_files import is_read_of
from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.batch.input.text_dataset import is_csv, row_column_of, text_bytes
from domyn_swarm.batch.outcomes.row_outcomes import ERROR_COLUMN
from domyn_swarm.batch.output.manifest import JobFacts
from domyn_swarm.batch.output.open_types import OpenTypes, for_parquet, typed
from domyn_swarm.batch.output.output_files import KIND_OF_SUFFIX, Place, Writer, opener_of
from domyn_swarm.batch.output.output_schema import OutputSchema
from domyn_swarm.batch.output.part_writer import LibrarySink, OpenSink, PartWriter, WriteFile
from domyn_swarm.batch.output.remote_output import place_of
from domyn_swarm.batch.output.row_join import KeptColumns, OutputRows
from domyn_swarm.batch.output.text_forms import FORMS, JsonLines, TextForm
from domyn_swarm.errors import InvalidInput
from domyn_swarm.logs import get_logger

_log = get_logger(__name__)

_SAMPLED = 16  # rows that are written in the check before the first request

OutputMode = Literal["append", "replace", "io_only"]


@dataclass(frozen=True)
class OutputPlan:
    """The columns of the output, its destination, and the job's facts for its manifest."""

    target: str  # a path or URL
    mode: OutputMode
    keys: RowKeys
    schema: OutputSchema
    job: JobFacts
    input_path: str
    sharded: bool = False  # a folder of files instead of one
    write: WriteFile | None = None  # a library's writer for each file; None: the default
    lines: TextForm | None = None  # the job's form of JSON Lines; None: an object of the columns
    infer_types: bool = False  # of kept cells of CSV
    recursive: bool = False  # whether the sub-folders of the input are read
    overwrite: bool = False  # also the output of another job, or of this job with another input
    facts: InputFacts = field(default_factory=InputFacts)  # of existing files

    @property
    def place(self) -> Place:
        """The location of the files."""
        job, overwrite = self.job, self.overwrite
        writer = Writer(job.identity, self.input_path, overwrite, job.identity_fields)
        return place_of(self.target, sharded=self.sharded, writer=writer, facts=self.facts)

    @property
    def _first_file(self) -> str:
        """One of the files, as an input file."""
        return f"{self.target.rstrip('/')}/part-00000.parquet" if self.sharded else self.target

    @property
    def kind(self) -> str:
        """The kind of the files, by their name; empty if unknown."""
        suffix = PurePosixPath(self.target).suffix.lower()
        return "parquet" if self.sharded else KIND_OF_SUFFIX.get(suffix, "")

    def form(self, dataset: Dataset) -> TextForm | None:
        """The form of the files' text; None for Parquet."""
        if self.kind != "jsonl":
            return FORMS.get(self.kind)
        return self.lines or JsonLines(row_column_of(dataset))

    def open_sink(self, dataset: Dataset) -> OpenSink:
        """The writer for each file."""
        if self.write is None:
            return opener_of(self.kind, self.form(dataset))
        return functools.partial(LibrarySink, self.write)

    def kept(self, dataset: Dataset) -> KeptColumns:
        """The input columns that the output keeps, in the input's order, as its files have them."""
        as_rows = self.kind == "jsonl" and self.lines is None
        return KeptColumns(dataset, self._kept_names(dataset), as_rows=as_rows)

    def kept_columns(self, dataset: Dataset) -> KeptColumns:
        """As `kept`, with each column separate."""
        return KeptColumns(dataset, self._kept_names(dataset), as_rows=False)

    def _kept_names(self, dataset: Dataset, mode: OutputMode | None = None) -> list[str]:
        inputs = set(self.keys.input_columns)
        names = dataset.schema.names
        mode = mode or self.mode
        if mode == "append":
            return list(names)
        if mode == "replace":
            return [name for name in names if name not in inputs]
        return [name for name in names if name in inputs or name == self.keys.id_column]

    def rows(self, dataset: Dataset, index: RowIndex, limit: int | None) -> OutputRows:
        """The rows that have a result, as in the files but for open types."""
        kept = self.kept(dataset)
        cells = kept.columns if self.infer_types else []
        text = [name for name in cells if dataset.schema.field(name).type == pa.string()]
        return OutputRows(dataset, self.keys, kept, self.schema, index, limit, text)

    def check(self, dataset: Dataset, limit: int | None = None, *, begun: bool = False) -> None:
        """Refuse an output that cannot be written, before the first request. `begun`: the job has
        been submitted before, and has answers that were paid for.

        Raises:
            InvalidInput: an output column has the name of a kept input column, the path's kind is
                not supported, its writer does not support the columns, or there is no room.
            OutputExists: a file of another owner is at the path, or this job's output of another
                input.
        """
        if not self.kind:
            raise InvalidInput(
                f"The output {self.target} cannot be written: its name says no kind of file.",
                hint=f"Give --output a path that ends in one of {', '.join(KIND_OF_SUFFIX)}, or "
                "write a folder of shards with --shard-output.",
            )
        if input_key(self.target) == input_key(self.input_path):
            raise InvalidInput(
                f"The output {self.target} is the input itself.",
                hint="Choose another --output: its columns are the input's and the answers.",
            )
        if is_read_of(self.input_path, self._first_file, recursive=self.recursive):
            self._check_inside(begun=begun)
        if self.infer_types and not (self.has_types and is_csv(dataset)):
            raise InvalidInput(
                "--infer-types is for CSV that becomes Parquet.",
                hint="Leave it out, or name the output .parquet.",
            )
        self.check_names(dataset)
        self.place.check(self._least_bytes(dataset, limit))
        self._try_writing(dataset)

    def _check_inside(self, *, begun: bool) -> None:
        """Refuse an output that lies in the input. As long as it is not written, a job that earlier
        versions took may go on: its rows are those that it began with.
        """
        reason = f"The output {self.target} lies in the input {self.input_path}: its rows "
        if not begun:
            raise InvalidInput(
                f"{reason}would be asked by the next run.", hint="Choose another folder for it."
            )
        if _is_written(self._first_file):
            raise InvalidInput(
                f"{reason}would be asked, too.",
                hint="Move it to another folder, with its manifest.",
            )
        _log.warning("%swill be asked by the next run: move it to another folder then", reason)

    def check_names(self, dataset: Dataset) -> None:
        """Refuse duplicate columns.

        Raises:
            InvalidInput: an output column has the name of a kept input column.
        """
        kept = self._kept_names(dataset)
        answers = {*self.schema.names, ERROR_COLUMN}
        if taken := sorted(answers & {*kept}):
            modes: tuple[OutputMode, ...] = ("replace", "io_only")
            free = [one for one in modes if not answers & {*self._kept_names(dataset, one)}]
            ways = [f"leave it out with --output-mode {one}" for one in free[:1]]
            if ERROR_COLUMN not in taken:
                ways.append("choose another name with --output-column")
            ways.append("rename it in the input")
            raise InvalidInput(
                f"The output columns {taken} are already in the input.",
                hint=f"{', or '.join(ways)}.".capitalize(),
            )
        twice = [name for name, times in Counter(kept).items() if times > 1]
        if twice:
            raise InvalidInput(
                f"The input has the column {twice[0]!r} more than once.", hint="Rename one of them."
            )

    def _least_bytes(self, dataset: Dataset, limit: int | None) -> int:
        """The least size of text that keeps all text of the input; 0 for other outputs."""
        if self.has_types or self.mode != "append" or not dataset.rows:
            return 0
        rows = dataset.rows if limit is None else min(limit, dataset.rows)
        return text_bytes(dataset) * rows // dataset.rows

    def _try_writing(self, dataset: Dataset) -> None:
        """Write a file with the first rows of the input, with the same writer as the output."""
        kept = self.kept(dataset)
        answers = {name: kind for name, kind in self.schema.arrow.items() if kind is not None}
        fields = [*kept.fields, *(pa.field(name, kind) for name, kind in answers.items())]
        sample = [
            [*kept.of(batch), *(pa.nulls(batch.num_rows, kind) for kind in answers.values())]
            for batch in dataset.batches(kept.columns, limit=_SAMPLED)
        ]
        with tempfile.TemporaryDirectory(prefix="domyn-swarm-") as folder:

            def failure(ats: Sequence[int]) -> InvalidInput | None:
                some = [[columns[at] for at in ats] for columns in sample]
                return self._failure(dataset, Path(folder), [fields[at] for at in ats], some)

            why = failure(range(len(fields)))
            if why is None:
                return
            odd = [at for at in range(len(fields)) if failure([at]) is not None]
        if len(odd) == len(fields):
            raise why
        raise InvalidInput(
            f"The column {fields[odd[0]].name!r} ({fields[odd[0]].type}) cannot be written to "
            f"{self.target}: {why.message}",
            hint="Leave it out (--output-mode), convert it, or choose another form.",
        )

    def _failure(
        self,
        dataset: Dataset,
        folder: Path,
        fields: Sequence[pa.Field],
        sample: Sequence[Sequence[pa.Array]],
    ) -> InvalidInput | None:
        """Why some columns cannot be written; None: they can."""
        raw = pa.schema(fields)
        batches = [pa.RecordBatch.from_arrays(columns, schema=raw) for columns in sample if columns]
        types = OpenTypes([name for name in self.kept(dataset).open if name in raw.names])
        for batch in batches:
            types.look(batch)
        schema, _ = self.typed_schema(raw, types)
        name = f"sample.{self.kind}"
        try:
            with PartWriter(
                folder, schema, lambda _: name, open_sink=self.open_sink(dataset)
            ) as writer:
                for batch in batches:
                    writer.write(typed(batch, schema))
                writer.finish()
        except InvalidInput as error:
            return error
        except Exception as error:  # noqa: BLE001 - a library's, about columns of any type
            reason = (str(error) or type(error).__name__).splitlines()[0]
            return InvalidInput(f"{self.target} cannot be written: {reason}")
        return None

    @property
    def has_types(self) -> bool:
        """Whether the files have types; text has none."""
        return self.kind == "parquet"

    def typed_schema(self, raw: pa.Schema, types: OpenTypes) -> tuple[pa.Schema, dict[str, str]]:
        """The columns with their types in the files; and why some of them are JSON text."""
        if not self.has_types:
            return raw, {}
        schema, reasons = for_parquet(types.settled(raw))
        return schema, {**types.reasons, **reasons}


def _is_written(file: str) -> bool:
    """Whether there is a file, here or behind a URL."""
    if "://" not in file:
        return Path(file).exists()
    with reaching(file) as (system, path):
        return is_there(system, path, file.partition("://")[0])
