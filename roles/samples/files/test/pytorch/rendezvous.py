"""How the processes of a distributed run find each other before PyTorch connects them, and say who is missing."""

from __future__ import absolute_import, division, print_function

import fcntl
import json
import os
import socket
import struct
import threading
import time
import uuid

from command_line import SampleError, say
from ports import check_port

RETRY_S = 0.5
REPLY_S = 5.0

# linux/sockios.h
SIOCGIFADDR = 0x8915
SIOCGIFBRDADDR = 0x8919


class Announcer(object):
    """Finds a master without being told one: every process calls out on this node's network."""

    def __init__(self, port, world_size):
        self.port, self.world_size = port, world_size
        self.address, self.broadcast = own_network()
        self.known = {}
        self.trouble = ""
        self.mine = {"program": "mnist_dist", "id": uuid.uuid4().hex, "address": self.address, "world": world_size}
        self.done = threading.Event()

    def __enter__(self):
        """Call and listen in the background, so that late ones hear too."""
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        # Several processes of one node listen to the same port.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.settimeout(RETRY_S)
        try:
            self.socket.bind(("", self.port))
        except socket.error as error:
            raise SampleError("port %d of this node cannot be listened on (%s)" % (self.port, error.strerror))
        thread = threading.Thread(target=self._call)
        thread.daemon = True
        thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()

    def find(self, timeout):
        """Return the master's address and this process's rank; the lowest address is the master."""
        say("calling for %d processes on %s's network" % (self.world_size, self.address))
        ends = time.time() + timeout
        while len(self.known) < self.world_size and time.time() < ends:
            self._listen()
        if len(self.known) < self.world_size:
            found = ", ".join(sorted(address for address, _ in self.known.values()))
            raise SampleError(
                "only %d of %d processes called within %d s (%s%s); across networks use --master-addr and --rank"
                % (len(self.known), self.world_size, timeout, found, self.trouble)
            )
        order = sorted(self.known, key=lambda name: (socket.inet_aton(self.known[name][0]), name))
        rank = order.index(self.mine["id"])
        if rank >= self.world_size:
            raise SampleError("%d processes called for a run of %d" % (len(order), self.world_size))
        return self.known[order[0]][0], rank

    def _call(self):
        while not self.done.is_set():
            try:
                self.socket.sendto(json.dumps(self.mine).encode("ascii"), (self.broadcast, self.port))
            except socket.error as error:
                # The network may come yet; find() tells when it did not.
                self.trouble = ", " + str(error.strerror)
            self.done.wait(RETRY_S)

    def _listen(self):
        try:
            message = json.loads(self.socket.recv(1024).decode("ascii"))
            if message["program"] == self.mine["program"] and message["world"] == self.world_size:
                socket.inet_aton(message["address"])
                self.known[str(message["id"])] = (str(message["address"]), message["world"])
        except (socket.timeout, ValueError, KeyError, TypeError, socket.error):
            return  # silence, or another program's message


def own_network():
    """Return this node's address and its network's broadcast address: eth0's, else the first that has one."""
    names = sorted(os.listdir("/sys/class/net"), key=lambda name: (name == "lo", name != "eth0", name))
    for name in names:
        address = _ask(name, SIOCGIFADDR)
        if address:
            return address, "127.255.255.255" if name == "lo" else _ask(name, SIOCGIFBRDADDR)
    raise SampleError("this node has no network address")


def _ask(name, question):
    asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        answer = fcntl.ioctl(asking.fileno(), question, struct.pack("256s", name.encode("ascii")[:15]))
        return socket.inet_ntoa(answer[20:24])
    except (IOError, OSError):
        return None
    finally:
        asking.close()


def gather(master, port, rank, world_size, timeout):
    """Return once all ranks are there; raise SampleError with the reason when they do not come together in time.

    Rank 0 listens on the port that PyTorch will use, and hands it over free.
    """
    if rank == 0:
        _receive(master, port, world_size, timeout)
    else:
        _report(master, port, rank, world_size, timeout)


def _receive(master, port, world_size, timeout):
    check_port(port, master)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("", port))
    listener.listen(world_size)
    present = {}
    ends = time.time() + timeout
    try:
        while len(present) < world_size - 1:
            missing = ", ".join(str(rank) for rank in range(1, world_size) if rank not in present)
            say("waiting for rank %s at %s:%d" % (missing, master, port))
            try:
                listener.settimeout(max(0.1, ends - time.time()))
                guest, _ = listener.accept()
            except socket.timeout:
                raise SampleError("rank %s has not come within %d s" % (missing, timeout))
            guest.settimeout(REPLY_S)
            try:
                rank, world = (int(word) for word in guest.recv(64).decode("ascii").split())
            except (ValueError, socket.error):
                guest.close()
                continue
            if world != world_size or rank in present or not 0 < rank < world_size:
                reason = "rank %d of %d came to a run of %d" % (rank, world, world_size)
                if rank in present:
                    reason = "rank %d came twice" % rank
                refused = list(present.values())
                refused.append(guest)
                for each in refused:
                    each.sendall(reason.encode("ascii"))
                raise SampleError(reason)
            present[rank] = guest
        # First closed: a guest that is quick must not reach this listener in place of PyTorch's.
        listener.close()
        for guest in present.values():
            guest.sendall(b"go")
    finally:
        for guest in present.values():
            guest.close()
        listener.close()


def _report(master, port, rank, world_size, timeout):
    ends = time.time() + timeout
    say("waiting for rank 0 at %s:%d" % (master, port))
    while time.time() < ends:
        try:
            host = socket.create_connection((master, port), timeout=REPLY_S)
        except socket.gaierror:
            raise SampleError("there is no host %s" % master)
        except socket.error:
            time.sleep(RETRY_S)
            continue
        try:
            host.sendall(("%d %d" % (rank, world_size)).encode("ascii"))
            host.settimeout(max(0.1, ends - time.time()))
            reply = host.recv(256).decode("ascii")
        except socket.timeout:
            break
        except socket.error:
            reply = ""
        finally:
            host.close()
        if reply == "go":
            return
        raise SampleError("rank 0 at %s:%d refused (%s)" % (master, port, reply or "it ended"))
    raise SampleError("the run at %s:%d was not complete within %d s" % (master, port, timeout))
