"""Calls to one workspace through the SDK: raises our errors, and retries transient failures."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from domyn_swarm.backends.lepton import specs
from domyn_swarm.backends.lepton.credentials import Credentials
from domyn_swarm.backends.lepton.lepton_states import Deployment, Replica, in_order
from domyn_swarm.backends.lepton.sdk import Sdk
from domyn_swarm.backends.lepton.specs import Document
from domyn_swarm.errors import PlatformError, PlatformUnavailable, SubmitRejected
from domyn_swarm.logs import get_logger
from domyn_swarm.model import Record

_log = get_logger(__name__)
_PAUSES_S = (0.5, 1.0, 2.0)  # between attempts
_LONGEST_PAUSE_S = 10.0
_NOT_FOUND, _CONFLICT, _BUSY = 404, 409, 429
_BY_CLASS = {"WorkspaceUnauthorizedError": 401, "WorkspaceForbiddenError": 403}
_RIGHTS = {401: "does not accept the token", 403: "does not allow this"}
_LOG_IDLE_S = 1.0  # a stream that is silent for this long has sent the whole log


class WorkspaceJob(Record):
    """A job, as the workspace describes it."""

    id: str
    state: str
    succeeded: int = 0
    failed: int = 0


class Workspace:
    """A client of one workspace. Every call is idempotent: names are derived from tags, so that a
    repeated call creates nothing twice.

    Raises (every method):
        MissingExtra: the SDK is not installed.
        PlatformUnavailable: the workspace did not answer, or is overloaded; what runs is unknown.
        PlatformError: the workspace refused the call.
    """

    def __init__(self, credentials: Credentials, *, timeout_s: float = 30.0) -> None:
        self._sdk = Sdk()
        self.id = credentials.workspace_id
        self._client = self._sdk.client(
            workspace_id=credentials.workspace_id,
            auth_token=credentials.token,
            url=credentials.url,
        )
        self._client._timeout = timeout_s  # the SDK has no public way to set it
        self.url: str = self._client.url

    def info(self) -> Any:  # noqa: ANN401 - the SDK's
        """The workspace's description. Also decides which of its two APIs the SDK uses."""
        return self._call("its description", self._client.deployment_feature_snapshot)

    # -- endpoints ------------------------------------------------------------------------------

    def create_deployment(self, document: Document, tag: str) -> None:
        """Create the deployment of a swarm, unless it exists."""
        self.info()
        if not self._client.new_deployment_api_enabled:  # the newer API has no labels
            labels = {specs.TAG_LABEL: specs.digest(tag)}
            metadata = {**document["metadata"], "labels": labels}
            document = {**document, "metadata": metadata}
        spec = self._sdk.deployment.model_validate(document)
        name = document["metadata"]["name"]
        try:
            self._call(f"to create {name}", lambda: self._client.deployment.create(spec))
        except NameTaken as error:
            existing = self.deployment(name)
            if existing is None or existing.tag != tag:
                raise SubmitRejected(
                    f"The workspace has another deployment named {name}.",
                    hint="Choose another --name.",
                ) from error

    def deployment(self, name: str) -> Deployment | None:
        """The deployment with its present replicas; None: there is none."""
        self.info()
        api = self._client.deployment
        document = self._call(f"the deployment {name}", lambda: api.get(name), none_if_gone=True)
        if document is None:
            return None
        replicas = self._call(f"replicas of {name}", lambda: api.get_replicas(name), True) or []
        reasons: dict[str, Any] = {}
        if not self._client.new_deployment_api_enabled:
            issues = self._call(f"readiness of {name}", lambda: api.get_readiness(name), True)
            reasons = {} if issues is None else issues.root
        return _deployment(name, document, replicas, reasons)

    def patch_deployment(self, name: str, document: Document) -> None:
        """Change a deployment."""
        spec = self._sdk.deployment.model_validate(document)
        self._call(f"to change {name}", lambda: self._client.deployment.update(name, spec))

    def delete_deployment(self, name: str) -> None:
        """Request the deletion of a deployment, which may still run for a while."""
        self._call(f"to delete {name}", lambda: self._client.deployment.delete(name), True)

    def deployment_log(self, name: str, replica: str, *, follow: bool) -> Iterator[str]:
        """The log of a replica, as a stream."""
        idle_s = None if follow else _LOG_IDLE_S
        return self._stream(lambda: self._client.deployment.get_log(name, replica, timeout=idle_s))

    # -- secrets --------------------------------------------------------------------------------

    def secrets(self) -> set[str]:
        """The names of the workspace's secrets."""
        return {secret.name for secret in self._call("its secrets", self._client.secret.list_all)}

    def create_secret(self, name: str, value: str) -> None:
        """Create a secret, or replace its value."""
        item = self._sdk.secret(name=name, value=value)

        def create() -> None:
            self._client.secret.create([item])

        try:
            self._call(f"to create the secret {name}", create)
        except NameTaken:
            self.delete_secret(name)
            self._call(f"to create the secret {name}", create)

    def delete_secret(self, name: str) -> None:
        """Delete a secret, if it exists."""
        delete = self._client.secret.delete
        self._call(f"to delete the secret {name}", lambda: delete(name), none_if_gone=True)

    # -- jobs -----------------------------------------------------------------------------------

    def create_job(self, document: Document) -> str:
        """Create a job, unless it exists; the job's id in the workspace."""
        job = self._sdk.job.model_validate(document)
        label = f"{specs.JOB_LABEL}={document['metadata']['labels'][specs.JOB_LABEL]}"

        def create() -> str:
            existing = self._jobs(label, "alive_and_archive")
            return existing[0].id if existing else str(self._client.job.create(job).metadata.id_)

        name = document["metadata"]["name"]
        return str(self._call(f"to create the job {name}", create))

    def job(self, name: str) -> WorkspaceJob | None:
        """A job, ended or not; None: there is none."""
        document = self._call(f"the job {name}", lambda: self._client.job.get(name), True)
        return None if document is None else _job(document)

    def find_job(self, job_id: str) -> WorkspaceJob | None:
        """The workspace's job of our job `job_id`, ended or not; None: there is none."""
        label = f"{specs.JOB_LABEL}={specs.digest(job_id)}"
        jobs = self._call("its jobs", lambda: self._jobs(label, "alive_and_archive"))
        return jobs[0] if jobs else None

    def jobs_of(self, tag: str) -> list[WorkspaceJob]:
        """The jobs of a swarm that are not archived."""
        label = f"{specs.TAG_LABEL}={specs.digest(tag)}"
        jobs: list[WorkspaceJob] = self._call("its jobs", lambda: self._jobs(label, "alive_only"))
        return jobs

    def _jobs(self, label: str, mode: str) -> list[WorkspaceJob]:
        key, _, value = label.partition("=")
        listed = self._client.job.list_all(job_query_mode=mode, query=label)
        return [_job(job) for job in listed if (job.metadata.labels or {}).get(key) == value]

    def stop_job(self, name: str) -> None:
        """Stop a job: the platform signals its program, and kills it later."""
        change = {"spec": {"stopped": True}}
        self._call(f"to stop {name}", lambda: self._client.job.update(name, spec=change), True)

    def delete_job(self, name: str) -> None:
        """Kill and delete a job."""
        self._call(f"to delete {name}", lambda: self._client.job.delete(name), True)

    def job_log(self, name: str, *, follow: bool) -> Iterator[str]:
        """The log of a job, as a stream; empty while no replica of it exists."""
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
                if status == _NOT_FOUND and none_if_gone:
                    return None
                is_transient = (
                    isinstance(error, self._sdk.no_answer) or status == _BUSY or status >= 500
                )
                if not is_transient or pause_s is None:
                    raise self._translated(what, error, status) from None
                wait_s = _retry_after_s(error) or pause_s
                _log.debug("retrying %s in %.1f s", what, wait_s)
                time.sleep(min(wait_s, _LONGEST_PAUSE_S))
        raise AssertionError("the last attempt returns or raises")

    def _translated(self, what: str, error: Exception, status: int) -> PlatformError:
        """Our error for one of the SDK, whose text may contain a token or a proxy's page."""
        where = f"The workspace {self.id}"
        if status in _RIGHTS or isinstance(error, self._sdk.workspace_errors):
            right = _RIGHTS.get(status, "cannot be used with this id and token")
            return PlatformError(
                f"{where} {right}: {what}.",
                hint="Check LEPTON_WORKSPACE_ID and LEPTONAI_API_TOKEN: the token may have "
                'expired, or its user may lack a role. The page "DGX Cloud Lepton" of the '
                "documentation lists the required roles.",
            )
        if status == _CONFLICT:
            return NameTaken(f"{where} has something of that name already: {what}.")
        if isinstance(error, self._sdk.no_answer):
            kind = type(error).__name__
            return PlatformUnavailable(
                f"{where} does not answer ({kind}) the request for {what} at {self.url}."
            )
        if status == _BUSY or status >= 500:
            return PlatformUnavailable(f"{where} answers HTTP {status} to the request for {what}.")
        if status:
            return SubmitRejected(f"{where} refuses {what}: HTTP {status}: {_body(error)}")
        return PlatformError(
            f"{where} gave an unexpected answer to the request for {what}.",
            hint=f"Check that {self.url} is the address of a workspace's API.",
        )

    def _stream(self, open_stream: Callable[[], Iterator[str]]) -> Iterator[str]:
        """A log, until the server ends it, or is silent until the SDK's time-out."""
        with contextlib.suppress(self._sdk.no_answer):
            try:
                yield from open_stream()
            except RuntimeError as error:  # the status is only in its text
                if " 404" not in str(error):
                    raise self._translated("a log", error, 0) from None


