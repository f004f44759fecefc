"""Real web servers on loopback: nginx, Apache, lighttpd, Caddy and Python's, each a child with a configuration of ours.

``with Nginx(root, autoindex="json") as server:`` serves the directory *root* at ``server.url``, which ends in a slash.
``server.requests()`` are the requests so far, as "METHOD /path". A program that is missing raises with the line that
installs it: the tests that need it fail, they are not skipped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from hashlib import sha1
from pathlib import Path
from typing import ClassVar

PACKAGES = "nginx libnginx-mod-http-dav-ext apache2-bin media-types lighttpd lighttpd-mod-webdav caddy"
"""What Debian calls them all."""
NOBODY = 65534


def free_port() -> int:
    """Return a port nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A program that serves *root* while the ``with`` lasts; *auth* is a user and password it asks for."""

    program: ClassVar[str]
    packages: ClassVar[str]
    ready_seconds = 15.0

    def __init__(self, root: str | os.PathLike[str], *, auth: tuple[str, str] | None = None) -> None:
        self.root = Path(root).absolute()
        self.auth = auth
        self.port = 0
        self.scratch = Path()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of the root directory."""
        return f"http://127.0.0.1:{self.port}/"

    def command(self) -> list[str]:
        """Write the configuration to ``self.scratch`` and return what to run in the foreground."""
        raise NotImplementedError

    def found(self) -> str:
        """Return the program's path."""
        path = shutil.which(self.program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if path is None:
            raise RuntimeError(f"{self.program} is not installed; run: apt-get install {self.packages}")
        return path

    def __enter__(self) -> Server:
        self.found()
        self.scratch = Path(tempfile.mkdtemp(prefix=f"pyfusekit-{self.program.rpartition('/')[2]}-"))
        # Readable for a server that gives up root.
        self.scratch.chmod(0o777)
        try:
            # A port somebody took between our look and the server's ends it.
            if not any(self._start() for _ in range(3)):
                raise RuntimeError(f"{self.program} did not start:\n{self.log()}")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _start(self) -> bool:
        self.port = free_port()
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "TZ": "UTC",
            "LC_ALL": "C.UTF-8",
            "HOME": str(self.scratch),
            "XDG_DATA_HOME": str(self.scratch / "data"),
            "XDG_CONFIG_HOME": str(self.scratch / "config"),
        }
        with open(self.scratch / "output.log", "ab") as output:
            self._process = subprocess.Popen(
                # The kernel ends the server when a test run is killed.
                ["setpriv", "--pdeathsig", "TERM", *self.command()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=self.scratch,
                start_new_session=True,
            )
        limit = time.monotonic() + self.ready_seconds
        while time.monotonic() < limit and self._process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                # Another program may have taken the port: ours has ended, or will in a moment.
                time.sleep(0.02)
                if self._process.poll() is None:
                    return True
            time.sleep(0.01)
        self._end()
        return False

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def stop(self) -> None:
        """End the server and remove what it wrote, but not the directory it served."""
        self._end()
        if self.scratch != Path():
            shutil.rmtree(self.scratch, ignore_errors=True)
            self.scratch = Path()

    def log(self) -> str:
        """Return what the server printed and wrote to its error log."""
        files = (self.scratch / "output.log", self.scratch / "error.log")
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def requests(self) -> list[str]:
        """Return the requests so far, as "METHOD /path?query"; the server may write the last one a moment later."""
        file = self.scratch / "access.log"
        return file.read_text(errors="replace").splitlines() if file.exists() else []

    def write(self, name: str, text: str) -> str:
        """Write a file of the configuration and return its path."""
        path = self.scratch / name
        path.write_text(text)
        path.chmod(0o644)
        return str(path)

    def make(self, *names: str) -> None:
        """Make directories for the server to write in."""
        for name in names:
            (self.scratch / name).mkdir(exist_ok=True)
            (self.scratch / name).chmod(0o777)


class Nginx(Server):
    """nginx with *autoindex* html, json, xml or off; *exact* sizes in html; *dav* takes PROPFIND and writes."""

    program = "nginx"
    packages = "nginx libnginx-mod-http-dav-ext"

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        autoindex: str = "html",
        exact: bool = True,
        dav: bool = False,
        auth: tuple[str, str] | None = None,
        extra: str = "",
    ) -> None:
        super().__init__(root, auth=auth)
        self.autoindex = autoindex
        self.exact = exact
        self.dav = dav
        self.extra = extra
        """Lines for the location, such as "limit_rate 1m;"."""

    def command(self) -> list[str]:
        scratch = self.scratch
        self.make("body", "proxy", "fastcgi", "uwsgi", "scgi")
        modules = Path("/usr/lib/nginx/modules")
        listing = "autoindex off;" if self.autoindex == "off" else f"autoindex on; autoindex_format {self.autoindex};"
        lines = [listing, f"autoindex_exact_size {'on' if self.exact else 'off'};", self.extra]
        locks = ""
        if self.dav:
            locks = "dav_ext_lock_zone zone=locks:1m;"
            lines += [
                "dav_methods PUT DELETE MKCOL COPY MOVE; dav_access user:rw;",
                "dav_ext_methods PROPFIND OPTIONS LOCK UNLOCK; dav_ext_lock zone=locks; client_max_body_size 0;",
            ]
        if self.auth:
            users = self.write("users", f"{self.auth[0]}:{{PLAIN}}{self.auth[1]}\n")
            lines.append(f"auth_basic test; auth_basic_user_file {users};")
        load = f"load_module {modules}/ngx_http_dav_ext_module.so;" if self.dav else ""
        config = self.write(
            "nginx.conf",
            f"""{load}
daemon off; master_process off; {"user root;" if os.geteuid() == 0 else ""}
pid {scratch}/nginx.pid; error_log {scratch}/error.log;
events {{ worker_connections 256; }}
http {{
  default_type application/octet-stream; types {{ text/html html; text/plain txt; application/json json; }}
  log_format short escape=none '$request_method $request_uri'; access_log {scratch}/access.log short;
  client_body_temp_path {scratch}/body; proxy_temp_path {scratch}/proxy; fastcgi_temp_path {scratch}/fastcgi;
  uwsgi_temp_path {scratch}/uwsgi; scgi_temp_path {scratch}/scgi; {locks}
  server {{ listen 127.0.0.1:{self.port}; charset utf-8;
    location / {{ root {json.dumps(str(self.root))};
      {" ".join(lines)} }} }}
}}
""",
        )
        return [self.found(), "-e", str(scratch / "error.log"), "-p", str(scratch), "-c", config]


