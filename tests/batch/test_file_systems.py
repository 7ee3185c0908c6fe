"""Errors of file systems behind URLs, as users see them."""

from __future__ import annotations

import pytest

from domyn_swarm.batch.input.file_systems import reaching
from domyn_swarm.errors import InvalidInput, OutputExists


class NoCredentials(Exception):
    """As libraries of stores have them: derived from nothing else."""


NoCredentials.__module__ = "botocore.exceptions"


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("no such bucket"),
        PermissionError("Access Denied"),
        TimeoutError(),
        NoCredentials("Unable to locate credentials"),
    ],
)
def test_what_a_file_system_says_is_about_addresses_and_credentials(error: Exception) -> None:
    with pytest.raises(InvalidInput, match="memory://bucket/x cannot be reached") as told:  # noqa: SIM117
        with reaching("memory://bucket/x"):
            raise error
    assert "credentials" in told.value.hint


@pytest.mark.parametrize(
    "error",
    [
        TypeError("a bug"),
        KeyError("name"),
        ValueError("a bug"),
        AssertionError(),
        OutputExists("x"),
    ],
)
def test_what_else_goes_wrong_is_told_as_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as told, reaching("memory://bucket/x"):
        raise error
    assert told.value is error


def test_what_is_wrong_with_the_url_itself() -> None:
    with pytest.raises(InvalidInput, match="nosuch://x"), reaching("nosuch://x"):
        pass
    with pytest.raises(InvalidInput) as told, reaching("abfs://x/y"):
        pass
    assert "pip install adlfs" in told.value.hint