class NameTaken(PlatformError):
    """The workspace already has something of that name."""


def _status(error: Exception) -> int:
    """The HTTP status of an error of the SDK, from its response or its class; 0: none."""
    response = getattr(error, "response", None)
    if type(error).__name__ in _BY_CLASS:
        return _BY_CLASS[type(error).__name__]
    return 0 if response is None else int(response.status_code)


def _retry_after_s(error: Exception) -> float | None:
    response = getattr(error, "response", None)
    after = None if response is None else response.headers.get("Retry-After")
    return float(after) if after and after.isdecimal() else None


def _body(error: Exception) -> str:
    response = getattr(error, "response", None)
    return "" if response is None else " ".join(response.text.split())[:300]


def _deployment(name: str, document: Any, replicas: Any, reasons: Any) -> Deployment:  # noqa: ANN401 - the SDK's
    status, spec = document.status, document.spec
    needs = None if spec is None else spec.resource_requirement
    envs = (spec.envs if spec else None) or []
    state = "UNK" if status is None else (status.phase or status.state).value
    url = None if status is None else status.endpoint.external_endpoint
    return Deployment(
        name=name,
        state=state,
        url=url.rstrip("/").removesuffix("/v1") if url else None,
        tag=next((variable.value for variable in envs if variable.name == specs.TAG), None),
        replicas_wanted=_wanted(needs, len(replicas)),
        replicas_ready=None if status is None else status.ready_replicas,
        replicas=in_order(
            [(_created_at(replica), _replica(replica, reasons)) for replica in replicas]
        ),
    )


