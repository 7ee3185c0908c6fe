"""Requests that the endpoint's router forwards unchanged. Pure.

smg 1.13.0 parses requests into its own types and serialises them again. Measured field by field
with a server that records requests (the table is in `docs/client.md`): it drops fields that its
types lack (keys of messages, of their parts and of tools, options of embeddings), refuses values
that they do not allow (ranges, roles, token ids, whole paths), rounds numbers to 32 bits, and adds
defaults. So these forms are not all that it could forward, but the few common ones that were
verified to arrive unchanged: every other request goes directly to a replica, where nothing can
change it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from domyn_swarm.net.openai import CHAT_PATH, COMPLETIONS_PATH, EMBEDDINGS_PATH

_LARGEST = 2**31 - 1
_DECIMALS = 6  # of a number up to 2; 32 bits hold them

_Share = Annotated[float, Meta(gt=0, le=1)]
_Tokens = Annotated[int, Meta(ge=1, le=_LARGEST)]


class _Form(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model: str
    user: str = ""


class _Sampled(_Form, kw_only=True):
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    top_p: _Share = 1.0
    max_tokens: _Tokens = 1
    seed: Annotated[int, Meta(ge=0, le=_LARGEST)] = 0
    stream: bool = False


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant"]
    content: str


class _Chat(_Sampled, kw_only=True):
    messages: Annotated[list[_Message], Meta(min_length=1)]
    max_completion_tokens: _Tokens = 1


class _Completion(_Sampled, kw_only=True):
    prompt: str


class _Embeddings(_Form, kw_only=True):
    input: str | Annotated[list[str], Meta(min_length=1)]
    dimensions: _Tokens = 1
    encoding_format: Literal["float", "base64"] = "float"


_FORMS: dict[str, msgspec.json.Decoder[_Form]] = {
    CHAT_PATH: msgspec.json.Decoder(_Chat),
    COMPLETIONS_PATH: msgspec.json.Decoder(_Completion),
    EMBEDDINGS_PATH: msgspec.json.Decoder(_Embeddings),
}


def is_plain(path: str, body: bytes, model: str) -> bool:
    """Whether the router of a swarm that serves `model` forwards a request unchanged."""
    form = _FORMS.get(path)
    if form is None:
        return False
    try:
        found = form.decode(body)
    except msgspec.DecodeError:
        return False
    numbers = (found.temperature, found.top_p) if isinstance(found, _Sampled) else ()
    return found.model == model and all(round(one, _DECIMALS) == one for one in numbers)
