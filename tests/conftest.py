"""For all tests: no network but this machine's own, and a thread for each that computes."""

import ipaddress
import os
import sys

# Arrays of tests are small: beside another test or a notebook a second thread of each waits more
# than it works (a notebook on busy cores: 360 s, and 95 s with one). Who sets the number has it.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


def _local(host) -> bool:
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    host = host.decode() if isinstance(host, bytes) else str(host)
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback or host in ("0.0.0.0", "::")
    except ValueError:
        return host == os.uname().nodename  # Slurm and torch name the machine itself


def _guard(event: str, arguments: tuple) -> None:
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # else a socket in a file
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if not _local(host):
        raise PermissionError(f"{event} to {host!r}: tests use no network but loopback")


def pytest_configure():
    sys.addaudithook(_guard)
    # What tests start obeys these: a port where nobody listens.
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        os.environ[name] = "http://127.0.0.1:9"
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "localhost,127.0.0.1,::1"
