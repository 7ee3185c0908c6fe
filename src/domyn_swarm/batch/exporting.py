"""Results as a file of another kind: Parquet, JSON Lines or CSV, whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from domyn_swarm.batch.open_types import for_parquet, typed
from domyn_swarm.batch.output_files import KIND_OF_SUFFIX, opener_of, written_whole
from domyn_swarm.batch.part_writer import PartWriter
from domyn_swarm.batch.results import Results
from domyn_swarm.errors import ConfigError


def check_export(path: Path, taken: Sequence[Path] = ()) -> None:
    """Refuse a file of a kind that cannot be written, and one that would replace the job's own.

    Raises:
        ConfigError: names the kinds, or what the path belongs to.
    """
    if path.suffix.lower() not in KIND_OF_SUFFIX:
        raise ConfigError(
            f"{path} cannot be written: its name says no kind of file.",
            hint=f"Give a name that ends in one of {', '.join(KIND_OF_SUFFIX)}.",
        )
    for one in taken:
        if path.resolve().is_relative_to(one.resolve()):
            raise ConfigError(
                f"{path} belongs to the job's own input or output, {one}.",
                hint="Export to another place.",
            )


def export(results: Results, path: Path) -> None:
    """Write results to a file by its suffix (see `check_export`); one that is there is replaced.

    What Parquet has no type for is JSON text there; so no type is a reason to fail.

    Raises:
        JobError: it cannot be written; nothing of it is left.
    """
    kind = KIND_OF_SUFFIX[path.suffix.lower()]
    schema = for_parquet(results.schema)[0] if kind == "parquet" else results.raw
    # Without the metadata that makes a file a job's output: an export may not be replaced by one.
    schema = schema.remove_metadata()
    with (
        written_whole(path) as temporary,
        PartWriter(
            path.parent, schema, lambda _: temporary.name, open_sink=opener_of(kind)
        ) as writer,
    ):
        for batch in results.untyped():
            writer.write(typed(batch.replace_schema_metadata(None), schema))
        writer.finish()
