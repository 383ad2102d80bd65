"""What a stranger may have opened, and what not; against real servers on this machine."""

import http.server
import socket
import threading
import time

import pytest
from test_stream_camera import Server, threads

from vismem.errors import SourceError
from vismem.streams import guard
from vismem.streams.guard import GuardedCamera, check_address
from vismem.streams.relay import Relay

HERE = {"127.0.0.1"}
NAMES = {
    "camera.example.com": ["93.184.215.14"],
    "two.example.com": ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"],
    "evil.example.com": ["127.0.0.1"],
    "half.example.com": ["93.184.215.14", "10.0.0.7"],
    "v6.example.com": ["fd00::1"],
    "mapped.example.com": ["::ffff:10.0.0.7"],
    "zone.example.com": ["fe80::1%eth0"],
    "xn--bro-hoa.example.com": ["93.184.215.14"],
    "nothing.example.com": [],
    "nas.lan": ["93.184.215.14"],
    "printer": ["93.184.215.14"],
}


@pytest.fixture
def names(monkeypatch):
    """Answers for names; numbers go to the system, which knows all their odd forms."""
    asked = []

    def resolve(host, port):
        asked.append(host)
        if host in NAMES:
            return tuple(NAMES[host])
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return tuple(entry[4][0] for entry in found)

    monkeypatch.setattr(guard, "_resolve", resolve)
    return asked


@pytest.fixture(autouse=True)
def no_leaked_threads():
    before = threads()  # tests that play a crash leave some
    yield
    assert threads() == before


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("rtsp://camera.example.com/live", "camera.example.com", 554),
        ("RTSPS://Camera.Example.COM./live", "camera.example.com", 322),
        ("http://user:p%40ss@camera.example.com:8080/a?b=c", "camera.example.com", 8080),
        ("  https://two.example.com/  ", "two.example.com", 443),
        ("http://93.184.215.14/", "93.184.215.14", 80),
        ("http://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]:8080/", None, 8080),
        ("http://bÜro.example.com/", "xn--bro-hoa.example.com", 80),
        ("http://[::ffff:93.184.215.14]/", None, 80),
        ("http://camera.example.com:80/", "camera.example.com", 80),
    ],
)
def test_public_addresses_may_be_opened(url, host, port, names):
    address = check_address(url)
    assert address.port == port and address.addresses
    assert host is None or address.host == host


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "127.255.255.254",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.1.",
        "0.0.0.0",
        "0",
        "10.0.0.7",
        "172.16.0.1",
        "192.168.1.1",
        "3232235777",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b::a00:7]",
        "[2002:7f00:1::]",
        "[2001:0:7f00:1::1]",
        "[fe80::1]",
        "[fe80::1%25eth0]",
        "[fd00::1]",
        "[ff02::1]",
        "[2001:db8::1]",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "a.localhost",
        "camera.local",
        "camera.local.",
        "metadata.google.internal",
        "nas.lan",
        "printer",
        "evil.example.com",
        "half.example.com",
        "v6.example.com",
        "mapped.example.com",
        "zone.example.com",
        "nothing.example.com",
        "ｌocalhost",
        "①②⑦.0.0.1",
        "127。0。0。1",
    ],
)
@pytest.mark.parametrize("url", ["rtsp://{}/live", "http://me:secret@{}:8080/?key=secret"])
def test_what_is_not_public_is_refused(host, url, names):
    with pytest.raises(SourceError) as caught:
        check_address(url.format(host))
    message = str(caught.value)
    assert "secret" not in message and "\n" not in message
    assert "not a public address" in message or "no address" in message or "no name" in message


@pytest.mark.parametrize(
    "url",
    [
        "",
        "camera.example.com",
        "file:///etc/passwd",
        "/etc/passwd",
        "0",
        "ftp://camera.example.com/",
        "rtmp://camera.example.com/",
        "udp://camera.example.com:5000",
        "concat:http://camera.example.com/",
        "gopher://camera.example.com/",
        "javascript:alert(1)",
        "http://",
        "http:///path",
        "http://me:secret@/path",
        "http://camera.example.com:0/",
        "http://camera.example.com:22/",
        "http://camera.example.com:25/",
        "http://camera.example.com:99999/",
        "http://camera.example.com:x/",
        "http://camera.example.com:-1/",
        "http://camera.example.com\\@127.0.0.1/",
        "http://camera.example.com/a b",
        "http://camera.example.com/\r\nHost: x",
        "http://camera.example.com\t/",
        "http://camera.example.com\x00/",
        "http://[::1/",
        "http://[zz]/",
        "http://-camera.example.com/",
        "http://" + "a" * 70 + ".com/",
        "http://camera.example.com/" + "a" * 3000,
        "http://a:secret@b:secret@[::1]/",
        None,
        7,
    ],
)
def test_what_is_no_address_is_refused(url, names):
    with pytest.raises(SourceError) as caught:
        check_address(url)
    message = str(caught.value)
    assert "secret" not in message and message.isprintable() and len(message) < 300


