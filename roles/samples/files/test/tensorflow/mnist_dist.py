"""Train a small LeNet on several nodes with TensorFlow: parameter servers keep the weights, workers train on parts of the data.

Start one process for each address, in any order; all get the same lists. Workers train asynchronously. The first parameter
server watches them: when one stops answering, all end with an error.
"""

from __future__ import absolute_import, division, print_function

import os
import threading
import time

# TensorFlow's own notes on the processor and the like: errors only. Read when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

import mnist_data
from command_line import Flags, SampleError, abandon, deadline, port_number, positive, run, say
from lenet import LeNet
from ports import check_port
from tensorboard_log import open_log

KEEPER = "/job:ps/task:0"
"""Where the notes stand that all processes read."""

REPORT_EVERY = 50
LOG_EVERY = 10
POLL_S = 0.5
BEAT_S = 1.0


class Notes(object):
    """What the processes tell each other: variables on the first parameter server."""

    def __init__(self, cluster):
        workers, servers = cluster.num_tasks("worker"), cluster.num_tasks("ps")
        with tf.device(KEEPER):
            self.beats = self._counts("beats", workers)
            self.steps = self._counts("steps", workers)
            self.finished = self._counts("finished", workers + servers)
            # 0, or 1 + the number of the worker that is lost.
            self.lost = tf.get_variable("lost", [], tf.int64, tf.zeros_initializer(), trainable=False)

    def _counts(self, name, size):
        return tf.get_variable(name, [size], tf.int64, tf.zeros_initializer(), trainable=False)

    def add(self, counts, index):
        """Return the operation that counts one more for a process."""
        with tf.device(KEEPER):
            return tf.scatter_add(counts, [index], tf.ones([1], tf.int64), use_locking=True).op


