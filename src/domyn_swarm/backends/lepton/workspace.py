"""One workspace, asked through the SDK: errors become ours, what fails for a moment is repeated."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from domyn_swarm.backends.lepton import specs
from domyn_swarm.backends.lepton.credentials import Credentials
from domyn_swarm.backends.lepton.sdk import Sdk
from domyn_swarm.backends.lepton.specs import Document
from domyn_swarm.backends.lepton.states import DeploymentSeen, ReplicaSeen, in_order
from domyn_swarm.errors import PlatformError, PlatformUnavailable, SubmitRejected
from domyn_swarm.logs import get_logger
from domyn_swarm.model import Record

_log = get_logger(__name__)
_PAUSES_S = (0.5, 1.0, 2.0)  # between attempts
_LONGEST_PAUSE_S = 10.0
_GONE, _CONFLICT, _BUSY = 404, 409, 429
_BY_CLASS = {"WorkspaceUnauthorizedError": 401, "WorkspaceForbiddenError": 403}
_RIGHTS = {401: "does not accept the token", 403: "does not allow this"}
_LOG_IDLE_S = 1.0  # a stream that says nothing for so long has said what there is


class JobSeen(Record):
    """A job as the workspace tells of it."""

    id: str
    state: str
    succeeded: int = 0
    failed: int = 0


class Workspace:
    """Calls may be repeated: names follow from tags, so that nothing is created twice.

    Raises (every method):
        MissingExtra: the SDK is not installed.
        PlatformUnavailable: no answer, or it is too busy to give one; what runs is unknown.
        PlatformError: it refuses; the message says what, the hint what is missing.
    """

    def __init__(self, credentials: Credentials, *, timeout_s: float = 30.0) -> None:
        self._sdk = Sdk()
        self.id = credentials.workspace_id
        self._client = self._sdk.client(
            workspace_id=credentials.workspace_id,
            auth_token=credentials.token,
            url=credentials.url,
        )
        self._client._timeout = timeout_s  # there is no other way to it
        self.url: str = self._client.url

    def info(self) -> Any:  # noqa: ANN401 - the SDK's
        """What the workspace says of itself; decides which of its two APIs is spoken."""
        return self._call("its description", self._client.deployment_feature_snapshot)

    # -- endpoints ------------------------------------------------------------------------------

    def create_deployment(self, document: Document, tag: str) -> None:
        """Create the endpoint of this tag, unless it is there already."""
        self.info()
        if not self._client.new_deployment_api_enabled:  # the newer API has no labels
            labels = {specs.TAG_LABEL: specs.digest(tag)}
            metadata = {**document["metadata"], "labels": labels}
            document = {**document, "metadata": metadata}
        spec = self._sdk.deployment.model_validate(document)
        name = document["metadata"]["name"]
        try:
            self._call(f"to create {name}", lambda: self._client.deployment.create(spec))
        except Taken as error:
            seen = self.deployment(name)
            if seen is None or seen.tag != tag:
                raise SubmitRejected(
                    f"The workspace has another deployment named {name}.",
                    hint="Choose another --name.",
                ) from error

    def deployment(self, name: str) -> DeploymentSeen | None:
        """The deployment with its replicas as they are now; None: there is none."""
        self.info()
        api = self._client.deployment
        found = self._call(f"the deployment {name}", lambda: api.get(name), none_if_gone=True)
        if found is None:
            return None
        replicas = self._call(f"replicas of {name}", lambda: api.get_replicas(name), True) or []
        reasons: dict[str, Any] = {}
        if not self._client.new_deployment_api_enabled:
            issues = self._call(f"readiness of {name}", lambda: api.get_readiness(name), True)
            reasons = {} if issues is None else issues.root
        return _deployment(name, found, replicas, reasons)

    def patch_deployment(self, name: str, document: Document) -> None:
        """Change it."""
        spec = self._sdk.deployment.model_validate(document)
        self._call(f"to change {name}", lambda: self._client.deployment.update(name, spec))

    def delete_deployment(self, name: str) -> None:
        """Have it deleted; it may go on for a while."""
        self._call(f"to delete {name}", lambda: self._client.deployment.delete(name), True)

    def deployment_log(self, name: str, replica: str, *, follow: bool) -> Iterator[str]:
        """What a replica printed, as it comes."""
        idle_s = None if follow else _LOG_IDLE_S
        return self._stream(lambda: self._client.deployment.get_log(name, replica, timeout=idle_s))

    # -- secrets --------------------------------------------------------------------------------

    def secrets(self) -> set[str]:
        """The names of the workspace's secrets."""
        return {one.name for one in self._call("its secrets", self._client.secret.list_all)}

    def create_secret(self, name: str, value: str) -> None:
        """Create it, or give it another value."""
        item = self._sdk.secret(name=name, value=value)

        def create() -> None:
            self._client.secret.create([item])

        try:
            self._call(f"to create the secret {name}", create)
        except Taken:
            self.delete_secret(name)
            self._call(f"to create the secret {name}", create)

    def delete_secret(self, name: str) -> None:
        """Delete it, if it is there."""
        delete = self._client.secret.delete
        self._call(f"to delete the secret {name}", lambda: delete(name), none_if_gone=True)

    # -- jobs -----------------------------------------------------------------------------------

    def create_job(self, document: Document) -> str:
        """Create a job, unless it is there already; its id."""
        job = self._sdk.job.model_validate(document)
        label = f"{specs.JOB_LABEL}={document['metadata']['labels'][specs.JOB_LABEL]}"

        def create() -> str:
            there = self._jobs(label, "alive_and_archive")
            return there[0].id if there else str(self._client.job.create(job).metadata.id_)

        name = document["metadata"]["name"]
        return str(self._call(f"to create the job {name}", create))

    def job(self, name: str) -> JobSeen | None:
        """A job, ended or not; None: there is none."""
        found = self._call(f"the job {name}", lambda: self._client.job.get(name), True)
        return None if found is None else _job(found)

    def find_job(self, job_id: str) -> JobSeen | None:
        """The job that runs this job of ours, ended or not."""
        label = f"{specs.JOB_LABEL}={specs.digest(job_id)}"
        found = self._call("its jobs", lambda: self._jobs(label, "alive_and_archive"))
        return found[0] if found else None

    def jobs_of(self, tag: str) -> list[JobSeen]:
        """The jobs of a swarm that are not archived."""
        label = f"{specs.TAG_LABEL}={specs.digest(tag)}"
        found: list[JobSeen] = self._call("its jobs", lambda: self._jobs(label, "alive_only"))
        return found

    def _jobs(self, label: str, mode: str) -> list[JobSeen]:
        key, _, value = label.partition("=")
        listed = self._client.job.list_all(job_query_mode=mode, query=label)
        return [_job(one) for one in listed if (one.metadata.labels or {}).get(key) == value]

    def stop_job(self, name: str) -> None:
        """Have it end: its program is told, and given some time."""
        change = {"spec": {"stopped": True}}
        self._call(f"to stop {name}", lambda: self._client.job.update(name, spec=change), True)

    def delete_job(self, name: str) -> None:
        """Have it killed and forgotten."""
        self._call(f"to delete {name}", lambda: self._client.job.delete(name), True)

    def job_log(self, name: str, *, follow: bool) -> Iterator[str]:
        """What a job printed, as it comes; nothing while nothing of it runs."""
        api = self._client.job
        replicas = self._call(f"replicas of {name}", lambda: api.get_replicas(name), True) or []
        idle_s = None if follow else _LOG_IDLE_S
        for replica in replicas:
            open_stream = partial(api.get_log, name, replica.metadata.id_, timeout=idle_s)
            yield from self._stream(open_stream)

    # -- every call -----------------------------------------------------------------------------

    def _call(self, what: str, call: Callable[[], Any], none_if_gone: bool = False) -> Any:  # noqa: ANN401 - the SDK's
        for pause_s in (*_PAUSES_S, None):
            try:
                return call()
            except (RuntimeError, self._sdk.no_answer) as error:
                status = _status(error)
                if status == _GONE and none_if_gone:
                    return None
                again = isinstance(error, self._sdk.no_answer) or status == _BUSY or status >= 500
                if not again or pause_s is None:
                    raise self._translated(what, error, status) from None
                wait_s = _asked_pause_s(error) or pause_s
                _log.debug("asking for %s again in %.1f s", what, wait_s)
                time.sleep(min(wait_s, _LONGEST_PAUSE_S))
        raise AssertionError("the last attempt returns or raises")

    def _translated(self, what: str, error: Exception, status: int) -> PlatformError:
        """Never with the SDK's own text where that may hold a token, or pages of a proxy."""
        where = f"The workspace {self.id}"
        if status in _RIGHTS or isinstance(error, self._sdk.workspace_errors):
            right = _RIGHTS.get(status, "cannot be used with this id and token")
            return PlatformError(
                f"{where} {right}: {what}.",
                hint="Check LEPTON_WORKSPACE_ID and LEPTONAI_API_TOKEN: a token may have expired, "
                'or its user lacks the role. What is needed is listed on the page "DGX Cloud '
                'Lepton" of the documentation.',
            )
        if status == _CONFLICT:
            return Taken(f"{where} has it already: {what}.")
        if isinstance(error, self._sdk.no_answer):
            kind = type(error).__name__
            return PlatformUnavailable(
                f"{where} does not answer ({kind}), asked for {what} at {self.url}."
            )
        if status == _BUSY or status >= 500:
            return PlatformUnavailable(f"{where} answers HTTP {status}, asked for {what}.")
        if status:
            return SubmitRejected(f"{where} refuses {what}: HTTP {status}: {_body(error)}")
        return PlatformError(
            f"{where} gave an answer that is not understood, asked for {what}.",
            hint=f"Is {self.url} the address of a workspace's API?",
        )

    def _stream(self, open_stream: Callable[[], Iterator[str]]) -> Iterator[str]:
        """A log; it ends when the server ends it or falls silent, which is the SDK's time-out."""
        with contextlib.suppress(self._sdk.no_answer):
            try:
                yield from open_stream()
            except RuntimeError as error:  # carries the status in words alone
                if " 404" not in str(error):
                    raise self._translated("a log", error, 0) from None