class Apache(Server):
    """Apache with *style* plain, fancy or table; *dav*: the root also takes PROPFIND and writes."""

    program = "apache2"
    packages = "apache2-bin media-types"
    STYLES: ClassVar[dict[str, str]] = {"plain": "", "fancy": "FancyIndexing", "table": "FancyIndexing HTMLTable"}
    MODULES: ClassVar[tuple[str, ...]] = ("mpm_event", "authn_core", "authz_core", "mime", "dir", "autoindex")

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        style: str = "table",
        dav: bool = False,
        auth: tuple[str, str] | None = None,
        extra: str = "",
    ) -> None:
        super().__init__(root, auth=auth)
        self.style = style
        self.dav = dav
        self.extra = extra

    def command(self) -> list[str]:
        scratch = self.scratch
        self.make("dav")
        modules = list(self.MODULES)
        lines = ["Require all granted", f"Options Indexes\nIndexOptions Charset=UTF-8 {self.STYLES[self.style]}", self.extra]
        if self.dav:
            modules += ["dav", "dav_fs"]
            lines.append("Dav On")
        if self.auth:
            modules += ["auth_basic", "authn_file", "authz_user"]
            digest = b64encode(sha1(self.auth[1].encode()).digest()).decode()
            users = self.write("users", f"{self.auth[0]}:{{SHA}}{digest}\n")
            lines[0] = f'AuthType Basic\nAuthName test\nAuthBasicProvider file\nAuthUserFile "{users}"\nRequire valid-user'
        load = "\n".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in modules)
        body = "\n".join(lines)
        config = self.write(
            "apache.conf",
            f"""ServerRoot "{scratch}"
ServerName 127.0.0.1
Listen 127.0.0.1:{self.port}
PidFile "{scratch}/apache.pid"
ErrorLog "{scratch}/error.log"
{load}
Mutex file:{scratch} default
StartServers 1
ThreadsPerChild 25
MaxRequestWorkers 50
{f'DavLockDB "{scratch}/dav/locks"' if self.dav else ""}
TypesConfig {"/etc/mime.types" if os.path.exists("/etc/mime.types") else "/dev/null"}
LogFormat "%m %U%q" short
CustomLog "{scratch}/access.log" short
AllowEncodedSlashes NoDecode
DocumentRoot "{self.root}"
AddIcon /icons/folder.gif ^^DIRECTORY^^
AddIconByType (TXT,/icons/text.gif) text/*
DefaultIcon /icons/unknown.gif
<Directory "{self.root}">
{body}
</Directory>
""",
        )
        # Apache gives up root, and the directories of tests are closed to others: it keeps the right to pass them.
        rights = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        rights += ["--inh-caps=+dac_override,+dac_read_search,+fowner", "--ambient-caps=+dac_override,+dac_read_search,+fowner"]
        # The kernel forgets the signal when the ids change.
        rights += ["--pdeathsig", "TERM"]
        return [*(rights if os.geteuid() == 0 else ()), self.found(), "-f", config, "-DFOREGROUND"]


