"""Train a small LeNet on several nodes with PyTorch: every rank trains on a part of the data, gradients are averaged.

On nodes of one network, start it on each without a flag. Across networks, name rank 0's address on all:
--master-addr 192.168.1.2 --rank 0, and --master-addr 192.168.1.2 --rank 1.
"""

from __future__ import absolute_import, division, print_function

import os
import subprocess
import sys
import zlib

import torch
import torch.distributed

import mnist_data
import rendezvous
from command_line import Flags, SampleError, abandon, deadline, port_number, positive, run, say
from lenet import LeNet, Optimizer, number

REPORT_EVERY = 50
BACKEND = "gloo"
"""The one that every PyTorch since 0.2 offers on the CPU; a GPU's gradients travel through the CPU."""

# Some versions connect without letting another thread run, so that only another process can end them in time.
GUARD = """
import os, select, signal, sys
if not select.select([0], [], [], float(sys.argv[1]))[0]:
    sys.stderr.write("mnist_dist.py: %s\\n" % sys.argv[2])
    os.kill(os.getppid(), signal.SIGKILL)
"""


def main():
    flags = Flags(description=__doc__)
    flags.add_argument("--master-addr", help="address of rank 0; found on this node's network where it is not given")
    flags.add_argument("--master-port", type=port_number, default=29500, help="port of rank 0 (default: %(default)s)")
    flags.add_argument("--rank", type=int, help="this process's number, from 0; goes with --master-addr")
    flags.add_argument("--world-size", type=positive, default=2, help="number of processes (default: %(default)s)")
    flags.add_argument("--data", default=mnist_data.FOLDER, help="folder of MNIST's files (default: %(default)s)")
    flags.add_argument("--steps", type=positive, default=500, help="batches of each rank (default: %(default)s)")
    flags.add_argument("--batch", type=positive, default=100, help="images in a batch (default: %(default)s)")
    flags.add_argument(
        "--start-timeout", type=positive, default=300, help="seconds to wait for the others (default: %(default)s)"
    )
    flags.add_argument(
        "--timeout", type=positive, default=60, help="seconds until a silent rank is lost (default: %(default)s)"
    )
    chosen = flags.parse_args()
    if (chosen.master_addr is None) != (chosen.rank is None):
        flags.error("--master-addr and --rank go together")
    if chosen.rank is not None and not 0 <= chosen.rank < chosen.world_size:
        flags.error("--rank %d: a run of %d has ranks from 0" % (chosen.rank, chosen.world_size))
    digits = mnist_data.load(chosen.data)
    mnist_data.check_batch(chosen.batch, len(digits.train_images) // chosen.world_size)
    if chosen.rank is None:
        with rendezvous.Announcer(chosen.master_port, chosen.world_size) as announcer:
            master, rank = announcer.find(chosen.start_timeout)
            connect(chosen, master, rank)
    else:
        rank = chosen.rank
        connect(chosen, chosen.master_addr, rank)
    Rank(chosen, rank, digits).work()
    # Some versions' destructors wait for ranks that have left already.
    os._exit(0)


def connect(chosen, master, rank):
    """Make the process group, by PyTorch's environment variables."""
    rendezvous.gather(master, chosen.master_port, rank, chosen.world_size, chosen.start_timeout)
    os.environ.update(
        MASTER_ADDR=master, MASTER_PORT=str(chosen.master_port), RANK=str(rank), WORLD_SIZE=str(chosen.world_size)
    )
    lost = "a rank was lost while they connected"
    guard = subprocess.Popen([sys.executable, "-c", GUARD, str(chosen.timeout), lost], stdin=subprocess.PIPE)
    try:
        torch.distributed.init_process_group(BACKEND, init_method="env://")
    except RuntimeError as error:
        abandon("%s (%s)" % (lost, error))
    finally:
        guard.communicate()


class Rank(object):
    """One of the processes that train the same net."""

    def __init__(self, chosen, rank, digits):
        self.chosen, self.rank, self.world, self.digits = chosen, rank, chosen.world_size, digits
        # Other weights on every rank, on purpose: the first exchange must make them the same.
        torch.manual_seed(1 + rank)
        self.net = LeNet()
        if torch.cuda.is_available():
            # Of one node's ranks each has a GPU; what a rank makes later goes where its net is.
            torch.cuda.set_device(rank % torch.cuda.device_count())
            self.net.cuda()
        where = "GPU" if self.net.is_on_gpu() else "CPU"
        say("rank %d of %d, PyTorch %s on the %s" % (rank, self.world, torch.__version__, where))
        say(mnist_data.describe(digits))

    def work(self):
        """Train, compare the weights, test; rank 0 tells the accuracy."""
        self.share([parameter.data for parameter in self.net.parameters()], self.from_rank_0)
        images = self.digits.train_images[self.rank :: self.world]
        labels = self.digits.train_labels[self.rank :: self.world]
        source = mnist_data.batches(images, labels, self.chosen.batch, seed=self.rank)
        optimizer = Optimizer(self.net, self.chosen.steps)
        for step in range(1, self.chosen.steps + 1):
            optimizer.zero_grad()
            loss = self.net.loss(*next(source))
            loss.backward()
            self.share([parameter.grad.data for parameter in self.net.parameters()], self.mean)
            optimizer.step()
            if step % REPORT_EVERY == 0 or step == self.chosen.steps:
                say("rank %d, step %d of %d, loss %.4f" % (self.rank, step, self.chosen.steps, number(loss)))
        say("rank %d trained on %d images" % (self.rank, self.chosen.steps * self.chosen.batch))
        self.compare()
        if self.rank == 0:
            correct = self.net.count_correct(self.digits.test_images, self.digits.test_labels)
            say(mnist_data.accuracy_line(correct, len(self.digits.test_labels)))

    def compare(self):
        """Tell the checksum of the weights; raise SampleError where another rank's differs."""
        weights = b"".join(parameter.data.cpu().numpy().tobytes() for parameter in self.net.parameters())
        checksum = zlib.crc32(weights) & 0xFFFFFFFF
        say("rank %d, checksum of the weights: %08x" % (self.rank, checksum))
        table = torch.zeros(self.world).double()
        table[self.rank] = checksum
        self.exchange(lambda: torch.distributed.all_reduce(table))
        if len(set(table.tolist())) > 1:
            raise SampleError("the ranks ended with different weights")

    def share(self, tensors, how):
        """Replace tensors by what all ranks make of them, in one message."""
        flat = torch.cat([tensor.contiguous().view(-1) for tensor in tensors]).cpu()
        how(flat)
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()

    def mean(self, flat):
        self.exchange(lambda: torch.distributed.all_reduce(flat))
        flat.div_(self.world)

    def from_rank_0(self, flat):
        self.exchange(lambda: torch.distributed.broadcast(flat, 0))

    def exchange(self, operation):
        """Run a collective operation; end this rank when another does not take part."""
        lost = "another rank is lost, so rank %d ends too" % self.rank
        try:
            with deadline(self.chosen.timeout, lost):
                operation()
        except RuntimeError:
            abandon(lost)


if __name__ == "__main__":
    run(main)
