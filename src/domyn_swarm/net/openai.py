"""A client with the shape of OpenAI's, over raw JSON: no object models on the hot path.

`client.chat.completions.create(...)`, `client.completions.create(...)` and
`client.embeddings.create(...)` take what OpenAI's take (unknown parameters travel as they are,
`extra_body` is merged in) and answer with objects that have the same attributes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Protocol

from domyn_swarm.net.errors import BadReply

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
EMBEDDINGS_PATH = "/v1/embeddings"


class Transport(Protocol):
    """What carries requests; retries, accounting and the endpoint's address are its business."""

    async def post(self, path: str, body: dict[str, Any]) -> bytes | memoryview:
        """The body of a 2xx reply.

        Raises:
            RequestError: there is none.
        """

    def post_stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
        """The lines' payloads of a server-sent event stream, without `data:` and `[DONE]`."""


class Reply(Mapping[str, Any]):
    """A JSON object whose keys are attributes too, all the way down. Missing keys are None."""

    __slots__ = ("_fields",)

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - JSON
        if name.startswith("__"):
            raise AttributeError(name)
        return _wrap(self._fields.get(name))

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - JSON
        return _wrap(self._fields[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return f"Reply({self._fields!r})"

    def model_dump(self) -> dict[str, Any]:
        """The plain dictionary, as the server sent it."""
        return self._fields


def _wrap(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        return Reply(value)
    if isinstance(value, list):
        return [_wrap(item) for item in value]
    return value


def _decode(body: bytes | memoryview) -> Reply:
    import msgspec

    try:
        fields = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise BadReply(f"the reply is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadReply("the reply is not a JSON object")
    return Reply(fields)


class _Resource:
    """One path of the API."""

    def __init__(self, transport: Transport, path: str) -> None:
        self._transport = transport
        self._path = path

    async def create(
        self, *, extra_body: dict[str, Any] | None = None, stream: bool = False, **params: Any
    ) -> Any:  # noqa: ANN401 - a Reply, or an iterator of them when streaming
        """Send one request; `stream=True` returns an async iterator of chunks.

        Raises:
            RequestError: no usable reply after the retries that the job allows.
        """
        body = {name: value for name, value in params.items() if value is not None}
        body.update(extra_body or {})
        if stream:
            return self._chunks({**body, "stream": True})
        return _decode(await self._transport.post(self._path, body))

    async def _chunks(self, body: dict[str, Any]) -> AsyncIterator[Reply]:
        async for payload in self._transport.post_stream(self._path, body):
            yield _decode(payload)


class _Chat:
    def __init__(self, transport: Transport) -> None:
        self.completions = _Resource(transport, CHAT_PATH)


class OpenAIClient:
    """The part of `openai.AsyncOpenAI` that batch work uses."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.chat = _Chat(transport)
        self.completions = _Resource(transport, COMPLETIONS_PATH)
        self.embeddings = _Resource(transport, EMBEDDINGS_PATH)
