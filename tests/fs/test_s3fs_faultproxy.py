"""The fault proxy does to requests and answers what it is told, and nothing else; SeaweedFS is behind it."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError
from faultproxy import CONDITIONS, Fault, FaultProxy
from seaweed import SeaweedServer

BODY = bytes(range(256)) * 2048
"""512 KiB."""


@pytest.fixture
def proxy(seaweed: SeaweedServer) -> Iterator[FaultProxy]:
    with FaultProxy(seaweed.url) as proxy:
        yield proxy


@pytest.fixture
def client(seaweed: SeaweedServer, proxy: FaultProxy) -> Any:
    return seaweed.client(proxy.url, attempts=1)


def get(client: Any, bucket: str, key: str = "f", **more: str) -> bytes:
    body: bytes = client.get_object(Bucket=bucket, Key=key, **more)["Body"].read()
    return body


def raw(proxy: FaultProxy, client: Any, bucket: str) -> tuple[bytes, str]:
    """Ask for the object f over a plain connection; return what came of its body, and how the connection ended."""
    url = urllib.parse.urlsplit(client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "f"}))
    got, end = b"", "closed"
    with socket.create_connection(("127.0.0.1", url.port or 80), timeout=20) as connection:
        connection.sendall(f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode())
        try:
            while piece := connection.recv(1 << 16):
                got += piece
        except ConnectionResetError:
            end = "reset"
    return got.partition(b"\r\n\r\n")[2], end


def test_without_faults_everything_passes_unchanged(client: Any, proxy: FaultProxy, seaweed_bucket: str) -> None:
    for key in ("f", "d/sp ace +&%?.txt", "\u65e5\u672c"):
        client.put_object(Bucket=seaweed_bucket, Key=key, Body=BODY, Metadata={"mode": "33188"})
        assert get(client, seaweed_bucket, key) == BODY
        assert get(client, seaweed_bucket, key, Range="bytes=5-9") == BODY[5:10]
        assert client.head_object(Bucket=seaweed_bucket, Key=key)["Metadata"] == {"mode": "33188"}
    listed = client.list_objects_v2(Bucket=seaweed_bucket)["Contents"]
    assert len(listed) == 3
    client.delete_object(Bucket=seaweed_bucket, Key="f")
    with pytest.raises(ClientError, match="NoSuchKey"):
        get(client, seaweed_bucket)
    assert proxy.count("PUT") == 3
    assert proxy.count("GET", rf"^/{seaweed_bucket}/d/sp ace \+&%\?\.txt$") == 2
    assert proxy.count("GET", query="list-type=2") == 1
    assert [seen.status for seen in proxy.seen if seen.method == "DELETE"] == [204]


def test_many_connections_at_once_are_counted(client: Any, proxy: FaultProxy, seaweed_bucket: str) -> None:
    client.put_object(Bucket=seaweed_bucket, Key="f", Body=BODY)
    fault = proxy.add(Fault("GET", times=8, hold=True))
    with ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(get, client, seaweed_bucket) for _ in range(8)]
        proxy.wait_for("GET", times=8)
        assert not any(read.done() for read in reads)
        fault.release()
        assert all(read.result() == BODY for read in reads)
    assert proxy.most_under_way == 8


def test_status_is_answered_as_often_as_said_to_what_matches_only(client: Any, proxy: FaultProxy, seaweed_bucket: str) -> None:
    fault = proxy.add(Fault("PUT", r"/f$", status=503, code="SlowDown", times=2, skip=1))
    client.put_object(Bucket=seaweed_bucket, Key="f", Body=b"first")
    for _ in range(2):
        client.put_object(Bucket=seaweed_bucket, Key="g", Body=b"other")
        with pytest.raises(ClientError, match="SlowDown") as info:
            client.put_object(Bucket=seaweed_bucket, Key="f", Body=BODY)
        assert info.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
    assert get(client, seaweed_bucket) == b"first"
    client.put_object(Bucket=seaweed_bucket, Key="f", Body=b"second")
    assert fault.met == 2
    assert [seen.status for seen in proxy.seen if seen.path.endswith("/f") and seen.method == "PUT"] == [200, 503, 503, 200]


def test_head_is_answered_without_a_body_and_the_connection_goes_on(
    client: Any, proxy: FaultProxy, seaweed_bucket: str
) -> None:
    client.put_object(Bucket=seaweed_bucket, Key="f", Body=b"x")
    proxy.add(Fault("HEAD", status=403, code="AccessDenied"))
    with pytest.raises(ClientError, match="403"):
        client.head_object(Bucket=seaweed_bucket, Key="f")
    assert client.head_object(Bucket=seaweed_bucket, Key="f")["ContentLength"] == 1


def test_good_status_with_an_error_in_the_body_is_said_before_or_after_the_write(
    proxy: FaultProxy, client: Any, seaweed_bucket: str, seaweed: SeaweedServer
) -> None:
    for apply, there in ((False, 0), (True, 1)):
        fault = proxy.add(Fault("PUT", status=200, code="InternalError", apply=apply))
        with pytest.raises(ClientError, match="InternalError") as info:  # botocore makes a 500 of it
            client.put_object(Bucket=seaweed_bucket, Key="f", Body=b"x")
        assert info.value.response["ResponseMetadata"]["HTTPHeaders"]["x-amz-request-id"] == "FAULT1"
        assert proxy.seen[-1].status == 200
        assert seaweed.client().list_objects_v2(Bucket=seaweed_bucket)["KeyCount"] == there
        assert fault.met == 1


def test_lost_answer_is_of_a_write_that_was_done(
    proxy: FaultProxy, client: Any, seaweed_bucket: str, seaweed: SeaweedServer
) -> None:
    for fault, there in ((Fault("PUT", reset=True), 0), (Fault("PUT", lose=True), 1)):
        proxy.add(fault)
        with pytest.raises((ConnectionClosedError, ClientError)):
            client.put_object(Bucket=seaweed_bucket, Key="f", Body=BODY)
        assert seaweed.client().list_objects_v2(Bucket=seaweed_bucket)["KeyCount"] == there


@pytest.mark.parametrize("place", [0, 1, 100_000, len(BODY) - 1])
def test_body_is_cut_reset_or_stalled_where_it_was_said(
    place: int, proxy: FaultProxy, client: Any, seaweed_bucket: str
) -> None:
    client.put_object(Bucket=seaweed_bucket, Key="f", Body=BODY)
    proxy.add(Fault("GET", truncate=place))
    assert raw(proxy, client, seaweed_bucket) == (BODY[:place], "closed")
    proxy.add(Fault("GET", reset_at=place))
    assert raw(proxy, client, seaweed_bucket) == (BODY[:place], "reset")
    fault = proxy.add(Fault("GET", stall=place))
    body = client.get_object(Bucket=seaweed_bucket, Key="f")["Body"]
    got = body.read(place) if place else b""
    fault.release()
    assert got + body.read() == BODY


def test_one_byte_of_the_answer_is_changed(proxy: FaultProxy, client: Any, seaweed_bucket: str) -> None:
    client.put_object(Bucket=seaweed_bucket, Key="f", Body=BODY)
    proxy.add(Fault("GET", flip=300_000))
    wrong = get(client, seaweed_bucket)
    assert [index for index in range(len(BODY)) if wrong[index] != BODY[index]] == [300_000]
    assert get(client, seaweed_bucket) == BODY


def test_stripped_headers_are_passed_over_by_a_store_that_checks_signatures(
    proxy: FaultProxy, client: Any, seaweed_bucket: str
) -> None:
    client.put_object(Bucket=seaweed_bucket, Key="sp ace/\u00e9", Body=BODY)
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=seaweed_bucket, Key="sp ace/\u00e9", Body=b"x", IfNoneMatch="*")
    proxy.add(Fault(strip=(*CONDITIONS, "range"), times=float("inf")))
    whole = client.get_object(Bucket=seaweed_bucket, Key="sp ace/\u00e9", Range="bytes=5-9", IfMatch='"other"')
    assert (whole["ResponseMetadata"]["HTTPStatusCode"], whole["Body"].read()) == (200, BODY)
    client.put_object(Bucket=seaweed_bucket, Key="sp ace/\u00e9", Body=b"x", IfNoneMatch="*", Metadata={"a": "b  c"})
    assert client.list_objects_v2(Bucket=seaweed_bucket, Prefix="sp ace/", Delimiter="/")["Contents"][0]["Size"] == 1


def test_answers_headers_are_changed_and_other_words_put_in_its_place(
    proxy: FaultProxy, client: Any, seaweed_bucket: str
) -> None:
    client.put_object(Bucket=seaweed_bucket, Key="f", Body=b"x")
    proxy.add(Fault("HEAD", headers={"ETag": '"other"', "Last-Modified": ""}))
    answer = client.head_object(Bucket=seaweed_bucket, Key="f")
    assert answer["ETag"] == '"other"'
    assert "LastModified" not in answer
    proxy.add(Fault("GET", status=200, body=b"<html>It works!</html>", headers={"Server": "other"}))
    assert get(client, seaweed_bucket) == b"<html>It works!</html>"


def test_proxy_that_is_down_breaks_every_connection(proxy: FaultProxy, client: Any, seaweed_bucket: str) -> None:
    proxy.down = True
    with pytest.raises(ConnectionClosedError):
        client.list_buckets()
    proxy.down = False
    assert client.list_buckets()["Buckets"]


def test_latency_is_added_to_each_request(proxy: FaultProxy, client: Any) -> None:
    client.list_buckets()
    proxy.latency = 0.2
    before = time.monotonic()
    client.list_buckets()
    assert time.monotonic() - before >= 0.2


def test_cleared_proxy_has_no_faults_and_lets_go_what_it_held(proxy: FaultProxy, client: Any) -> None:
    proxy.add(Fault(times=float("inf"), status=500))
    proxy.add(Fault(hold=True))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.list_buckets)
        proxy.wait_for("GET")
        proxy.clear()
        assert answer.result()["Buckets"] is not None
    assert proxy.seen == []
    client.list_buckets()


def test_bodies_in_chunks_keep_their_bytes_both_ways() -> None:
    class Echo(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(data), 1000):
                piece = data[start : start + 1000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with FaultProxy(f"http://127.0.0.1:{server.server_port}") as proxy:
            connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=20)
            for data in (b"", b"x", BODY):
                pieces = iter([data[:7], data[7:]]) if data else iter([b""])
                connection.request("POST", "/", body=(piece for piece in pieces if piece), encode_chunked=True)
                assert connection.getresponse().read() == data
            connection.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_program_serves_until_its_input_ends(seaweed: SeaweedServer) -> None:
    program = Path(__file__).with_name("faultproxy.py")
    process = subprocess.Popen(
        [sys.executable, program, seaweed.url, "0.01"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    with pytest.raises(urllib.error.HTTPError) as info:
        urllib.request.urlopen(url, timeout=20)
    assert info.value.code == 403
    info.value.close()
    process.communicate(timeout=20)
    assert process.returncode == 0