class Lighttpd(Server):
    """lighttpd with its listing; *dav*: mod_webdav, which also writes."""

    program = "lighttpd"
    packages = "lighttpd lighttpd-mod-webdav"

    def __init__(
        self, root: str | os.PathLike[str], *, dav: bool = False, auth: tuple[str, str] | None = None, extra: str = ""
    ) -> None:
        super().__init__(root, auth=auth)
        self.dav = dav
        self.extra = extra

    def command(self) -> list[str]:
        self.make("uploads")
        modules = ["mod_dirlisting", "mod_accesslog"]
        lines = []
        if self.dav:
            modules.append("mod_webdav")
            lines.append(f'webdav.activate = "enable"\nwebdav.sqlite-db-name = "{self.scratch}/uploads/locks.db"')
        if self.auth:
            modules += ["mod_auth", "mod_authn_file"]
            users = self.write("users", f"{self.auth[0]}:{self.auth[1]}\n")
            lines.append(
                f'auth.backend = "plain"\nauth.backend.plain.userfile = "{users}"\n'
                'auth.require = ("/" => ("method" => "basic", "realm" => "test", "require" => "valid-user"))'
            )
        body = "\n".join(lines)
        config = self.write(
            "lighttpd.conf",
            f"""server.modules = ({", ".join(f'"{name}"' for name in modules)})
server.document-root = {json.dumps(str(self.root))}
server.bind = "127.0.0.1"
server.port = {self.port}
server.errorlog = "{self.scratch}/error.log"
server.upload-dirs = ("{self.scratch}/uploads")
accesslog.filename = "{self.scratch}/access.log"
accesslog.format = "%m %U%q"
dir-listing.activate = "enable"
dir-listing.hide-dotfiles = "disable"
dir-listing.encoding = "utf-8"
mimetype.assign = (".txt" => "text/plain", "" => "application/octet-stream")
{body}
{self.extra}
""",
        )
        return [self.found(), "-D", "-f", config]

    def requests(self) -> list[str]:
        # lighttpd keeps its log back for seconds; SIGHUP is not for servers in the foreground.
        raise NotImplementedError("lighttpd's access log comes late")


class Caddy(Server):
    """Caddy's file_server with browse: HTML, or JSON when Accept says so."""

    program = "caddy"
    packages = "caddy"

    def __init__(self, root: str | os.PathLike[str]) -> None:
        # No auth: Caddy takes a second for the hash of a password, at each request.
        super().__init__(root)

    def command(self) -> list[str]:
        routes: list[dict[str, object]] = [{"handler": "file_server", "root": str(self.root), "browse": {}, "hide": []}]
        server = {
            "listen": [f"127.0.0.1:{self.port}"],
            "routes": [{"handle": routes}],
            "automatic_https": {"disable": True},
            "logs": {"default_logger_name": "access"},
        }
        log = {
            "writer": {"output": "file", "filename": str(self.scratch / "access.json")},
            "include": ["http.log.access"],
            "encoder": {"format": "json"},
        }
        config = {
            "admin": {"disabled": True, "config": {"persist": False}},
            "logging": {"logs": {"access": log}},
            "apps": {"http": {"servers": {"files": server}}},
        }
        return [self.found(), "run", "--config", self.write("caddy.json", json.dumps(config))]

    def requests(self) -> list[str]:
        file = self.scratch / "access.json"
        lines = file.read_text().splitlines() if file.exists() else []
        asked = [json.loads(line)["request"] for line in lines]
        return [f"{one['method']} {one['uri']}" for one in asked]


class PythonServer(Server):
    """``python -m http.server``."""

    program = sys.executable
    packages = "python3"

    def command(self) -> list[str]:
        # utf8=1 is how a person's locale has it; names come as they are on the disk.
        module = ["-X", "utf8", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(self.root), str(self.port)]
        return [self.found(), *module]

    def requests(self) -> list[str]:
        lines = self.log().splitlines()
        return [line.split('"')[1].rpartition(" ")[0] for line in lines if line.count('"') >= 2]


__all__ = ["PACKAGES", "Apache", "Caddy", "Lighttpd", "Nginx", "PythonServer", "Server", "free_port"]