def test_a_user_in_front_is_not_the_host(names):
    with pytest.raises(SourceError, match="not a public"):
        check_address("http://camera.example.com@127.0.0.1/")
    assert check_address("http://127.0.0.1@camera.example.com/").host == "camera.example.com"


def test_hosts_that_are_allowed(names):
    for allow in ({"127.0.0.1"}, {"127.0.0.1."}, ["10.0.0.1", "127.0.0.1"]):
        assert check_address("http://127.0.0.1:22/", allow=allow).addresses == ("127.0.0.1",)
    assert check_address("http://[::1]/", allow=["::1"]).port == 80
    assert check_address("http://EVIL.example.com/", allow=["Evil.Example.Com."])
    for url in ("http://127.0.0.2/", "http://2130706433/", "http://x.evil.example.com/"):
        with pytest.raises(SourceError):
            check_address(url, allow={"127.0.0.1", "evil.example.com"})


def test_secrets_are_not_shown(names):
    address = check_address("rtsp://me:secret@camera.example.com/live?key=secret")
    assert address.shown == "rtsp://***@camera.example.com/live?***"
    assert "secret" not in repr(address) + str(address)


def test_a_name_that_cannot_be_resolved(monkeypatch):
    def fail(host, port):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(guard, "_resolve", fail)
    with pytest.raises(SourceError, match="cannot be resolved"):
        check_address("http://me:secret@camera.example.com/")


# ---------------------------------------------------------------------- opening


@pytest.fixture
def server():
    server = Server()
    yield server
    if not server.cut.is_set():
        server.die()


def test_an_allowed_camera_is_seen_through_the_relay(server):
    server.send(500)
    stream = GuardedCamera(server.url, allow=HERE, fps=None, open_timeout=5, read_timeout=5)
    assert stream.name == f"127.0.0.1:{server.server_port}/live.mjpg" and stream.size == (64, 48)
    assert next(stream).stream == stream.name
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 4
    stream.close()


def test_a_camera_on_this_machine_is_refused_and_never_called(server):
    with pytest.raises(SourceError, match="not a public address") as caught:
        GuardedCamera(server.url)
    assert "secret" not in str(caught.value)


def test_a_camera_that_comes_back_is_checked_again(server, monkeypatch):
    server.send(500)
    answers = [("127.0.0.1",)]
    monkeypatch.setattr(guard, "_resolve", lambda host, port: answers[-1])
    url = f"http://cam.example.com:{server.server_port}/live.mjpg"
    monkeypatch.setattr(guard, "_is_public", lambda number: number == "127.0.0.1")
    with GuardedCamera(url, open_timeout=3, read_timeout=3) as stream:
        next(stream)
        answers.append(("10.0.0.7",))  # the name leads elsewhere from now on
        with stream._relay._lock:
            for one in stream._relay._open:
                one.shutdown(socket.SHUT_RDWR)
        for _ in range(100):
            if stream._relay.refused:
                break
            time.sleep(0.1)
        assert "not a public address" in stream._relay.refused


def test_a_name_that_changes_between_check_and_use_is_refused(server, monkeypatch):
    """DNS rebinding: public when it is checked, this machine when it is opened."""
    server.send(500)
    answers = iter([("93.184.215.14",)] * 2)
    calls = []
    monkeypatch.setattr(server, "verify_request", lambda *args: calls.append(args) or True)
    monkeypatch.setattr(guard, "_resolve", lambda host, port: next(answers, ("127.0.0.1",)))
    with pytest.raises(SourceError, match="not a public address"):
        GuardedCamera(f"http://cam.example.com:{server.server_port}/live.mjpg", open_timeout=3)
    assert calls == []


def test_only_checked_numbers_are_connected_to(monkeypatch):
    connected = []

    def connect(address, timeout):
        connected.append(address)
        raise OSError("not today")

    monkeypatch.setattr(guard, "_resolve", lambda host, port: ("93.184.215.14", "1.1.1.1"))
    monkeypatch.setattr("vismem.streams.relay.socket.create_connection", connect)
    with pytest.raises(SourceError, match=r"cannot open http://\*\*\*@cam.example.com/a"):
        GuardedCamera("http://me:secret@cam.example.com/a", open_timeout=2)
    assert set(connected) == {("93.184.215.14", 80), ("1.1.1.1", 80)}


