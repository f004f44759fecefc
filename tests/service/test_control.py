from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from commandline import NOBODY, REPOSITORY

from pyfusekit.service import control, procs
from pyfusekit.service.exits import ACCESS, Failure

MINOR = 4711


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of sockets is a private one, with a path too long for a socket address."""
    with tempfile.TemporaryDirectory(prefix="pyfusekit-control-", dir="/tmp") as top:
        folder = Path(top) / ("x" * 120) / "pyfusekit"
        folder.parent.mkdir()
        monkeypatch.setattr(control, "directories", lambda uid: [str(folder)])
        yield folder


def answers(request: Mapping[str, Any]) -> dict[str, Any]:
    if request.get("raise"):
        raise RuntimeError("no luck")
    return {"pid": os.getpid(), "given": request.get("given")}


@pytest.fixture
async def server(place: Path) -> AsyncIterator[control.ControlServer]:
    state = {"pid": os.getpid(), "start_time": procs.start_time(os.getpid())}
    async with control.ControlServer(MINOR, state, {"status": answers}) as made:
        yield made


async def ask(place: Path, message: Mapping[str, Any], seconds: float = 5) -> dict[str, Any]:
    return await asyncio.to_thread(control.ask, str(place), MINOR, message, seconds)


async def test_a_request_is_answered_and_the_peer_is_known(server: control.ControlServer, place: Path) -> None:
    answer = await ask(place, {"cmd": "status", "given": "ü\udcff\n"})
    assert answer == {"ok": True, "pid": os.getpid(), "given": "ü\udcff\n", "peer": os.getpid()}


async def test_one_connection_takes_many_requests(server: control.ControlServer, place: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=await asyncio.to_thread(control._connected, str(place), MINOR, 5))
    writer.write(b'{"cmd": "status", "given": 1}\n{"cmd": "status", "given": 2}\n')
    assert [json.loads(await reader.readline())["given"] for _ in range(2)] == [1, 2]
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"what\n", "not JSON"),
        (b"\xff\n", "not JSON"),
        (b"[]\n", "no such command"),
        (b"{}\n", "no such command"),
        (b'{"cmd": ["status"]}\n', "no such command"),
        (b'{"cmd": "destroy"}\n', "no such command: 'destroy'"),
        (b'{"cmd": "status", "raise": true}\n', "RuntimeError: no luck"),
    ],
)
async def test_what_cannot_be_answered_gets_an_error_and_the_connection_lives(
    server: control.ControlServer, place: Path, line: bytes, error: str
) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=await asyncio.to_thread(control._connected, str(place), MINOR, 5))
    writer.write(line)
    answer = json.loads(await reader.readline())
    assert answer["ok"] is False
    assert error in answer["error"]
    writer.write(b'{"cmd": "status"}\n')
    assert json.loads(await reader.readline())["ok"] is True
    writer.close()
    await writer.wait_closed()


async def test_a_line_without_end_is_cut_off(
    server: control.ControlServer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await asyncio.to_thread(control._connected, str(place), MINOR, 10)
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    writer.write(b"x" * (control.MAX_LINE + 2))
    # The server closes with our bytes unread: the rest of the write, or the read, is refused.
    said = b"?"
    with contextlib.suppress(ConnectionError):
        await writer.drain()
        said = await reader.read()
    assert said in (b"", b"?")
    writer.close()
    assert (await ask(place, {"cmd": "status"}))["ok"]


async def test_another_user_is_not_answered(server: control.ControlServer, place: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    for folder in (place, *place.parents[:2]):  # up to the one made for this test
        folder.chmod(0o755)
    (place / f"{MINOR}.sock").chmod(0o777)
    script = (
        "import os, socket, sys\ns = socket.socket(socket.AF_UNIX)\nos.chdir(sys.argv[1])\n"
        f's.connect("{MINOR}.sock")\ntry:\n s.sendall(b\'{{"cmd": "status"}}\\n\')\n print(s.recv(100))\n'
        "except ConnectionError: print(b'')"
    )
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", sys.executable, "-c", script, str(place)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=20)
    assert done.stdout == "b''\n", done.stderr
    assert (await ask(place, {"cmd": "status"}))["ok"]


async def test_the_directory_is_private_and_nothing_is_left_in_it(place: Path) -> None:
    async with control.ControlServer(MINOR, {"pid": 1}, {}):
        assert stat.S_IMODE(os.stat(place).st_mode) == 0o700
        assert sorted(os.listdir(place)) == [f"{MINOR}.json", f"{MINOR}.sock"]
        assert control.read_state(str(place), MINOR) == {"pid": 1}
    assert os.listdir(place) == []


async def test_a_socket_left_behind_is_replaced(place: Path) -> None:
    os.mkdir(place, mode=0o700)
    left = socket.socket(socket.AF_UNIX)
    here = os.open(place, os.O_PATH)
    left.bind(f"/proc/self/fd/{here}/{MINOR}.sock")
    os.close(here)
    left.close()
    async with control.ControlServer(MINOR, {}, {"status": answers}):
        assert (await ask(place, {"cmd": "status"}))["ok"]


async def test_sweeping_removes_the_dead_and_spares_the_living(server: control.ControlServer, place: Path) -> None:
    here = os.open(place, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"/proc/self/fd/{here}/1.sock")
    os.close(here)
    (place / "1.json").write_text("{}")
    (place / "2.json").write_text('{"pid": 4000000, "start_time": 1}')
    (place / "3.json").write_text("not json")
    (place / "4.json").write_text(json.dumps({"pid": os.getpid(), "start_time": procs.start_time(os.getpid())}))
    (place / "5.json").write_text(json.dumps({"pid": os.getpid(), "start_time": 1}))
    (place / "notes.txt").write_text("keep")
    await asyncio.to_thread(control.sweep, str(place))
    assert sorted(os.listdir(place)) == ["4.json", f"{MINOR}.json", f"{MINOR}.sock", "notes.txt"]


async def test_a_command_may_wait_and_others_are_answered_meanwhile(place: Path) -> None:
    go = asyncio.Event()

    async def slow(request: Mapping[str, Any]) -> dict[str, Any]:
        await go.wait()
        return {"slow": True}

    async with control.ControlServer(MINOR, {}, {"slow": slow, "status": answers}):
        waiting = asyncio.create_task(ask(place, {"cmd": "slow"}))
        assert (await ask(place, {"cmd": "status"}))["ok"]
        assert not waiting.done()
        go.set()
        assert (await waiting)["slow"] is True


async def test_the_end_gives_a_command_its_answer(place: Path) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def farewell(request: Mapping[str, Any]) -> dict[str, Any]:
        begun.set()
        await go.wait()
        return {"over": True}

    async with control.ControlServer(MINOR, {}, {"farewell": farewell}):
        waiting = asyncio.create_task(ask(place, {"cmd": "farewell"}))
        await begun.wait()
        go.set()
    assert (await waiting)["over"] is True


async def test_the_end_does_not_wait_for_a_command_that_never_answers(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()

    async def never(request: Mapping[str, Any]) -> dict[str, Any]:
        begun.set()
        await asyncio.Event().wait()
        return {}

    monkeypatch.setattr(control, "FAREWELL_S", 0.01)
    async with control.ControlServer(MINOR, {}, {"never": never}):
        waiting = asyncio.create_task(ask(place, {"cmd": "never"}))
        await begun.wait()
    with pytest.raises(control.NoAnswer):
        await waiting


async def test_a_server_that_goes_on_leaves_the_next_mount_of_its_number_alone(place: Path) -> None:
    async with control.ControlServer(MINOR, {"pid": 1}, {}):
        next_one = control.ControlServer(MINOR, {"pid": 2}, {"status": answers})
        await next_one.__aenter__()
    assert (await ask(place, {"cmd": "status"}))["ok"]
    await next_one.__aexit__()
    assert os.listdir(place) == []


async def test_what_is_no_json_is_a_bug_of_the_command(place: Path) -> None:
    async with control.ControlServer(MINOR, {}, {"odd": lambda request: {"x": b"bytes"}}):
        answer = await ask(place, {"cmd": "odd"})
    assert "TypeError" in answer["error"]


def test_nobody_there_is_no_answer(place: Path) -> None:
    with pytest.raises(control.NoAnswer) as caught:
        control.ask(str(place), MINOR, {"cmd": "status"}, 1)
    assert caught.value.pid is None


def test_a_server_that_says_nothing_is_named(place: Path) -> None:
    place.mkdir(mode=0o700)
    here = os.open(place, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"/proc/self/fd/{here}/{MINOR}.sock")
        silent.listen()
        with pytest.raises(control.NoAnswer) as caught:
            control.ask(str(place), MINOR, {"cmd": "status"}, 0.05)
    os.close(here)
    assert caught.value.pid == os.getpid()


@pytest.mark.parametrize("said", [b"", b"{", b"nonsense\n", b"[]\n", b"\xff\n"])
def test_an_answer_that_is_none_is_no_answer(place: Path, said: bytes) -> None:
    place.mkdir(mode=0o700)
    here = os.open(place, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(f"/proc/self/fd/{here}/{MINOR}.sock")
        odd.listen()

        def serve() -> None:
            connection, _ = odd.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(control.NoAnswer):
            control.ask(str(place), MINOR, {"cmd": "status"}, 5)
        thread.join()
    os.close(here)


def test_a_directory_that_others_could_have_made_is_refused(place: Path) -> None:
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    with pytest.raises(Failure) as caught:
        control.own_directory()
    assert caught.value.code == ACCESS
    assert "XDG_RUNTIME_DIR" in caught.value.remedy
    place.rmdir()
    place.symlink_to(place.parent)
    with pytest.raises(Failure):
        control.own_directory()


def test_root_and_users_have_their_own_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert control.directories(0) == ["/run/pyfusekit", "/tmp/pyfusekit-0"]
    assert control.directories(1000) == ["/run/user/1000/pyfusekit", "/tmp/pyfusekit-1000"]
    assert control.directories(7) == ["/run/user/7/pyfusekit", "/tmp/pyfusekit-7"]


def test_the_client_does_not_load_asyncio() -> None:
    script = "import sys, pyfusekit.service.control, pyfusekit.service.mounts\nprint('asyncio' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout == "False\n"