def main():
    flags = Flags(description=__doc__)
    flags.add_argument("--ps_hosts", required=True, type=addresses, help="host:port of each parameter server, by comma")
    flags.add_argument("--worker_hosts", required=True, type=addresses, help="host:port of each worker, by comma")
    flags.add_argument("--job_name", required=True, choices=["ps", "worker"], help="what this process is")
    flags.add_argument("--task_index", required=True, type=int, help="its place in its list, from 0")
    flags.add_argument("--data", default=mnist_data.FOLDER, help="folder of MNIST's files (default: %(default)s)")
    flags.add_argument("--steps", type=positive, default=1000, help="batches of all workers (default: %(default)s)")
    flags.add_argument("--batch", type=positive, default=100, help="images in a batch (default: %(default)s)")
    flags.add_argument(
        "--start_timeout", type=positive, default=300, help="seconds to wait for the others (default: %(default)s)"
    )
    flags.add_argument(
        "--timeout", type=positive, default=20, help="seconds of silence until a process is lost (default: %(default)s)"
    )
    chosen = flags.parse_args()
    every = chosen.ps_hosts + chosen.worker_hosts
    if len(set(every)) < len(every):
        flags.error("an address stands twice in --ps_hosts and --worker_hosts")
    mine = chosen.ps_hosts if chosen.job_name == "ps" else chosen.worker_hosts
    if not 0 <= chosen.task_index < len(mine):
        flags.error("--task_index %d: there are %d of %s, from 0" % (chosen.task_index, len(mine), chosen.job_name))
    digits = None
    if chosen.job_name == "worker":
        digits = mnist_data.load(chosen.data)
        mnist_data.check_batch(chosen.batch, len(digits.train_images) // len(chosen.worker_hosts))

    host, port = mine[chosen.task_index].rsplit(":", 1)
    check_port(int(port), host)
    cluster = tf.train.ClusterSpec({"ps": chosen.ps_hosts, "worker": chosen.worker_hosts})
    # A parameter server leaves the GPU to the worker beside it.
    config = tf.ConfigProto(device_count={"GPU": 0}) if chosen.job_name == "ps" else tf.ConfigProto()
    # Processes of the same kind need not see each other, so that one can start without another.
    config.device_filters.extend(["/job:ps", "/job:%s/task:%d" % (chosen.job_name, chosen.task_index)])
    server = tf.train.Server(cluster, chosen.job_name, chosen.task_index, config=config)
    say("%s %d of %d at %s:%s" % (chosen.job_name, chosen.task_index, len(mine), host, port))
    tf.set_random_seed(1)
    # A parameter server has no worker's device to see; it only makes the variables.
    device = "/job:%s/task:%d" % (chosen.job_name, chosen.task_index)
    with tf.device(tf.train.replica_device_setter(cluster=cluster, worker_device=device)):
        net = LeNet(chosen.steps)
    notes = Notes(cluster)
    try:
        if chosen.job_name == "ps":
            serve(chosen, cluster, server, config, notes)
        else:
            Worker(chosen, cluster, server, config, net, notes).work(digits)
    except tf.errors.OpError as error:
        raise SampleError("the connection to another process broke (%s)" % type(error).__name__)


def addresses(text):
    """Return the addresses in a list; argparse turns its errors into a sentence."""
    found = text.split(",")
    for address in found:
        host, colon, port = address.rpartition(":")
        if not host or not colon or " " in address:
            raise ValueError
        port_number(port)
    return found


addresses.__name__ = "list of host:port"


# The parameter server


def serve(chosen, cluster, server, config, notes):
    """Keep the weights until all workers are done; raise SampleError when one is lost."""
    index, workers = chosen.task_index, chosen.worker_hosts
    finish = notes.add(notes.finished, len(workers) + index)
    missing = "the other parameter servers have not come within %d s" % chosen.start_timeout
    with deadline(chosen.start_timeout, missing):
        session = tf.Session(server.target, config=config)
        if index == 0:
            session.run(tf.global_variables_initializer())
        await_variables(session)
    if index:
        while session.run(notes.finished)[: len(workers)].min() == 0 and not session.run(notes.lost):
            time.sleep(POLL_S)
        session.run(finish)
        return
    say("waiting for %d workers" % len(workers))
    lost = watch(chosen, session, notes)
    if lost is not None:
        session.run(notes.lost.assign(lost + 1))
        for sentence in contributions(session, notes, workers):
            say(sentence)
    session.run(finish)
    # The others read the news before this process, which holds it, is gone.
    ends = time.time() + chosen.timeout
    while time.time() < ends:
        finished = session.run(notes.finished)
        if all(count or number == lost for number, count in enumerate(finished)):
            break
        time.sleep(POLL_S)
    if lost is not None:
        raise SampleError("worker %d (%s) is lost: it has been silent for too long" % (lost, workers[lost]))
    say("all workers are done")


def watch(chosen, session, notes):
    """Return None when all workers are done, or the number of one that never came or no longer answers."""
    begun = time.time()
    heard = {}
    while True:
        beats, finished = session.run([notes.beats, notes.finished])
        now = time.time()
        for number in range(len(chosen.worker_hosts)):
            if beats[number] != heard.get(number, (0, 0))[0]:
                heard[number] = (beats[number], now)
            silent_since, patience = begun, chosen.start_timeout
            if number in heard:
                silent_since, patience = heard[number][1], chosen.timeout
            if not finished[number] and now - silent_since > patience:
                return number
        if finished[: len(chosen.worker_hosts)].all():
            return None
        time.sleep(POLL_S)


def await_variables(session):
    """Return once the first parameter server has made every variable."""
    with tf.device(KEEPER):
        unready = tf.report_uninitialized_variables()
    while len(session.run(unready)):
        time.sleep(POLL_S)


def contributions(session, notes, workers):
    """Return a sentence about the share of each worker."""
    steps = session.run(notes.steps)
    return [
        "worker %d (%s) made %d of %d steps" % (number, workers[number], steps[number], steps.sum())
        for number in range(len(workers))
    ]


# A worker


class Worker(object):
    """One worker of the cluster; the first one also logs and tests."""

    def __init__(self, chosen, cluster, server, config, net, notes):
        self.chosen, self.config, self.target = chosen, config, server.target
        self.index, self.workers = chosen.task_index, chosen.worker_hosts
        self.net, self.notes = net, notes
        self.beat = notes.add(notes.beats, self.index)
        self.finish = notes.add(notes.finished, self.index)
        with tf.control_dependencies([net.train]):
            self.train = notes.add(notes.steps, self.index)
        self.summary = tf.summary.scalar("loss", net.loss)
        self.stopping = threading.Event()

    def work(self, digits):
        """Train until all workers together made their steps."""
        servers = ", ".join(self.chosen.ps_hosts)
        say("waiting for the parameter server at %s" % servers)
        absent = "the parameter server at %s has not come within %d s" % (servers, self.chosen.start_timeout)
        with deadline(self.chosen.start_timeout, absent):
            session = tf.Session(self.target, config=self.config)
            await_variables(session)
        beating = threading.Thread(target=self.keep_beating, args=[session])
        beating.daemon = True
        beating.start()
        try:
            self.await_workers(session)
            say("TensorFlow %s, %s" % (tf.__version__, mnist_data.describe(digits)))
            self.train_share(session, digits)
            if self.index == 0:
                self.conclude(session, digits)
        except SampleError:
            session.run(self.finish)
            raise
        self.stopping.set()
        beating.join()
        session.run(self.finish)

    def keep_beating(self, session):
        """Tell every second that this worker lives; end it when the parameter server does not."""
        gone = "the parameter server at %s is lost" % ", ".join(self.chosen.ps_hosts)
        while not self.stopping.wait(BEAT_S):
            try:
                with deadline(self.chosen.timeout, gone):
                    session.run(self.beat)
            except (tf.errors.OpError, RuntimeError):
                if not self.stopping.is_set():
                    abandon(gone)

    def check_others(self, lost):
        """Raise SampleError when a worker is lost."""
        if lost:
            name = "worker %d (%s)" % (lost - 1, self.workers[lost - 1])
            raise SampleError("%s is lost, so this one ends after its part" % name)

    def await_workers(self, session):
        """Return once every worker has come."""
        told = None
        while True:
            beats, lost = session.run([self.notes.beats, self.notes.lost])
            self.check_others(lost)
            absent = [address for address, count in zip(self.workers, beats) if not count]
            if not absent:
                return
            if absent != told:
                say("waiting for %s" % ", ".join(absent))
                told = absent
            time.sleep(POLL_S)

    def train_share(self, session, digits):
        """Make steps on this worker's part of the data until the cluster has made them all."""
        part = slice(self.index, None, len(self.workers))
        source = mnist_data.batches(
            digits.train_images[part], digits.train_labels[part], self.chosen.batch, seed=self.index
        )
        log = open_log(tf.get_default_graph()) if self.index == 0 else None
        mine, step = 0, 0
        while step < self.chosen.steps:
            fetched = [self.net.loss, self.net.step, self.notes.lost, self.summary, self.train]
            loss, step, lost, summary, _ = session.run(fetched, self.net.feed(*next(source), training=True))
            self.check_others(lost)
            mine += 1
            if log and mine % LOG_EVERY == 0:
                log.add_summary(summary, step)
            if mine % REPORT_EVERY == 0:
                say("worker %d, its step %d, step %d of all, loss %.4f" % (self.index, mine, step, loss))
        if log:
            log.close()
        say("worker %d made %d of the cluster's %d steps" % (self.index, mine, self.chosen.steps))

    def conclude(self, session, digits):
        """Wait for the other workers' last steps; tell every share and the accuracy of what all have trained."""
        while True:
            finished, lost = session.run([self.notes.finished, self.notes.lost])
            self.check_others(lost)
            if finished[1 : len(self.workers)].all():
                break
            time.sleep(POLL_S)
        for sentence in contributions(session, self.notes, self.workers):
            say(sentence)
        say(mnist_data.accuracy_line(self.net.count_correct(session, digits), len(digits.test_labels)))


if __name__ == "__main__":
    run(main)