class Liar(http.server.BaseHTTPRequestHandler):
    """Sends whoever asks to another address: by a redirect or by playlists of several kinds."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        inside = f"http://127.0.0.1:{self.server.inside.server_port}/live.ts"  # HLS takes no .mjpg
        self.server.hosts.append(self.headers["Host"])
        kind = self.path.strip("/").removesuffix(".m3u8")
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", inside)
            self.end_headers()
            return
        if kind == "split":
            self.wfile.write(b"HTTP/1.1 301 Moved\r\nLoc")
            time.sleep(0.2)
            self.wfile.write(f"ation: {inside}\r\n\r\n".encode())
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(
            {
                "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{inside}\n#EXT-X-ENDLIST\n",
                "concat": f"ffconcat version 1.0\nfile {inside}\n",
                "sdp": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
                "m=video 5004 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n",
            }[kind].encode()
        )


@pytest.mark.parametrize("kind", ["redirect", "split", "hls", "concat", "sdp"])
def test_a_server_cannot_lead_inside(kind, server, monkeypatch):
    called = []
    monkeypatch.setattr(server, "verify_request", lambda *args: called.append(args) or True)
    server.send(500)
    liar = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    liar.inside, liar.hosts = server, []
    thread = threading.Thread(target=liar.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setattr(guard, "_resolve", lambda host, port: ("127.0.0.1",))
    # FFmpeg takes no playlist of another ending.
    url = f"http://me:secret@cam.example.com:{liar.server_port}/{kind}.m3u8"
    try:
        with pytest.raises(SourceError) as caught:
            GuardedCamera(url, allow={"cam.example.com"}, open_timeout=4, read_timeout=4)
    finally:
        liar.shutdown()
        liar.server_close()
        thread.join()
    assert liar.hosts and set(liar.hosts) == {f"cam.example.com:{liar.server_port}"}
    assert called == []
    assert "secret" not in str(caught.value) and "cam.example.com" in str(caught.value)
    assert kind not in ("redirect", "split") or "redirects elsewhere" in str(caught.value)


@pytest.mark.parametrize("header", [b"Location", b"LOCATION", b"Loc\ration"])
def test_an_rtsp_server_cannot_lead_inside(header):
    """FFmpeg follows these by itself, and no option of it forbids that."""
    with (
        socket.create_server(("127.0.0.1", 0)) as inside,
        socket.create_server(("127.0.0.1", 0)) as liar,
    ):
        inside.settimeout(0.5)
        there = inside.getsockname()[1]

        def lie():
            caller, _ = liar.accept()
            with caller:
                asked = caller.recv(4096)
                assert asked.startswith(b"OPTIONS")
                caller.sendall(b"RTSP/1.0 302 Moved\r\nCSeq: 1\r\n" + header)
                caller.sendall(b": rtsp://127.0.0.1:%d/live\r\n\r\n" % there)
                caller.recv(4096)

        thread = threading.Thread(target=lie, daemon=True)
        thread.start()
        url = f"rtsp://127.0.0.1:{liar.getsockname()[1]}/live"
        with pytest.raises(SourceError, match="redirects elsewhere"):
            GuardedCamera(url, allow=HERE, open_timeout=4, read_timeout=4)
        thread.join(5)
        with pytest.raises(TimeoutError):
            inside.accept()


def test_a_relay_ends_while_it_connects_and_while_it_waits(server):
    relay = Relay(server.url, allow=HERE, timeout=2)
    assert relay.url.startswith("http://user:secret@127.0.0.1:") and relay.url.endswith("=secret")
    port = int(relay.url.rpartition("@")[2].partition("/")[0].partition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.sendall(b"GET /live.mjpg HTTP/1.0\r\n\r\n")
        assert one.recv(12).startswith(b"HTTP/1.0 200")
        relay.close()
        relay.close()
        assert one.recv(100_000) is not None
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), 1)


def test_tls_is_verified(server):
    """A server without a certificate that is valid for its name is not talked to."""
    url = server.url.replace("http://", "https://")
    with pytest.raises(SourceError, match="cannot open https") as caught:
        GuardedCamera(url, allow=HERE, open_timeout=3, read_timeout=3)
    assert "secret" not in str(caught.value)
