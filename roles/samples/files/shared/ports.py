"""This node's addresses and TCP ports, checked before a library takes them and says less clearly what is wrong."""

from __future__ import absolute_import, division, print_function

import errno
import socket

from command_line import SampleError


def check_port(port, host=""):
    """Raise SampleError unless this node has the address and its port is free."""
    if host:
        _bind(host, 0)
    _bind("", port)


def _bind(host, port):
    probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # A port whose last connections are only fading away is free; one that is listened on is not.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port))
    except socket.gaierror:
        raise SampleError("there is no host %s" % host)
    except (IOError, OverflowError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise SampleError("port %d of this node is taken by another program" % port)
        if getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
            raise SampleError("%s is not an address of this node" % host)
        raise SampleError("port %d of this node cannot be used (%s)" % (port, error))
    finally:
        probe.close()
