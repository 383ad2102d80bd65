"""`Relay`: a door on this machine to one checked address, and to no other."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable, Collection

from vismem.errors import SourceError
from vismem.streams.guard import Address, check_address

__all__ = ["Relay"]

_PIECE = 2**16
_REDIRECT = b"location:"  # the header that leads elsewhere, in HTTP and RTSP


class Relay:
    """Passes connections on to a camera, after its address was checked; see `guard`.

    Each connection is resolved, checked and then made to a number that was checked. TLS ends here,
    with the certificate verified for the name. A server that sends a redirect is hung up on; nine
    bytes of a picture that read ``location:`` are not met by chance.

    Args:
        url: Of the camera.
        allow: Hosts that may be private, see `check_address`.
        timeout: How long connecting may take, in seconds.

    Attributes:
        url: What to open instead, with the same path, user and password.
        refused: Why the last connection was refused; empty if none was.

    Raises:
        SourceError: If the address is refused.
    """

    def __init__(self, url: str, *, allow: Collection[str] = (), timeout: float = 10.0) -> None:
        self._camera, self._allow, self._timeout = url, tuple(allow), timeout
        checked = check_address(url, allow=allow)
        self.refused = ""
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closed = False
        self._door = socket.create_server(("127.0.0.1", 0))
        self._here = f"127.0.0.1:{self._door.getsockname()[1]}"
        user, at, _ = checked.parts.netloc.rpartition("@")
        scheme = checked.scheme.removesuffix("s")
        self.url = checked.parts._replace(scheme=scheme, netloc=user + at + self._here).geturl()
        self._threads = [self._start(self._accept)]

    def _start(self, work: Callable[..., None], *args: socket.socket) -> threading.Thread:
        thread = threading.Thread(target=work, args=args, name="vismem relay", daemon=True)
        thread.start()
        return thread

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:
                return
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._threads.append(self._start(self._serve, client))

    def _keep(self, *held: socket.socket) -> bool:
        """Have connections end with the relay; not if that has ended."""
        with self._lock:
            self._open.update(held)
            return not self._closed

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                address = check_address(self._camera, allow=self._allow)
                server = self._connect(address)
            except (OSError, SourceError) as error:
                self.refused = str(error) if isinstance(error, SourceError) else "no connection"
                return
            with server, contextlib.suppress(OSError):
                if self._keep(client, server):
                    self._pass(client, server, address)
            with self._lock:
                self._open -= {client, server}

    def _connect(self, address: Address) -> socket.socket:
        failure: OSError = OSError("no address")
        for number in address.addresses:
            try:
                server = socket.create_connection((number, address.port), self._timeout)
            except OSError as error:
                failure = error
                continue
            try:
                if address.scheme.endswith("s"):
                    context = ssl.create_default_context()
                    server = context.wrap_socket(server, server_hostname=address.host)
                server.settimeout(None)
            except ssl.SSLError as error:
                server.close()
                raise SourceError("its certificate is not valid") from error
            except OSError:
                server.close()
                raise
            return server
        raise failure

    def _pass(self, client: socket.socket, server: socket.socket, address: Address) -> None:
        """Pass on what is asked and answered; one thread for both, as TLS needs it.

        An HTTP server is called by its own name. What leads elsewhere is not passed on.
        """
        here, there = self._here.encode(), address.parts.netloc.rpartition("@")[2].encode()
        seen = b""
        while True:
            more = isinstance(server, ssl.SSLSocket) and server.pending()
            ready = [server] if more else select.select([client, server], [], [])[0]
            if client in ready:
                piece = client.recv(_PIECE)
                if not piece:
                    return
                is_http = address.scheme.startswith("http")
                server.sendall(piece.replace(here, there) if is_http else piece)
            if server in ready:
                piece = server.recv(_PIECE)
                if not piece:
                    return
                # FFmpeg leaves out carriage returns wherever they are, and so do we.
                seen = seen[1 - len(_REDIRECT) :] + piece.replace(b"\r", b"").lower()
                if _REDIRECT in seen:
                    self.refused = "it redirects elsewhere: give the address that it redirects to"
                    return
                client.sendall(piece)

    def close(self) -> None:
        """End all connections. Closing twice does no harm."""
        with self._lock:
            self._closed = True
            for one in self._open:  # who serves it closes it
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        for thread in self._threads:
            thread.join(self._timeout)
