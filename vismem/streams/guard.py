"""Which network cameras a stranger may have opened, and how they are opened safely.

Who may type any address into a page could have the server look into its own network. So an address
is checked by what its name resolves to, and nothing but the very addresses that were checked is
connected to: FFmpeg is only ever given a relay on this machine (`vismem.streams.relay`), which
resolves, checks and connects for every connection anew. A name that answers differently the second
time (DNS rebinding) gains nothing. FFmpeg is told to follow no redirect and to read no playlist,
for either may lead elsewhere, and the relay hangs up on a server that sends a redirect.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

import cv2

from vismem.errors import SourceError
from vismem.streams.camera import CameraStream, hide_credentials

__all__ = ["Address", "GuardedCamera", "check_address"]

_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
_OWN_NAMES = ("localhost", "local", "internal", "intranet", "lan", "home.arpa", "corp", "private")
_LONGEST = 2048
# Containers that hold pictures and name no other address, as playlists do.
_FORMATS = "rtsp,mpjpeg,mjpeg,mov,mp4,matroska,webm,mpegts,flv,avi,asf,h264,hevc,jpeg_pipe"
_FFMPEG = f"rtsp_transport;tcp|max_redirects;0|format_whitelist;{_FORMATS}"


@dataclass(frozen=True, slots=True)
class Address:
    """A network address that may be opened.

    Args:
        scheme: ``rtsp``, ``rtsps``, ``http`` or ``https``.
        host: Name or number, in ASCII, without a dot at the end.
        port: Its own, or that of the scheme.
        addresses: What the host resolves to; these and no others may be connected to.
        shown: The address without user, password and query, for messages and logs.
        parts: The whole of it, secrets included.
    """

    scheme: str
    host: str
    port: int
    addresses: tuple[str, ...]
    shown: str
    parts: SplitResult

    def __repr__(self) -> str:
        return f"Address({self.shown!r}, addresses={self.addresses})"


def check_address(url: str, *, allow: Collection[str] = ()) -> Address:
    """Resolve an address and refuse it if it leads into a private network.

    Args:
        url: As a stranger gave it.
        allow: Names and numbers of hosts that may be private, and have any port.

    Raises:
        SourceError: If it is no address of a camera, cannot be resolved, or any of the numbers that
            it resolves to is not public (private, loopback, link-local, multicast, reserved...).

    Example:
        >>> check_address("rtsp://me:1234@93.184.215.14/live").shown
        'rtsp://***@93.184.215.14/live'
        >>> check_address("http://2130706433.example.@[::ffff:127.0.0.1]:8080/")
        Traceback (most recent call last):
        vismem.errors.SourceError: http://***@[::ffff:127.0.0.1]:8080/ is not a public address
    """
    if not isinstance(url, str) or len(url) > _LONGEST:
        raise SourceError("this is no address of a camera; write it like rtsp://host/path")
    shown = "".join(c if c.isprintable() else "?" for c in hide_credentials(url.strip()))
    try:
        url = url.strip()
        if re.search(r"[\x00-\x20\x7f\\]", url):
            raise ValueError("it has spaces, control characters or backslashes")
        parts = urlsplit(url)
        scheme, port = parts.scheme.lower(), parts.port
        if scheme not in _PORTS:
            raise ValueError(f"use {', '.join(_PORTS)}")
        host = _ascii(parts.hostname or "")
    except ValueError as error:
        raise SourceError(f"{shown} is no address that can be opened: {error}") from error
    allowed = host in {_ascii(name) for name in allow}
    port = _PORTS[scheme] if port is None else port
    if not allowed and port < 1024 and port not in _PORTS.values():
        raise SourceError(f"{shown} has port {port}, which is no camera's")
    if not allowed and _is_own(host):
        raise SourceError(f"{shown} is not a public address")
    try:
        addresses = _resolve(host, port)
    except OSError as error:
        raise SourceError(f"{shown} cannot be resolved; check the host's name") from error
    # Of a name with several numbers all must be public, for which is taken may be up to others.
    if not addresses or not (allowed or all(_is_public(number) for number in addresses)):
        raise SourceError(f"{shown} is not a public address")
    return Address(scheme, host, port, addresses, shown, parts)


def _ascii(host: str) -> str:
    """A host's name as it is looked up: ``BÜRO.example.`` becomes ``xn--bro-hoa.example``."""
    host = host.strip("[]").rstrip(".").lower()
    if ":" in host:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    try:
        host = host.encode("idna").decode()
    except UnicodeError as error:
        raise ValueError("its host is no name") from error
    if not re.fullmatch(r"[a-z0-9]([a-z0-9_.-]*[a-z0-9])?", host):
        raise ValueError("its host is no name")
    return host


def _is_own(host: str) -> bool:
    """Whether a name is one that networks keep for themselves."""
    if ":" in host:
        return False
    return "." not in host or host.endswith(tuple(f".{name}" for name in _OWN_NAMES))


def _resolve(host: str, port: int) -> tuple[str, ...]:
    """All numbers of a host, once; also of odd forms such as ``0x7f.1``."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def _is_public(number: str) -> bool:
    if "%" in number:  # only link-local addresses have a zone
        return False
    address = ipaddress.ip_address(number)
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(address.packed[-4:])
        if inner is not None:
            return _is_public(str(inner))
        if address.teredo or address.packed[:12] == bytes(12):
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


class GuardedCamera(CameraStream):
    """A network camera whose address a stranger gave; see the module and `CameraStream`.

    Certificates of ``rtsps`` and ``https`` are verified. OpenCV takes FFmpeg's options from the
    environment alone: from the first guarded camera on, no camera of this process follows redirects
    or reads playlists.

    Args:
        url: Its address.
        allow: Names and numbers of hosts that may be private.
        name: Name of the stream; host and path if not given.
        open_timeout: How long opening may take, in seconds, beside looking up its name.
        **options: As of `CameraStream`: ``fps``, ``reconnect``, ``read_timeout``.

    Raises:
        SourceError: If the address is refused, or the camera cannot be opened; secrets are left out
            of the message.
        UsageError: See `CameraStream`.
    """

    def __init__(
        self,
        url: str,
        *,
        allow: Collection[str] = (),
        name: str | None = None,
        open_timeout: float = 10.0,
        **options: Any,
    ) -> None:
        from vismem.streams.relay import Relay

        shown = check_address(url, allow=allow).shown
        name = name or re.sub(r"^\w+://(\*{3}@)?|\?.*$|/$", "", shown)
        self._relay = Relay(url, allow=allow, timeout=open_timeout)
        try:
            super().__init__(self._relay.url, name=name, open_timeout=open_timeout, **options)
        except SourceError as error:
            self._relay.close()
            said = str(error).replace(hide_credentials(self._relay.url), shown)
            reason = f" ({self._relay.refused})" if self._relay.refused else ""
            raise SourceError(said + reason) from None
        except BaseException:
            self._relay.close()
            raise
        self._shown = shown

    def _connect(self) -> cv2.VideoCapture | None:
        os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = _FFMPEG
        return super()._connect()

    def close(self) -> None:
        """End the iteration at once, hang up, and free the camera."""
        self._closed.set()
        self._relay.close()
        super().close()
