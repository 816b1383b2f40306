"""Whether a server could listen at an address, and if not, why."""

import errno
import socket

PORT_MAX = 65_535


def why_not_listen(host: str, port: int) -> str | None:
    """Return why no server could listen on host:port now, without a full stop; None when one could.

    Port 0 asks about the host alone. A family of addresses that the kernel doesn't have (IPv6 is
    often off) is passed over, as servers do.
    """
    is_tried = False
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            try:
                probe = socket.socket(family, kind, protocol)
            except OSError:
                continue
            is_tried = True
            with probe:
                # As servers do it: or a port is "in use" for a minute after its server stopped.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
                probe.listen(1)
    except socket.gaierror as error:
        return f"{host} is no address of this machine ({error.strerror})"
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return "it is in use by another program"
        if error.errno == errno.EADDRNOTAVAIL:
            return f"{host} is no address of this machine"
        return f"the system says: {error.strerror}"
    return None if is_tried else f"this machine has no addresses of the kind of {host}"