class Taken(PlatformError):
    """Something of that name is there."""


def _status(error: Exception) -> int:
    """Of HTTP; 0: there is none. Of the workspace as a whole the SDK tells it by the class."""
    response = getattr(error, "response", None)
    if type(error).__name__ in _BY_CLASS:
        return _BY_CLASS[type(error).__name__]
    return 0 if response is None else int(response.status_code)


def _asked_pause_s(error: Exception) -> float | None:
    response = getattr(error, "response", None)
    after = None if response is None else response.headers.get("Retry-After")
    return float(after) if after and after.isdecimal() else None


def _body(error: Exception) -> str:
    response = getattr(error, "response", None)
    return "" if response is None else " ".join(response.text.split())[:300]


def _deployment(name: str, found: Any, replicas: Any, reasons: Any) -> DeploymentSeen:  # noqa: ANN401 - the SDK's
    status, spec = found.status, found.spec
    needs = None if spec is None else spec.resource_requirement
    envs = (spec.envs if spec else None) or []
    state = "UNK" if status is None else (status.phase or status.state).value
    url = None if status is None else status.endpoint.external_endpoint
    return DeploymentSeen(
        name=name,
        state=state,
        url=url.rstrip("/").removesuffix("/v1") if url else None,
        tag=next((one.value for one in envs if one.name == specs.TAG), None),
        replicas_wanted=_wanted(needs, len(replicas)),
        replicas_ready=None if status is None else status.ready_replicas,
        replicas=in_order([(_age(one), _replica(one, reasons)) for one in replicas]),
    )


