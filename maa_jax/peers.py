"""Ends a process of a run when another one is gone, for which it would wait.

JAX's own check takes 100 seconds and aborts with a stack of C++ functions. Here process 0 holds a
connection to every other process, which closes when either of the two ends, in whatever way.
"""

import atexit
import contextlib
import os
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

_UNWATCHED = (
    "the processes cannot connect to process 0: when one ends, only JAX notices, after 100 seconds"
)
_DONE = "done"
_MOST = 4096  # bytes of a message


@contextlib.contextmanager
def watch(remedy: Callable[[], str]) -> Iterator[None]:
    """Watches the other processes while it lasts; all processes enter it together.

    When one is gone, or leaves with an exception, the others print a line that names it and end at
    once with exit status 1. With one process this does nothing.

    Args:
      remedy: returns what to do then, as the end of that line.
    """
    if jax.process_count() == 1:
        yield
        return
    links = _connect()
    leaving = threading.Event()
    watcher = threading.Thread(target=_watch, args=(links, leaving, remedy), daemon=True)
    watcher.start()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not isinstance(error, ValueError | FileNotFoundError | FloatingPointError):
            # It may follow from the end of another process, which the watcher then tells.
            watcher.join(2)
        leaving.set()
        _tell(links.values(), f"{jax.process_index()} ended ({_line(error)})")
        # At exit JAX would wait for the processes that have ended.
        atexit.register(_exit, _status(error))
        raise
    except SystemExit:
        _leave(links)
        raise
    _leave(links)


def _leave(links: Mapping[int, socket.socket]) -> None:
    # Not earlier: the others may still need this process.
    multihost_utils.sync_global_devices("all processes are done")
    _tell(links.values(), _DONE)


def _status(error: BaseException) -> int:
    """Returns the exit status that `command.run` gives a program that ends with this error."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, ValueError | FileNotFoundError) else 1


def _exit(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _connect() -> dict[int, socket.socket]:
    """Returns a connection to process 0, or from process 0 to all others, by their index."""
    index, count = jax.process_index(), jax.process_count()
    server, place = None, np.zeros(6, np.int32)  # an IPv4 address, and a port in two bytes
    links: dict[int, socket.socket] = {}
    try:
        if index == 0:
            place[:4] = list(socket.inet_aton(_own_address()))
            server = socket.create_server(("", 0), backlog=count)
            place[4:] = divmod(server.getsockname()[1], 256)
    except OSError as error:
        logging.warning("%s (%s)", _UNWATCHED, error)
    place = multihost_utils.broadcast_one_to_all(place)
    try:
        if index and place[4:].any():
            address = ".".join(map(str, place[:4])), int(place[4]) * 256 + int(place[5])
            links[0] = socket.create_connection(address, timeout=60)
            links[0].sendall(index.to_bytes(4, "big"))
        elif server is not None:
            server.settimeout(60)
            while len(links) < count - 1:
                link, _ = server.accept()
                link.settimeout(60)
                links[int.from_bytes(link.recv(4, socket.MSG_WAITALL), "big")] = link
    except OSError as error:
        logging.warning("%s (%s)", _UNWATCHED, error)
    if server is not None:
        server.close()
    for link in links.values():
        link.settimeout(None)
        # A machine that lost its power or network sends no end: it is gone after 45 s of silence.
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 6)):
            if hasattr(socket, name):  # not on all systems
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return links


def _own_address() -> str:
    """Returns the address at which other processes reach this one."""
    coordinator = os.environ.get("JAX_COORDINATOR_ADDRESS", "").rpartition(":")[0]
    if coordinator in ("localhost", "127.0.0.1"):
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # chooses the interface; nothing is sent
        return probe.getsockname()[0]


def _watch(
    links: Mapping[int, socket.socket], leaving: threading.Event, remedy: Callable[[], str]
) -> None:
    """Waits until all processes are done, or ends this process when one of them is gone."""
    selector = selectors.DefaultSelector()
    for index, link in links.items():
        selector.register(link, selectors.EVENT_READ, index)
    while selector.get_map():
        for key, _ in selector.select():
            try:
                text = links[key.data].recv(_MOST).decode(errors="replace")
            except OSError:
                text = ""
            if text == _DONE:
                selector.unregister(key.fileobj)
                continue
            # A mistake in the config ends all processes, each with its own message: wait for it.
            if leaving.wait(3 if text else 0):
                return
            what = text or f"{key.data} is gone"
            # Process 0 passes it on to those that have no connection to the one that is gone.
            _tell([link for index, link in links.items() if index != key.data], what)
            # The name first: without process 0, JAX aborts this process in a moment.
            line = f"\nProcess {what}: process {jax.process_index()} ends too. "
            print(line, file=sys.stderr, end="", flush=True)
            print(remedy(), file=sys.stderr, flush=True)
            os._exit(1)  # threads of JAX wait for the process that is gone


def _tell(links: Iterable[socket.socket], message: str) -> None:
    for link in links:
        with contextlib.suppress(OSError):
            link.sendall(message.encode()[:_MOST])


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]
