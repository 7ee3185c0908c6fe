"""A client with the interface of OpenAI's, over raw JSON: no object models on the hot path.

`client.chat.completions.create(...)`, `client.completions`, `client.embeddings` and `client.models`
accept what OpenAI's and vLLM's accept (`extra_body` is merged in unchecked), and their replies have
the same attributes. `client.openai` is the official client, for everything else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from typing_extensions import override

from domyn_swarm.errors import ConfigError
from domyn_swarm.net import parameters
from domyn_swarm.net.request_errors import NOT_JSON, BadReply

if TYPE_CHECKING:
    import ssl
    from types import ModuleType

    from openai import AsyncOpenAI, OpenAI

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
EMBEDDINGS_PATH = "/v1/embeddings"
MODELS_PATH = "/v1/models"

_KNOWN = {
    CHAT_PATH: parameters.CHAT | parameters.ASKED,
    COMPLETIONS_PATH: parameters.COMPLETIONS | parameters.ASKED,
    EMBEDDINGS_PATH: parameters.EMBEDDINGS | parameters.ASKED,
}
_NOT_GIVEN = frozenset({"NotGiven", "Omit"})  # the names of OpenAI's marks for "leave it out"
_NOT_OURS = ("extra_headers", "extra_query")


class ClientAddress(NamedTuple):
    """Address and credentials of an endpoint's client."""

    url: str  # without /v1
    key: str | None
    use_proxy: bool = True  # obey HTTP(S)_PROXY; a swarm's own endpoint is inside the cluster
    ca_file: str | None = None  # certificates that are trusted beside the system's

    @property
    def base_url(self) -> str:
        """As OpenAI's clients have it."""
        return f"{self.url.rstrip('/').removesuffix('/v1')}/v1"

    def trusted(self) -> ssl.SSLContext | bool:
        """The certificates to trust; True: the system's."""
        from domyn_swarm.net.certificates import trusting

        return True if self.ca_file is None else trusting(self.ca_file)


def official_client(address: ClientAddress, asked_for: str) -> OpenAI:
    """OpenAI's own client for an endpoint. `asked_for` is what needs the package, in an error.

    Raises:
        ConfigError: the package `openai` is not installed, or the certificates cannot be used.
    """
    openai = _official_package(asked_for)
    http = openai.DefaultHttpxClient(trust_env=address.use_proxy, verify=address.trusted())
    made: OpenAI = openai.OpenAI(
        base_url=address.base_url, api_key=address.key or "none", http_client=http
    )
    return made


def official_async_client(address: ClientAddress, asked_for: str) -> AsyncOpenAI:
    """As `official_client`, for asynchronous code. Raises the same."""
    openai = _official_package(asked_for)
    http = openai.DefaultAsyncHttpxClient(trust_env=address.use_proxy, verify=address.trusted())
    made: AsyncOpenAI = openai.AsyncOpenAI(
        base_url=address.base_url, api_key=address.key or "none", http_client=http
    )
    return made


def _official_package(asked_for: str) -> ModuleType:
    try:
        import openai
    except ImportError as error:
        raise ConfigError(
            f"{asked_for} needs the package openai.",
            hint="Install it: pip install 'domyn-swarm[openai]'.",
        ) from error
    return openai


class Transport(Protocol):
    """Sends requests; retries, accounting and the endpoint's address are the implementation's."""

    async def post(
        self, path: str, body: dict[str, Any], timeout_s: float | None = None
    ) -> bytes | memoryview:
        """The body of a 2xx reply; `timeout_s` None: the job's.

        Raises:
            RequestError: there is none.
        """

    def post_stream(
        self, path: str, body: dict[str, Any], timeout_s: float | None = None
    ) -> AsyncIterator[bytes]:
        """The payloads of a server-sent event stream, without `data:` and `[DONE]`.

        Raises:
            RequestError: it breaks off before `[DONE]`, or an event says what went wrong.
        """

    async def get(self, path: str) -> bytes | memoryview:
        """The body of a 2xx reply; raises as `post`."""


