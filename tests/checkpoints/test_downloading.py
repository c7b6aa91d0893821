"""Downloads from a server of this machine, which does what servers do at their worst."""

import hashlib
import io
import shutil
import threading
import time
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from mm_vitbackbones import limits
from mm_vitbackbones.checkpoints import CheckpointError, UnsafeCheckpointError, downloading, read_checkpoint
from mm_vitbackbones.errors import DownloadError

Answer = namedtuple("Answer", ["data", "status", "headers", "pause"], defaults=[b"", 200, {}, 0])


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Its address, what it answers by path, and what it was asked for. Plain http is allowed."""
    answers, asked = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            answer = answers.get(self.path, Answer(status=404))
            self.send_response(answer.status)
            for name, value in {"Content-Length": len(answer.data), **answer.headers}.items():
                if value is not None:
                    self.send_header(name, str(value))
            self.end_headers()
            for begin in range(0, len(answer.data), 500 if answer.pause else 2**30):
                self.wfile.write(answer.data[begin : begin + (500 if answer.pause else 2**30)])
                time.sleep(answer.pause)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = False  # closing waits for them
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(downloading.PLAIN_HTTP, "1")
    yield namedtuple("Server", ["address", "answers", "asked"])(f"http://127.0.0.1:{http.server_port}", answers, asked)
    http.shutdown()
    thread.join()
    http.server_close()


def checkpoint(value=1.0):
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.full((2000,), value)}}, buffer)
    return buffer.getvalue()


def cached(tmp_path):
    return sorted(path for path in (tmp_path / "home").rglob("*") if path.is_file())


def refused(url, message, kind=CheckpointError):
    with pytest.raises(kind, match=message) as caught:
        read_checkpoint(url)
    assert "\n" not in str(caught.value)
    assert url in str(caught.value)


def test_a_file_is_fetched_once_and_kept_whole(server, tmp_path, capsys):
    server.answers["/net.pth"] = Answer(checkpoint())
    for _ in range(2):
        assert read_checkpoint(f"{server.address}/net.pth")["state_dict"]["a"][0] == 1
    assert server.asked == ["/net.pth"]
    (path,) = cached(tmp_path)
    assert path.read_bytes() == checkpoint()
    assert f"downloading {server.address}/net.pth (MB): 1/1" in capsys.readouterr().err


def test_a_server_without_a_length_is_read_to_its_end(server):
    server.answers["/net.pth"] = Answer(checkpoint(), headers={"Content-Length": None})
    assert read_checkpoint(f"{server.address}/net.pth")["state_dict"]["a"][0] == 1


@pytest.mark.parametrize("damage", ["truncated", "other bytes", "empty", "a page"])
def test_a_bad_file_in_the_cache_is_fetched_again(server, tmp_path, damage):
    name = f"/net-{hashlib.sha256(checkpoint()).hexdigest()[:8]}.pth" if damage == "other bytes" else "/net.pth"
    server.answers[name] = Answer(checkpoint())
    read_checkpoint(server.address + name)
    (path,) = cached(tmp_path)
    bad = {"truncated": checkpoint()[:-100], "other bytes": checkpoint(2.0), "empty": b"", "a page": b"<html>"}[damage]
    path.write_bytes(bad)
    assert read_checkpoint(server.address + name)["state_dict"]["a"][0] == 1
    assert server.asked == [name, name]
    assert cached(tmp_path) == [path]
    path.write_bytes(bad)
    server.answers.clear()
    refused(server.address + name, "404.*by hand", DownloadError)
    assert path.read_bytes() == bad  # what is there stays


def test_a_download_that_stops_early_is_not_kept(server, tmp_path):
    server.answers["/net.pth"] = Answer(checkpoint()[:500], headers={"Content-Length": 10_000})
    refused(f"{server.address}/net.pth", r"the server stopped after 500 of 10,000 bytes|IncompleteRead", DownloadError)
    assert not cached(tmp_path)


def test_a_silent_server_ends_in_one_line(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloading, "TIMEOUT", 0.2)
    server.answers["/net.pth"] = Answer(checkpoint()[:1000], pause=0.6)
    refused(f"{server.address}/net.pth", "the server sent nothing for 0.2 seconds", DownloadError)
    assert not cached(tmp_path)


def test_a_server_that_drips_ends_in_one_line(server, monkeypatch):
    monkeypatch.setattr(downloading, "TIMEOUT", 0.2)
    monkeypatch.setattr(downloading, "SLOWEST", 100_000)
    server.answers["/net.pth"] = Answer(checkpoint() * 2, pause=0.02)
    refused(f"{server.address}/net.pth", "sends less than 100,000 bytes a second", DownloadError)


@pytest.mark.parametrize("length", [True, False])
def test_a_file_over_the_limit_is_not_fetched(server, tmp_path, monkeypatch, length):
    monkeypatch.setattr(limits, "DOWNLOAD", limits.Limit(5000, "bytes"))
    server.answers["/net.pth"] = Answer(checkpoint(), headers={} if length else {"Content-Length": None})
    refused(f"{server.address}/net.pth", r"has at least \S+ bytes, and the limit is 5,000.*MM_VITBACKBONES_LIMITS=10")
    assert not cached(tmp_path)
    monkeypatch.setenv(limits.SWITCH, "10")
    read_checkpoint(f"{server.address}/net.pth")


def test_a_full_disk_is_known_before(server, tmp_path, monkeypatch):
    server.answers["/net.pth"] = Answer(checkpoint())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(100))
    refused(f"{server.address}/net.pth", r"bytes, and only 100 are free", DownloadError)
    assert not cached(tmp_path)


def test_plain_http_needs_its_switch(server, monkeypatch):
    monkeypatch.delenv(downloading.PLAIN_HTTP)
    server.answers["/net.pth"] = Answer(checkpoint())
    refused(f"{server.address}/net.pth", r"only https is safe.*MM_VITBACKBONES_PLAIN_HTTP=1 allows http")
    assert not server.asked


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/net.pth", "file:///etc/passwd", "data:,x", "http://127.0.0.1:9/a"])
def test_a_redirect_to_something_else_than_https_is_not_followed(server, tmp_path, monkeypatch, target):
    server.answers["/net.pth"] = Answer(status=302, headers={"Location": target})
    if target.startswith("http:"):
        check = downloading.check_scheme
        monkeypatch.setattr(  # the first address stands for one of https
            downloading,
            "check_scheme",
            lambda url, origin="": (
                monkeypatch.delenv(downloading.PLAIN_HTTP, False) or (check(url, origin) if origin else None)
            ),
        )
    refused(f"{server.address}/net.pth", rf"(?i){target}|not allowed")
    assert not cached(tmp_path)


def test_a_redirect_to_an_allowed_address_is_followed(server):
    server.answers["/a.pth"] = Answer(status=302, headers={"Location": "/b.pth"})
    server.answers["/b.pth"] = Answer(checkpoint())
    assert read_checkpoint(f"{server.address}/a.pth")["state_dict"]["a"][0] == 1
    assert server.asked == ["/a.pth", "/b.pth"]


def test_redirects_in_a_circle_end(server):
    server.answers["/a.pth"] = Answer(status=302, headers={"Location": "/a.pth"})
    refused(f"{server.address}/a.pth", "302", DownloadError)


def test_other_schemes_are_not_fetched(tmp_path):
    refused("ftp://127.0.0.1/net.pth", r"not fetched, as ftp:// is no kind of address: give an https address")


def test_an_unsafe_download_is_refused_and_not_kept(server, tmp_path):
    from helpers.attacks import zipped

    zipped(tmp_path / "bad.pth", b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00x\x85R.")
    server.answers["/net.pth"] = Answer((tmp_path / "bad.pth").read_bytes())
    refused(f"{server.address}/net.pth", r"asks for a call of (os|posix)\.system", UnsafeCheckpointError)
    assert not cached(tmp_path)
