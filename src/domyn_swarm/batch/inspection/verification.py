"""Verifies an output: its files against its manifest, its rows against the input.

Everything is read once, a batch at a time. The quality of answers is not examined.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from domyn_swarm.batch.column_values import flags, python_values, without_nulls
from domyn_swarm.batch.input.dataset import Dataset
from domyn_swarm.batch.input.input_files import InputFile
from domyn_swarm.batch.outcomes.row_outcomes import ERROR_COLUMN
from domyn_swarm.batch.output.manifest import Manifest, OutputFile
from domyn_swarm.batch.output.open_types import typed_column
from domyn_swarm.batch.output.output_files import Place
from domyn_swarm.batch.output.publish import columns_of
from domyn_swarm.batch.output.row_join import without_answer
from domyn_swarm.batch.output.text_forms import opened_output
from domyn_swarm.batch.run.engine import BatchPlan
from domyn_swarm.errors import InvalidInput, JobError, quantity
from domyn_swarm.model import Record

MOST_FINDINGS = 20


class OutputVerification(Record):
    """The extent of a verification, and all errors that it detected."""

    schema_version: Literal[1] = 1
    job_id: str
    written_by: str  # the last job that wrote the output: the same job, or one that continued it
    output: str
    whole: bool
    files: int
    bytes: int
    rows: int  # rows in the files
    rows_failed: int
    columns_compared: tuple[str, ...]  # compared with the input, value by value
    findings: tuple[str, ...] = ()  # the first findings
    findings_left_out: int = 0


def verify(plan: BatchPlan) -> OutputVerification:
    """Check an output against its manifest and its input.

    Raises:
        JobError: there is no manifest.
    """
    place = plan.output.place
    manifest = place.manifest()
    if manifest is None:
        raise JobError(
            f"There is no manifest {place.names[1]} of {plan.output.target}.",
            hint="The job has not written its output yet, or the manifest was moved away.",
        )
    check = _Check(plan, manifest, place)
    check.run()
    findings = check.findings
    return OutputVerification(
        job_id=plan.output.job.id,
        written_by=manifest.job.id,
        output=plan.output.target,
        whole=not findings,
        files=len(manifest.files),
        bytes=sum(file.bytes for file in manifest.files),
        rows=check.rows,
        rows_failed=check.failed,
        columns_compared=tuple(check.compared),
        findings=tuple(findings[:MOST_FINDINGS]),
        findings_left_out=max(0, len(findings) - MOST_FINDINGS),
    )


class _Check:
    """One verification of one output."""

    def __init__(self, plan: BatchPlan, manifest: Manifest, place: Place) -> None:
        self.findings: list[str] = []
        self.rows = 0
        self.failed = 0
        self.compared: list[str] = []
        self._plan = plan
        self._manifest = manifest
        self._place = place
        self._files = place.files(manifest)
        self._form = plan.output.form(plan.dataset)
        output = dataclasses.replace(plan.output, mode=manifest.output_mode)
        self._kept = output.kept(plan.dataset)
        self._as_rows = self._kept.columns != self._kept.names
        self._differing: dict[str, tuple[int, int]] = {}  # column: first row, number of rows

    def run(self) -> None:
        """Check everything, from the outside in; unreadable parts are not checked further."""
        self._check_origin()
        if self.findings:
            return
        self._check_input()
        self.findings += [
            f"{name} is not one of the output's files."
            for name in self._place.surplus(self._manifest)
        ]
        seen = [
            self._check_file(listed, file)
            for listed, file in zip(self._manifest.files, self._files, strict=True)
        ]
        if not all(seen):
            return
        try:
            self._check_rows(opened_output(self._names, self._files, self._form))
        except InvalidInput as error:
            self.findings.append(error.message)
        except (pa.ArrowException, OSError) as error:
            self.findings.append(f"The output cannot be read: {str(error).splitlines()[0]}")

    @property
    def _names(self) -> list[str]:
        """The output's columns, as its form reads them."""
        names = [column.name for column in self._manifest.columns]
        if not self._as_rows:
            return names
        answers = {*self._plan.output.schema.names, ERROR_COLUMN}
        return [*self._kept.columns, *(name for name in names if name in answers)]

    def _check_origin(self) -> None:
        manifest, plan = self._manifest, self._plan
        if manifest.job.identity != plan.identity.digest:
            self.findings.append(
                f"The output is of another job: {manifest.job.id} ({manifest.job.name})."
            )
        if manifest.input.path != plan.output.input_path:
            self.findings.append(
                f"The output is of another input, {manifest.input.path}: the job "
                f"{manifest.job.id} replaced it."
            )

    def _check_input(self) -> None:
        manifest, plan = self._manifest, self._plan
        if manifest.input.rows != plan.dataset.rows:
            self.findings.append(
                f"The input has {quantity(plan.dataset.rows, 'row')}; it had {manifest.input.rows} "
                "when the output was written."
            )

    def _check_file(self, listed: OutputFile, file: InputFile) -> bool:
        """Whether it exists and can be checked further, changed or not."""
        try:
            size = file.size()
            digest = self._plan.output.facts.digest(file) if size == listed.bytes else ""
        except OSError as error:
            self.findings.append(f"{listed.name} cannot be read: {error.strerror or error}.")
            return False
        if size != listed.bytes:
            self.findings.append(
                f"{listed.name} has {quantity(size, 'byte')} instead of {listed.bytes}."
            )
        elif digest != listed.sha256:
            self.findings.append(f"{listed.name} has changed since it was written: its checksum.")
        return True

    def _check_rows(self, written: Dataset) -> None:
        self._check_columns(written)
        self._check_counts(written)
        there = written.schema.names
        compared = [name for name in self._kept.columns if name in there]
        self.findings += [
            f"The column {name!r} is missing." for name in self._kept.columns if name not in there
        ]
        self.compared = self._kept.names if self._as_rows else compared
        if compared:
            self._compare(compared, written)

    def _check_columns(self, written: Dataset) -> None:
        found = [(one.name, one.type) for one in columns_of(written.schema)]
        expected = [(one.name, one.type) for one in self._manifest.columns]
        if self._form is None and found != expected:  # text has no types, and names are compared
            self.findings.append(
                f"The columns are {_listed(found)} instead of {_listed(expected)}."
            )
        for listed, file in zip(self._manifest.files, self._files, strict=True):
            rows = opened_output(self._names, [file], self._form).rows
            if rows != listed.rows:
                there = quantity(rows, "row")
                self.findings.append(f"{listed.name} has {there} instead of {listed.rows}.")

    def _check_counts(self, written: Dataset) -> None:
        """Rows without an answer have an error, and their number is that of the manifest."""
        manifest = self._manifest
        self.rows = written.rows
        expected = _at_most(self._plan.dataset.rows, manifest.limit)
        if self.rows != expected:
            rows = quantity(self.rows, "row")
            self.findings.append(f"The output has {rows} for {expected} of the input.")
        if manifest.rows != self.rows:
            there = f"{self.rows} {'is' if self.rows == 1 else 'are'}"
            self.findings.append(
                f"The manifest counts {quantity(manifest.rows, 'row')}; {there} there."
            )
        answers = [name for name in self._plan.output.schema.names if name in written.schema.names]
        if not answers:
            return
        errors_told = [ERROR_COLUMN] if ERROR_COLUMN in written.schema.names else []
        empty = both = 0
        for batch in written.batches([*answers, *errors_told]):
            nothing = without_answer(batch, answers)
            failed = ~without_answer(batch, errors_told) if errors_told else np.zeros_like(nothing)
            self.failed += int(failed.sum())
            empty += int((nothing & ~failed).sum())
            both += int((failed & ~nothing).sum())
        if both:
            rows = quantity(both, "row carries", "rows carry")
            self.findings.append(f"{rows} an answer and an error.")
        if self.failed != manifest.rows_failed:
            self.findings.append(
                f"{quantity(self.failed, 'row carries', 'rows carry')} an error; the manifest "
                f"counts {manifest.rows_failed}."
            )
        if empty != manifest.rows_empty:
            self.findings.append(
                f"{quantity(empty, 'row has', 'rows have')} neither an answer nor an error; the "
                f"manifest counts {manifest.rows_empty} that were answered with nothing."
            )

    def _compare(self, names: Sequence[str], written: Dataset) -> None:
        schema = pa.schema(self._kept.fields)
        given = (
            pa.RecordBatch.from_arrays(self._kept.of(batch), schema=schema)
            for batch in self._plan.dataset.batches(self._kept.columns, limit=self._manifest.limit)
        )
        start = 0
        for batch, outputs in _side_by_side(given, written.batches(names)):
            inputs = batch if self._form is None else self._form.formed(batch)
            for name in names:
                rows = differing(inputs.column(name), outputs.column(name))
                if self._plan.output.kind == "jsonl":
                    rows = _other_values(inputs.column(name), outputs.column(name), rows)
                if len(rows):
                    first, count = self._differing.get(name, (start + int(rows[0]), 0))
                    self._differing[name] = first, count + len(rows)
            start += inputs.num_rows
        changed = "rows were changed, dropped or moved in one of the two"
        for name, (first, count) in self._differing.items():
            what = "What the input's rows hold" if self._as_rows else f"Column {name!r}"
            self.findings.append(
                f"{what} is not the input's in {quantity(count, 'row')}, the first at {first}: "
                f"{changed}."
            )


