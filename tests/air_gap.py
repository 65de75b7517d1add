"""A network namespace with nothing but loopback, for this process and all that it starts."""

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

_NEW_NET = 0x40000000  # CLONE_NEWNET
_SET_FLAGS = 0x8914  # SIOCSIFFLAGS
_UP = 1


@contextmanager
def without_a_network() -> Iterator[str | None]:
    """Yield None inside of it, or the reason why there is none here.

    Threads that run already stay outside: enter before a client starts one.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_NEW_NET):
            yield f"no network namespace of our own: {os.strerror(ctypes.get_errno())}"
            return
        with socket.socket() as any_socket:
            fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", b"lo", _UP))
        try:
            yield None
        finally:
            libc.setns(before, _NEW_NET)
    finally:
        os.close(before)
