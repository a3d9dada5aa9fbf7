"""Trains a family in PyTorch on CIFAR-10 records and prints the accuracy after each epoch.

pytorch_reference.py FAMILY FOLDER SEED EPOCHS THREADS

FOLDER has train.bin and test.bin: records of a label byte and 3072 pixels. SGD with a step size
of 0.001 and a momentum of 0.9, batches of 32, no augmentation. Prints a line of JSON an epoch,
with the number of trained values.
"""

import json
import os
import pathlib
import sys

# Threads that wait leave the processor to others: this is not about time. Read when torch begins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy
import torch
from torch.nn import functional

import pytorch_networks

BATCH_SIZE = 32
RECORD = 1 + 3 * 32 * 32


def read(path):
    records = numpy.frombuffer(path.read_bytes(), dtype=numpy.uint8).reshape(-1, RECORD)
    pixels = torch.from_numpy(records[:, 1:].astype(numpy.float32)).reshape(-1, 3, 32, 32)
    return (pixels / 255 - 0.5) / 0.25, torch.from_numpy(records[:, 0].astype(numpy.int64))


def main(family, folder, seed, epochs, threads):
    torch.set_num_threads(int(threads))
    torch.manual_seed(int(seed))
    x, labels = read(pathlib.Path(folder) / "train.bin")
    test_x, test_labels = read(pathlib.Path(folder) / "test.bin")
    network = pytorch_networks.build(family)
    parameters, _ = pytorch_networks.cost(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    for epoch in range(1, int(epochs) + 1):
        network.train()
        for indices in torch.randperm(len(x)).split(BATCH_SIZE):
            optimizer.zero_grad()
            functional.cross_entropy(network(x[indices]), labels[indices]).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            found = torch.cat([network(batch).argmax(1) for batch in test_x.split(100)])
        accuracy = (found == test_labels).float().mean().item()
        told = {"epoch": epoch, "accuracy": accuracy, "parameters": parameters}
        print(json.dumps(told), flush=True)


main(*sys.argv[1:])
