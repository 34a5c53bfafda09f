"""Cuts TCP connections of other processes of this user: both ends see an end, and neither process is asked."""

import ctypes
import os
import socket
from collections.abc import Collection
from contextlib import suppress

import psutil

PIDFD_GETFD = 438  # the number of the system call, equal on all processors; Python has no name for it
_LIBC = ctypes.CDLL(None, use_errno=True)


def cut_connections(process: psutil.Process, spared_ports: Collection[int] = ()) -> int:
    """Shuts down each TCP connection that it has open, but those to these ports; -> how many. Raises OSError."""
    cut, handle = 0, os.pidfd_open(process.pid)
    try:
        for connection in process.net_connections("tcp"):
            if connection.raddr and not {connection.raddr.port, connection.laddr.port} & set(spared_ports):
                cut += _shut_down(handle, connection.fd)
    finally:
        os.close(handle)
    return cut


def _shut_down(handle: int, number: int) -> bool:
    """One file descriptor of that process; it may have been closed meanwhile."""
    copy = _LIBC.syscall(PIDFD_GETFD, handle, number, 0)
    if copy < 0:
        if ctypes.get_errno() == 9:  # EBADF
            return False
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    with socket.socket(fileno=copy) as mine, suppress(OSError):
        mine.shutdown(socket.SHUT_RDWR)
        return True
    return False