def _wanted(needs: Any, existing: int) -> int:  # noqa: ANN401
    """The wanted number of replicas; if the platform scales the deployment, the existing number."""
    least = 0 if needs is None else needs.min_replicas or 0
    scales = needs is not None and (needs.max_replicas or 0) > least
    return max(least, min(existing, needs.max_replicas)) if scales else least


def _created_at(replica: Any) -> int:  # noqa: ANN401
    return replica.metadata.created_at or 0


def _replica(replica: Any, reasons: Any) -> Replica:  # noqa: ANN401
    replica_id = replica.metadata.id_ or replica.id_
    node = replica.status.node.name if replica.status and replica.status.node else None
    issues = reasons.get(replica_id) or []
    if not issues:
        return Replica(replica_id, node, "InProgress" if reasons else None)
    return Replica(replica_id, node, issues[-1].reason.value, issues[-1].message)


def _job(document: Any) -> WorkspaceJob:  # noqa: ANN401
    status = document.status
    if status is None or status.state is None:
        return WorkspaceJob(id=document.metadata.id_ or document.metadata.name, state="Starting")
    return WorkspaceJob(
        id=document.metadata.id_ or document.metadata.name,
        state=status.state.value,
        succeeded=status.succeeded or 0,
        failed=status.failed or 0,
    )
