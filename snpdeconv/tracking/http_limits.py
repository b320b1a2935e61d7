"""Limits on what a tracking server may take of this machine: seconds, bytes, and nothing compressed.

MLflow bounds the wait for the next byte alone, so that a server which drips, never ends or sends a bomb holds
a command for hours. Knows MLflow's session only; what is asked of the server is the caller's.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from mlflow.utils import request_utils
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

CALL_S = 15.0
"""Seconds in which a call must be answered, whole; more where the user lets MLflow wait longer for a byte."""
COMMAND_S = 45.0
"""Seconds that all calls of a command's look-up may take together."""
CALL_BYTES = 16 * 2**20
"""Bytes that an answer other than a file may have; JSON takes twenty times as much memory."""
_HEADER_BYTES = 2**20
_TRANSFER_SPEED = 64 * 2**10  # bytes a second; a server that is slower for long is taken for a sick one


class ServerLimit(Exception):
    """A server that sends more than it may, or in a form that it was not asked for."""


class _Transfer:
    """Files on their way: over all requests and threads, as MLflow fetches files in threads of its own."""

    def __init__(self, most: int) -> None:
        self.started, self.bytes, self.most = time.monotonic(), 0, most

    def deadline(self) -> float:
        return self.started + COMMAND_S + self.bytes / _TRANSFER_SPEED


_here = threading.local()  # .deadline: of the command that this thread works for
_transfer: _Transfer | None = None
_one_transfer = threading.Lock()


@contextlib.contextmanager
def command_deadline() -> Iterator[None]:
    """Bounds what all calls of this thread take together."""
    before = getattr(_here, "deadline", None)
    _here.deadline = before or time.monotonic() + max(COMMAND_S, 3 * _patience())
    try:
        yield
    finally:
        _here.deadline = before


@contextlib.contextmanager
def transferring(*, most: int) -> Iterator[None]:
    """Lets requests take as long as files take that keep coming, of at most so many bytes, of all threads."""
    global _transfer
    with _one_transfer:
        _transfer = _Transfer(most)
        try:
            yield
        finally:
            _transfer = None


def _patience() -> float:
    """The user's, in seconds."""
    return float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])


class _Limits:
    """Of one request."""

    def __init__(self) -> None:
        self.transfer = _transfer
        self.bytes = 0
        self.in_body = False
        self._deadline = time.monotonic() + max(CALL_S, _patience())
        if (whole := getattr(_here, "deadline", None)) is not None and self.transfer is None:
            self._deadline = min(self._deadline, whole)

    def left(self) -> float:
        """Seconds that are left; a TimeoutError where none are."""
        deadline = self._deadline if self.transfer is None else self.transfer.deadline()
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the server is too slow")
        return left

    def prepare(self, sock: socket.socket) -> None:
        """Makes the next wait end with the time that is left."""
        timeout = sock.gettimeout()
        sock.settimeout(self.left() if timeout is None else min(timeout, self.left()))

    def count(self, number: int) -> None:
        self.bytes += number
        most = CALL_BYTES if self.in_body else _HEADER_BYTES
        if self.transfer is not None and self.in_body:
            self.transfer.bytes += number
            most = self.transfer.most
        if self.bytes > most:
            raise ServerLimit(f"the server sends more than {most} bytes")


class _Reader(io.RawIOBase):
    """The bytes of an answer as they come from a socket."""

    def __init__(self, raw: Any, sock: socket.socket, limits: _Limits) -> None:
        self._raw, self._sock, self._limits = raw, sock, limits

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._limits.prepare(self._sock)
        number = int(self._raw.readinto(buffer))
        self._limits.count(number)
        return number

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Limited:
    """An HTTP connection with limits; before one of urllib3's in the order of classes."""

    sock: socket.socket
    _limits: _Limits

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._limits = _Limits()
        self._limits.left()
        super().request(*args, **kwargs)  # type: ignore[misc]

    def putheader(self, header: str, *values: Any) -> None:
        # What is compressed has no size before it is unpacked.
        values = ("identity",) if str(header).lower() == "accept-encoding" else values
        super().putheader(header, *values)  # type: ignore[misc]

    def send(self, data: Any) -> None:
        if getattr(self, "sock", None) is not None and isinstance(data, bytes):
            self._limits.prepare(self.sock)
            if self._limits.transfer is not None:
                self._limits.transfer.bytes += len(data)
        super().send(data)  # type: ignore[misc]

    def response_class(self, sock: socket.socket, *args: Any, **kwargs: Any) -> http.client.HTTPResponse:
        response = http.client.HTTPResponse(sock, *args, **kwargs)
        limits = getattr(self, "_limits", None) or _Limits()  # none yet where a proxy is asked for a tunnel
        response.fp = io.BufferedReader(_Reader(response.fp.detach(), sock, limits))
        return response

    def getresponse(self) -> Any:
        response = super().getresponse()  # type: ignore[misc]
        self._limits.in_body = True
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            response.close()
            raise ServerLimit("the server compresses what it was asked to send as it is")
        return response


class _Plain(_Limited, HTTPConnection):  # type: ignore[misc]
    pass


class _Encrypted(_Limited, HTTPSConnection):  # type: ignore[misc]
    pass


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _EncryptedPool(HTTPSConnectionPool):
    ConnectionCls = _Encrypted


class _Adapter(request_utils.TCPKeepAliveHTTPAdapter):
    """How MLflow's sessions reach a server, directly or by a proxy."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._limit(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return self._limit(super().proxy_manager_for(proxy, **kwargs))  # type: ignore[no-untyped-call]

    def build_response(self, request: Any, answer: Any) -> Any:
        response = super().build_response(request, answer)
        response.encoding = "utf-8"  # to guess one from megabytes of noise takes minutes
        return response

    def _limit(self, manager: Any) -> Any:
        manager.pool_classes_by_scheme = {"http": _PlainPool, "https": _EncryptedPool}
        return manager


def set_limits() -> None:
    """Makes every session of MLflow that is opened from now on keep the limits."""
    if request_utils.TCPKeepAliveHTTPAdapter is not _Adapter:
        request_utils.TCPKeepAliveHTTPAdapter = _Adapter  # type: ignore[misc]
        request_utils._cached_get_request_session.cache_clear()
