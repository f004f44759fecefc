"""Web servers of a test's own making: each is an origin, and keeps what it was asked; certificates, and a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Asked(NamedTuple):
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    certificate: bool = False


class Origin:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[Asked] = []
        self.reached = asyncio.Event()
        """Somebody has asked."""

    @property
    def secrets(self) -> list[str]:
        """What of a client's secrets arrived here."""
        kept = ("authorization", "cookie", "x-secret", "proxy-authorization")
        return [f"{name}: {one.headers[name]}" for one in self.asked for name in kept if name in one.headers]


@asynccontextmanager
async def origin(handler: Handler, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[Origin]:
    """Serve *handler* on a free port of *host*."""

    async def keep(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        peer = request.transport.get_extra_info("peercert") if request.transport is not None else None
        headers = {name.lower(): value for name, value in request.headers.items()}
        server.asked.append(Asked(request.method, request.raw_path, headers, body, bool(peer)))
        server.reached.set()
        return await handler(request)

    runner = web.ServerRunner(web.Server(keep), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, host, 0, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    shown = f"[{host}]" if ":" in host else host
    server = Origin(f"{'https' if tls else 'http'}://{shown}:{port}")
    try:
        yield server
    finally:
        await runner.cleanup()


Raw = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw(handler: Raw) -> AsyncIterator[str]:
    """Run *handler* for each connection: what an HTTP server's library would not send."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


class Proxy:
    """A running proxy."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.heads: list[str] = []
        """The head of each request, as it came."""


@asynccontextmanager
async def proxy(refuse: str = "") -> AsyncIterator[Proxy]:
    """Run a proxy for CONNECT and for absolute URLs; *refuse* is a status line that everybody gets."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        double.heads.append(head.decode())
        if refuse:
            writer.write(f"HTTP/1.1 {refuse}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
            return
        method, target, rest = head.decode().split(" ", 2)
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            first = b""
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            host, _, port = target.removeprefix("http://").partition("/")[0].rpartition(":")
            path = "/" + target.removeprefix("http://").partition("/")[2]
            first = f"{method} {path} {rest}".encode()
        upstream, down = await asyncio.open_connection(host.strip("[]"), int(port))
        down.write(first)
        await asyncio.gather(_copy(reader, down), _copy(upstream, writer))

    async with raw(serve) as url:
        double = Proxy(url)
        yield double


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()
    writer.close()


class Authority:
    """Who signs certificates; ``ca`` is the file to trust."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority {directory.name}")])
        certificate = self._sign(self._name, self._key, None, 1)
        self.ca = directory / "ca.pem"
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, host: str | None, days: int) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=10))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if host is None:
            usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
            made = made.add_extension(usage, critical=True)
        else:
            try:
                names: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
            except ValueError:
                names = x509.DNSName(host)
            made = made.add_extension(x509.SubjectAlternativeName([names]), critical=False)
        return made.sign(self._key, hashes.SHA256())

    def certificate(self, host: str, *, days: int = 1, password: bytes = b"") -> Path:
        """Return a file with a certificate for *host* and its key; *days* below zero: it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        path = self.directory / f"{host.replace(':', '_')}{days}{len(password)}.pem"
        how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        path.write_bytes(
            self._sign(name, key, host, days).public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)
        )
        return path

    def server(self, host: str = "127.0.0.1", *, days: int = 1, clients: str = "") -> ssl.SSLContext:
        """Return a server's context; *clients* is "optional" or "required": client certificates of this authority."""
        made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        made.load_cert_chain(self.certificate(host, days=days))
        if clients:
            made.load_verify_locations(self.ca)
            made.verify_mode = ssl.CERT_REQUIRED if clients == "required" else ssl.CERT_OPTIONAL
        return made
