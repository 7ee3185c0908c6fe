"""A workspace that refuses, is busy, is slow, or talks nonsense; and one that is asked twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from domyn_swarm.backends.lepton import specs
from domyn_swarm.backends.lepton.credentials import Credentials, LaunchedIn, credentials
from domyn_swarm.backends.lepton.lepton_compute import LeptonCompute
from domyn_swarm.backends.lepton.workspace import Workspace
from domyn_swarm.errors import ConfigError, PlatformError, PlatformUnavailable, SubmitRejected
from domyn_swarm.model import JobHandle, JobStatus, utc_now
from lepton.workspace import ID, TOKEN, Fault, StandIn
from patience import limit_s, scaled


def asking(lepton: StandIn, token: str = TOKEN, timeout_s: float | None = None) -> Workspace:
    known = Credentials(workspace_id=ID, url=lepton.url, token=token)
    return Workspace(known, timeout_s=timeout_s or limit_s())


def job_document(name: str = "job-1") -> dict:
    labels = {specs.JOB_LABEL: specs.digest(name)}
    container = {"image": "i", "command": ["python3", "-c", "print('hello')"]}
    return {
        "metadata": {"id": name, "name": name, "labels": labels},
        "spec": {"container": container},
    }


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, PlatformError, "does not accept the token"),
        (403, PlatformError, "does not allow this"),
        (400, SubmitRejected, "HTTP 400"),
        (422, SubmitRejected, "HTTP 422"),
    ],
)
def test_what_is_refused_is_said_at_once(
    lepton: StandIn, status: int, kind: type[PlatformError], said: str
) -> None:
    lepton.faults = [Fault("GET /usersecrets", status, '{"message": "why"}')]
    with pytest.raises(kind, match=said) as caught:
        asking(lepton).secrets()
    assert TOKEN not in str(caught.value)
    assert lepton.asked.count("GET /usersecrets") == 1


def test_a_wrong_token_is_told_from_a_workspace_without_features(lepton: StandIn) -> None:
    with pytest.raises(PlatformError, match="does not accept the token") as caught:
        asking(lepton, "another-token").deployment("d")
    assert "another-token" not in str(caught.value)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET /usersecrets", 429, times=2, headers={"Retry-After": "0"}),
        Fault("GET /usersecrets", 500, times=1),
        Fault("GET /usersecrets", delay_s=scaled(1.5), times=1),
    ],
    ids=["busy", "broken", "slow"],
)
def test_what_fails_for_a_moment_is_asked_again(lepton: StandIn, fault: Fault) -> None:
    lepton.secrets["a"] = "b"
    lepton.faults = [fault]
    assert asking(lepton, timeout_s=scaled(1.0)).secrets() == {"a"}
    assert lepton.asked.count("GET /usersecrets") >= 2


def test_what_goes_on_failing_is_unavailable(lepton: StandIn) -> None:
    lepton.faults = [Fault("GET /jobs", 503)]
    with pytest.raises(PlatformUnavailable, match="HTTP 503"):
        asking(lepton).job("j")
    nowhere = Credentials(workspace_id=ID, url="http://127.0.0.1:9", token=TOKEN)
    with pytest.raises(PlatformUnavailable, match="does not answer"):
        Workspace(nowhere).secrets()


@pytest.mark.parametrize("body", ["<html>a proxy</html>", "[]", '{"metadata": 7}'])
def test_an_answer_that_is_none_is_no_traceback(lepton: StandIn, body: str) -> None:
    lepton.faults = [Fault("GET /jobs/", body=body)]
    with pytest.raises(PlatformError, match="unexpected answer"):
        asking(lepton).job("j")


def test_an_answer_that_was_lost_creates_nothing_twice(lepton: StandIn) -> None:
    workspace = asking(lepton)
    lepton.faults = [Fault("POST /jobs", 502, times=1, after=True)]
    created = workspace.create_job(job_document())
    assert list(lepton.jobs) == [created]
    assert workspace.create_job(job_document()) == created


def test_a_secret_gets_its_new_value_and_goes_once(lepton: StandIn) -> None:
    workspace = asking(lepton)
    workspace.create_secret("s", "one")
    workspace.create_secret("s", "two")
    assert lepton.secrets == {"s": "two"}
    workspace.delete_secret("s")
    workspace.delete_secret("s")
    assert lepton.secrets == {}


def test_what_is_not_there_is_none(lepton: StandIn) -> None:
    workspace = asking(lepton)
    assert workspace.deployment("d") is None
    assert workspace.job("j") is None
    workspace.delete_deployment("d")
    workspace.delete_job("j")


@pytest.mark.parametrize(
    ("state", "status"), [("Failed", JobStatus.FAILED), ("Stopped", JobStatus.CANCELLED)]
)
def test_without_shared_files_the_platforms_word_holds(
    lepton: StandIn, tmp_path: Path, state: str, status: JobStatus
) -> None:
    created = asking(lepton).create_job(job_document())
    lepton.jobs[created].forced = state
    handle = JobHandle(
        job_id="1",
        swarm=None,
        platform="lepton",
        platform_id=created,
        job_dir=str(tmp_path),
        log_path=str(tmp_path / "log"),
        exit_path=str(tmp_path / "exit.json"),
        submitted_at=utc_now(),
    )
    backend = LeptonCompute()
    assert backend.probe(handle) is status
    lepton.jobs[created].forced = "a state of tomorrow"
    with pytest.raises(PlatformUnavailable, match="does not report"):
        backend.probe(handle)
    with pytest.raises(PlatformUnavailable, match="does not report"):
        backend.wait(handle, timeout_s=0.5)
    lepton.jobs[created].forced = None


def test_a_swarm_is_asked_for_where_it_was_launched(
    lepton: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched_in = LaunchedIn(workspace_id="other", url="http://other")
    with pytest.raises(ConfigError, match="workspace is other, but LEPTON_WORKSPACE_ID is"):
        credentials(None, launched_in)
    monkeypatch.setenv("LEPTON_WORKSPACE_ID", "other:token-of-other")
    monkeypatch.delenv("LEPTONAI_API_TOKEN")
    found = credentials("other", launched_in)
    assert (found.workspace_id, found.url, found.token) == (
        "other",
        "http://other",
        "token-of-other",
    )
    assert "token-of-other" not in repr(found)
    monkeypatch.setenv("LEPTON_WORKSPACE_ID", "other")
    with pytest.raises(ConfigError, match="no token"):
        credentials(None)
    monkeypatch.delenv("LEPTON_WORKSPACE_ID")
    with pytest.raises(ConfigError, match="No workspace"):
        credentials(None)