class Reply(Mapping[str, Any]):
    """A JSON object whose keys are attributes too, all the way down. Missing keys are None."""

    __slots__ = ("_fields",)

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - JSON
        if name.startswith("_"):
            raise AttributeError(name)
        return _wrap(self._fields.get(name))

    @override
    def __getitem__(self, name: str) -> Any:
        return _wrap(self._fields[name])

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    @override
    def __len__(self) -> int:
        return len(self._fields)

    @override
    def __repr__(self) -> str:
        return f"Reply({self._fields!r})"

    def model_dump(self) -> dict[str, Any]:
        """The plain dictionary, as the server sent it."""
        return self._fields

    def model_dump_json(self) -> str:
        """The same as JSON."""
        import msgspec

        return msgspec.json.encode(self._fields).decode()

    to_dict = model_dump
    to_json = model_dump_json


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
    except NOT_JSON as error:
        raise BadReply(f"the reply is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadReply("the reply is not a JSON object")
    return Reply(fields)


class Stream:
    """Chunks of a streamed reply: `async for`, `async with`, `close`, as OpenAI's."""

    def __init__(self, payloads: AsyncIterator[bytes]) -> None:
        self._payloads = payloads

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Reply:
        return _decode(await anext(self._payloads))

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up; the server may stop writing."""
        aclose = getattr(self._payloads, "aclose", None)
        if aclose is not None:
            await aclose()


class _Resource:
    """One path of the API."""

    def __init__(self, transport: Transport, path: str, timeout_s: float | None) -> None:
        self._transport = transport
        self._path = path
        self._timeout_s = timeout_s

    async def create(
        self,
        *,
        extra_body: dict[str, Any] | None = None,
        stream: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - OpenAI's name
        **params: Any,
    ) -> Any:  # noqa: ANN401 - a Reply, or a Stream
        """Send one request; `stream=True` returns a `Stream`. `timeout` in seconds.

        Raises:
            RequestError: no usable reply after the retries that the job allows.
            ValueError: a parameter that is not the request's.
        """
        timeout_s = self._timeout_s if timeout is None else timeout
        body = {
            name: value for name, value in params.items() if type(value).__name__ not in _NOT_GIVEN
        }
        for name in body.keys() - _KNOWN[self._path]:
            raise ValueError(_why_unknown(name, _KNOWN[self._path]))
        body.update(extra_body or {})
        if stream is True:
            return Stream(
                self._transport.post_stream(self._path, {**body, "stream": True}, timeout_s)
            )
        return _decode(await self._transport.post(self._path, body, timeout_s))


def _why_unknown(name: str, known: frozenset[str]) -> str:
    if name in _NOT_OURS:
        return f"{name} is not supported here; client.openai has it"
    close = parameters.meant(name, known)
    meant = f"; did you mean {close!r}?" if close else "; extra_body takes it to the server"
    return f"no request has a parameter {name!r}{meant}"


class _Models:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(self) -> Reply:
        """The models that the endpoint serves: `.data[0].id`."""
        return _decode(await self._transport.get(MODELS_PATH))


class _Chat:
    def __init__(self, transport: Transport, timeout_s: float | None) -> None:
        self.completions = _Resource(transport, CHAT_PATH, timeout_s)


class OpenAIClient:
    """The part of `openai.AsyncOpenAI` that batch work uses."""

    def __init__(
        self,
        transport: Transport,
        address: Callable[[], ClientAddress] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> None:
        """`address` returns the endpoint's present address."""
        self.transport = transport
        self._address = address
        self._official: tuple[ClientAddress, AsyncOpenAI] | None = None
        self.chat = _Chat(transport, timeout_s)
        self.completions = _Resource(transport, COMPLETIONS_PATH, timeout_s)
        self.embeddings = _Resource(transport, EMBEDDINGS_PATH, timeout_s)
        self.models = _Models(transport)

    def with_options(self, *, timeout: float) -> OpenAIClient:
        """The same client with another time limit per request, in seconds."""
        return OpenAIClient(self.transport, self._address, timeout_s=timeout)

    def through(self, wrap: Callable[[Transport], Transport]) -> OpenAIClient:
        """The same client, with something between it and what carries its requests."""
        return OpenAIClient(wrap(self.transport), self._address)

    @property
    def openai(self) -> AsyncOpenAI:
        """OpenAI's own client for this endpoint, with its own retries and at its own cost.

        What it sends is outside the job's retries, pauses and accounts.

        Raises:
            ConfigError: the package `openai` is not installed.
        """
        if self._address is None:
            raise ConfigError("This client knows no endpoint.")
        address = self._address()
        if self._official is None or self._official[0] != address:
            self._official = address, official_async_client(address, "client.openai")
        return self._official[1]