def _wanted(needs: Any, there: int) -> int:  # noqa: ANN401
    """How many replicas a deployment shall have: where the platform scales it, those it has."""
    least = 0 if needs is None else needs.min_replicas or 0
    scales = needs is not None and (needs.max_replicas or 0) > least
    return max(least, min(there, needs.max_replicas)) if scales else least


def _age(replica: Any) -> int:  # noqa: ANN401
    return replica.metadata.created_at or 0


def _replica(replica: Any, reasons: Any) -> ReplicaSeen:  # noqa: ANN401
    replica_id = replica.metadata.id_ or replica.id_
    node = replica.status.node.name if replica.status and replica.status.node else None
    issues = reasons.get(replica_id) or []
    if not issues:
        return ReplicaSeen(replica_id, node, "InProgress" if reasons else None)
    return ReplicaSeen(replica_id, node, issues[-1].reason.value, issues[-1].message)


def _job(found: Any) -> JobSeen:  # noqa: ANN401
    status = found.status
    if status is None or status.state is None:
        return JobSeen(id=found.metadata.id_ or found.metadata.name, state="Starting")
    return JobSeen(
        id=found.metadata.id_ or found.metadata.name,
        state=status.state.value,
        succeeded=status.succeeded or 0,
        failed=status.failed or 0,
    )
