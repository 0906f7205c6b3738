"""What other machines can reach on a node, from the kernel's own tables."""

from __future__ import annotations

from typing import NamedTuple

STATES = {"tcp": "0A", "udp": "07"}
"""State of a socket that waits for others, by protocol: TCP_LISTEN, and an unconnected UDP socket's TCP_CLOSE.
Source: linux/include/net/tcp_states.h."""

HERE = ("0" * 24 + "01000000", "0000000000000000FFFF00000100007F")
"""::1 and ::ffff:127.0.0.1 as the kernel writes them."""


class Open(NamedTuple):
    """A port that waits for others, and whose process it is."""

    protocol: str
    port: int
    uid: int


def reachable(protocol: str, table: str) -> set[Open]:
    """The ports of /proc/net/{tcp,tcp6,udp,udp6} that are not of the loopback interface alone; proc(5) has the fields.

    ``protocol``: tcp or udp. ``table``: the text of one or more of the files.
    """
    found = set()
    for line in table.splitlines():
        fields = line.split()
        if len(fields) < 8 or fields[3] != STATES[protocol]:
            continue
        address, _, port = fields[1].partition(":")
        # The bytes of an IPv4 address stand in reverse, so that 127.0.0.0/8 ends in 7F.
        if address in HERE or (len(address) == 8 and address.endswith("7F")):
            continue
        found.add(Open(protocol, int(port, 16), int(fields[7])))
    return found