def _at_most(rows: int, limit: int | None) -> int:
    return rows if limit is None else min(rows, limit)


def _listed(columns: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in columns)


def _side_by_side(
    one: Iterator[pa.RecordBatch], other: Iterator[pa.RecordBatch]
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Pieces of two streams with as many rows each, until one of them ends."""
    ours, theirs = next(one, None), next(other, None)
    while ours is not None and theirs is not None:
        rows = min(ours.num_rows, theirs.num_rows)
        yield ours.slice(0, rows), theirs.slice(0, rows)
        ours = ours.slice(rows) if rows < ours.num_rows else next(one, None)
        theirs = theirs.slice(rows) if rows < theirs.num_rows else next(other, None)


def differing(one: pa.Array, other: pa.Array) -> NDArray[np.int64]:
    """The positions at which two columns of one length differ. NaN equals NaN, null equals null.

    The first may be of open type (see `open_types`), and the other of its settled type.
    """
    with contextlib.suppress(pa.ArrowException, TypeError, ValueError, OverflowError):
        one = typed_column(one, other.type)
    if one.type == other.type:
        if one.equals(other):
            return np.empty(0, np.int64)
        try:
            unequal = pc.not_equal(one, other)
        except pa.ArrowNotImplementedError:  # nested
            pass
        else:
            rows = flags(unequal) | (flags(one.is_null()) != flags(other.is_null()))
            if pa.types.is_floating(one.type):
                rows &= ~(flags(pc.is_nan(one)) & flags(pc.is_nan(other)))
            return np.flatnonzero(rows)
    pairs = zip(python_values(one), python_values(other), strict=True)
    return np.flatnonzero([not _same(left, right) for left, right in pairs])


def _other_values(one: pa.Array, other: pa.Array, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of rows whose JSON differs, those whose values do: another library reads rows with nulls for
    the keys of other rows, and with its own types.
    """
    pairs = ((one[at].as_py(), other[at].as_py()) for at in rows.tolist())
    return rows[[not _same(_value(left), _value(right)) for left, right in pairs]]


def _value(text: str | None) -> Any:  # noqa: ANN401 - JSON
    return None if text is None else without_nulls(msgspec.json.decode(text))


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401 - values of a column
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
