"""An endpoint whose certificate no public authority has signed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from domyn_swarm.errors import ConfigError
from domyn_swarm.net.http import AiohttpClient, ReqwestClient
from domyn_swarm.net.openai import ClientAddress, official_async_client
from domyn_swarm.net.request_errors import CannotConnect
from domyn_swarm.probing import Phase, endpoint_probe
from endpoint.bench import API_KEY, Bench
from patience import limit_s, until

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates")

SUBJECT = ("-subj", "/CN=an endpoint", "-addext", "subjectAltName=IP:127.0.0.1")
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


class Certificates(NamedTuple):
    """As `EndpointSpec` names them."""

    tls_cert: Path
    tls_key: Path
    tls_ca: Path | None


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def self_signed(folder: Path) -> Certificates:
    cert, key = folder / "cert.pem", folder / "key.pem"
    openssl("req", "-x509", *KEY, *SUBJECT, "-keyout", key, "-out", cert)
    return Certificates(cert, key, None)


def of_a_private_authority(folder: Path) -> Certificates:
    ca, ca_key = folder / "ca.pem", folder / "ca.key"
    openssl("req", "-x509", *KEY, "-subj", "/CN=our CA", "-keyout", ca_key, "-out", ca)
    cert, key = folder / "cert.pem", folder / "key.pem"
    signed = ("-CA", ca, "-CAkey", ca_key, "-addext", "basicConstraints=CA:FALSE")
    openssl("req", "-x509", *KEY, *SUBJECT, *signed, "-keyout", key, "-out", cert)
    return Certificates(cert, key, ca)


@pytest.mark.parametrize("make", [self_signed, of_a_private_authority])
async def test_jobs_and_status_reach_it(bench: Bench, make: object) -> None:
    made: Certificates = make(bench.scratch)  # type: ignore[operator]
    bench.start_endpoint(**made._asdict())
    address = bench.address()
    assert address.url.startswith("https://127.0.0.1:")
    assert address.ca_file == (made.tls_ca or made.tls_cert)
    bench.replica().start()
    bench.until_state("ready")
    probe = endpoint_probe(address.url, API_KEY, ca_file=address.ca_file)
    until(lambda: probe().phase is Phase.READY)
    assert "certificate" in endpoint_probe(address.url, API_KEY)().detail
    async with official_async_client(
        ClientAddress(address.url, API_KEY, use_proxy=False, ca_file=str(address.ca_file)), "a test"
    ) as official:
        assert (await official.models.list()).data
    headers = {"authorization": f"Bearer {API_KEY}"}
    for kind in (ReqwestClient, AiohttpClient):
        client = kind(headers, use_proxy=False, ca_file=str(address.ca_file))
        stranger = kind(headers, use_proxy=False)
        try:
            reply = await client.request("GET", f"{address.url}/v1/models", None, limit_s())
            assert reply.status == 200
            client.use_key("another")
            reply = await client.request("GET", f"{address.url}/v1/models", None, limit_s())
            assert reply.status == 200
            with pytest.raises(CannotConnect):
                await stranger.request("GET", f"{address.url}/v1/models", None, limit_s())
        finally:
            await client.close()
            await stranger.close()


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_certificates_that_cannot_be_used_are_named(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    for kind in (ReqwestClient, AiohttpClient):
        with pytest.raises(ConfigError, match=str(path)):
            kind({}, use_proxy=False, ca_file=str(path))
