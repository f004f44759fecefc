"""What a person may say about a mounted web directory, and what the source names."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from pyfusekit.core import Duration, Mode, MountError, Secret, Size, Url, option


@dataclass(frozen=True)
class HttpOptions:
    """The options of ``pyfusekit mount http``. Credentials go to the source's own origin and nowhere else."""

    single: bool | None = option(None, help="The URL is one file, not a directory; found out when not given.", group="Server")
    max_connections: int = option(8, help="Requests to one host at a time.", group="Server")
    deadline: Duration = option(
        Duration(60.0),
        help="How long a request may take with its retries; 8 s a MiB of data are added.",
        group="Server",
    )
    connect_timeout: Duration = option(Duration(10.0), help="How long to wait for a connection.", group="Server")
    idle_timeout: Duration = option(Duration(30.0), help="How long to wait for the next bytes.", group="Server")
    norange: str = option(
        "spool",
        help="A server that ignores Range: spool the file to the cache once, stream it to who reads in order, or fail.",
        group="Server",
        choices=("spool", "stream", "fail"),
    )
    spool_size: Size = option(Size(4 << 30), help="Largest file that is spooled; EFBIG beyond.", group="Server")
    external_links: bool = option(False, help="Show links to other hosts; no credentials are sent there.", group="Server")
    redirects: int = option(10, help="Redirects followed, one after the other.", group="Server")

    user: str = option("", help="User for basic authentication; the URL may name one too.", group="Access", env="HTTP_USER")
    password: Secret | None = option(None, help="Password for --user.", group="Access")
    bearer_token: Secret | None = option(None, help="Token for Authorization: Bearer.", group="Access")
    token_command: str = option("", help="Command whose output is the bearer token; run again on 401.", group="Access")
    netrc: bool = option(True, help="Take user and password from ~/.netrc, or the file $NETRC names.", group="Access")
    cookie_jar: str = option("", help="File of cookies in Netscape's format.", group="Access")
    client_cert: str = option("", help="File with the client's certificate (PEM).", group="Access")
    client_key: str = option("", help="File with its key, when it is not in the same one.", group="Access")
    ca_file: str = option(
        "", help="File of certificates to trust instead of the system's.", group="Access", env="SSL_CERT_FILE"
    )
    insecure: bool = option(False, help="Do not verify the server's certificate.", group="Access")
    header: str = option("", help="Headers to send to the source, one a line: Name: value.", group="Access")
    proxy: Url | None = option(None, help="Proxy; http_proxy, https_proxy and no_proxy otherwise.", group="Access")

    rw: bool = option(False, help="Write by WebDAV: PUT, MKCOL, MOVE, DELETE.", group="Writing")
    staging_dir: str = option(
        "",
        help="Directory for what is written until the server has it; ~/.local/state/pyfusekit when not given.",
        group="Writing",
    )

    metadata_ttl: Duration = option(Duration(60.0), help="How long names, sizes and times may be out of date.", group="Caching")
    negative_ttl: Duration = option(Duration(10.0), help="How long it is believed that a name does not exist.", group="Caching")
    offline: str = option(
        "auto",
        help="Serve cached listings and data when the host is gone; always (ask nobody), or never.",
        group="Caching",
        choices=("auto", "always", "never"),
    )
    readahead: Size = option(
        Size(32 << 20), help="Most bytes to fetch ahead of a sequential reader, for each file; 0 is none.", group="Caching"
    )
    memory_limit: Size = option(Size(48 << 20), help="Memory for data on its way, of all files together.", group="Caching")
    cache_dir: str = option("", help="Directory of the disk cache; ~/.cache/pyfusekit when not given.", group="Caching")
    cache_size: Size = option(Size(0), help="Disk cache for what was read, kept over restarts; 0 is none.", group="Caching")

    uid: int | None = option(None, help="Owner of everything; you, when not given.", group="Metadata")
    gid: int | None = option(None, help="Group of everything; yours, when not given.", group="Metadata")
    file_mode: Mode = option(Mode(0o444), help="Permissions of files; write permission is added by --rw.", group="Metadata")
    dir_mode: Mode = option(
        Mode(0o555), help="Permissions of directories; write permission is added by --rw.", group="Metadata"
    )


def parse_source(text: str | None) -> str:
    """Return the URL to mount, without a fragment; MountError when *text* is none."""
    try:
        parts = urlsplit(text or "")
        parts.port  # noqa: B018 - raises ValueError for a port that is none
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise MountError(
            f"{text!r} is no URL of a web server" if text else "no URL is given",
            kind="source-missing",
            remedy="write http://HOST/DIRECTORY/ or https://HOST/FILE",
        )
    return urlunsplit((parts.scheme, parts.netloc, parts.path or "/", parts.query, ""))


__all__ = ["HttpOptions", "parse_source"]
