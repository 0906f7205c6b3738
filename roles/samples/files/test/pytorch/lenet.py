"""A small LeNet in PyTorch, 0.3 and later; strides where LeNet pools, which is four times as fast."""

from __future__ import absolute_import, division, print_function

import torch
from torch import nn
from torch.autograd import Variable
from torch.nn import functional

import mnist_data

LEARNING_RATE = 0.003
"""At the first step; it falls to nothing at the last."""
DROPPED = 0.4
TEST_BATCH = 1000


class LeNet(nn.Module):
    """Images of 1 x 28 x 28 to the logarithms of ten probabilities."""

    def __init__(self):
        super(LeNet, self).__init__()
        self.conv1 = nn.Conv2d(1, 16, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(16, 32, 5, stride=2, padding=2)
        self.hidden = nn.Linear(32 * 7 * 7, 128)
        self.score = nn.Linear(128, mnist_data.CLASSES)

    def forward(self, images):
        images = functional.relu(self.conv1(images))
        images = functional.relu(self.conv2(images)).view(images.size(0), -1)
        hidden = functional.relu(self.hidden(functional.dropout(images, DROPPED, self.training)))
        return functional.log_softmax(self.score(functional.dropout(hidden, DROPPED, self.training)), dim=1)

    def is_on_gpu(self):
        return next(self.parameters()).is_cuda

    def place(self, array):
        """Return a numpy array as what the net computes with, where the net is."""
        tensor = torch.from_numpy(array)
        return Variable(tensor.cuda() if self.is_on_gpu() else tensor)

    def loss(self, images, labels):
        """Return the loss of a batch of numpy arrays."""
        return functional.nll_loss(self(self.place(images[:, None])), self.place(labels))

    def count_correct(self, images, labels):
        """Return how many images are named right."""
        self.eval()
        correct = 0
        for start in range(0, len(images), TEST_BATCH):
            score = self(self.place(images[start : start + TEST_BATCH, None]))
            named = score.data.max(1)[1].cpu().numpy()
            correct += int((named == labels[start : start + TEST_BATCH]).sum())
        return correct


class Optimizer(object):
    """Adam, its learning rate falling over the steps of the whole run."""

    def __init__(self, net, steps):
        self.adam, self.steps, self.step_number = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE), steps, 0

    def zero_grad(self):
        self.adam.zero_grad()

    def step(self):
        for group in self.adam.param_groups:
            group["lr"] = LEARNING_RATE * (1 - self.step_number / self.steps)
        self.adam.step()
        self.step_number += 1


def number(value):
    """Return a loss as a number: sum() gives one in PyTorch 0.3, a tensor without dimensions later."""
    return float(value.data.sum())
