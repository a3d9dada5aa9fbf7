"""How long a training step of a family takes in PyTorch on the CPU: forward, backward, SGD.

pytorch_step.py FAMILY BATCH_SIZE THREADS STEPS

Prints JSON: medians of wall and processor time of a step in milliseconds, the most memory that the
process had in bytes before there was a network and at the end, and what the network costs.
"""

import json
import resource
import sys
import time

import torch
from torch.nn import functional

import pytorch_networks

WARM_UP = 2


def peak_memory():
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            line = next(line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def median(values):
    return sorted(values)[len(values) // 2]


def main(family, batch_size, threads, steps):
    torch.set_num_threads(int(threads))
    torch.set_num_interop_threads(1)
    torch.manual_seed(1)
    memory_before = peak_memory()
    network = pytorch_networks.build(family)
    parameters, multiply_adds = pytorch_networks.cost(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    x = torch.rand(int(batch_size), 3, 32, 32) * 2 - 1
    labels = torch.arange(int(batch_size)) % 10
    wall, processor = [], []
    for _ in range(WARM_UP + int(steps)):
        began = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        functional.cross_entropy(network(x), labels).backward()
        optimizer.step()
        wall.append(time.perf_counter() - began[0])
        processor.append(time.process_time() - began[1])
    print(
        json.dumps(
            {
                "step_ms": 1e3 * median(wall[WARM_UP:]),
                "processor_ms": 1e3 * median(processor[WARM_UP:]),
                "memory_before": memory_before,
                "peak_memory": peak_memory(),
                "parameters": parameters,
                "multiply_adds": multiply_adds,
            }
        )
    )


main(*sys.argv[1:])
