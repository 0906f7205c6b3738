"""Write MNIST's files in the form that torchvision.datasets.MNIST keeps in its folder "processed". Runs in a virtualenv.

Arguments: folder of the PyTorch sample, folder of the data. torch.save names storages by their address in memory; this writes the
same format with fixed names, so that the same data give the same bytes: torch/serialization.py, _save.
"""

from __future__ import absolute_import, division, print_function

import os
import pickle
import struct
import sys

import torch

# Of torch/serialization.py; the same from PyTorch 0.2 to the format that 1.6 replaced.
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
SYSTEM = {"protocol_version": PROTOCOL_VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
PICKLE_PROTOCOL = 2


class StoragePickler(pickle.Pickler):
    """Notes tensors' storages instead of pickling them."""

    def __init__(self, sink):
        pickle.Pickler.__init__(self, sink, PICKLE_PROTOCOL)
        self.storages = []

    def persistent_id(self, thing):
        if not torch.is_storage(thing):
            return None
        self.storages.append(thing)
        return ("storage", type(thing), str(len(self.storages) - 1), "cpu", thing.size(), None)


def write(path, tensors):
    """Write tensors as torch.save does; the file appears whole or not at all."""
    with open(path + ".part", "wb") as sink:
        for header in (MAGIC_NUMBER, PROTOCOL_VERSION, SYSTEM):
            pickle.dump(header, sink, PICKLE_PROTOCOL)
        pickler = StoragePickler(sink)
        pickler.dump(tensors)
        pickle.dump([str(number) for number in range(len(pickler.storages))], sink, PICKLE_PROTOCOL)
        for tensor in tensors:
            sink.write(struct.pack("<q", tensor.numel()))
            sink.write(tensor.numpy().tobytes())
    for read, written in zip(torch.load(path + ".part"), tensors):
        if not read.equal(written):
            sys.exit("%s: PyTorch %s does not read what was written" % (path, torch.__version__))
    os.rename(path + ".part", path)


def main(sample, data):
    sys.path.insert(0, sample)
    import mnist_data

    digits = mnist_data.load(data)
    folder = os.path.join(data, "processed")
    if not os.path.isdir(folder):
        os.mkdir(folder)
    # The one whose presence tells that all is done comes last.
    for name, images, labels in (
        ("training.pt", digits.train_images, digits.train_labels),
        ("test.pt", digits.test_images, digits.test_labels),
    ):
        pixels = (images * 255).round().astype("uint8")
        write(os.path.join(folder, name), (torch.from_numpy(pixels), torch.from_numpy(labels)))


if __name__ == "__main__":
    main(*sys.argv[1:])
