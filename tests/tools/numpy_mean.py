"""The weighted mean of vectors with numpy, block by block: of all vectors at once, and of one after
another. Prints one line of JSON for each way and block length: the best time of some runs, in
seconds."""

import json
import sys
import time

import numpy

devices, length, turns = (int(argument) for argument in sys.argv[1:])
vectors = [numpy.full(length, 1.0 + device, numpy.float32) for device in range(devices)]
weights = [float(1 + device % 3) for device in range(devices)]


def side_by_side(block):
    result = numpy.empty(length, numpy.float32)
    for start in range(0, length, block):
        end = min(start + block, length)
        total = numpy.zeros(end - start, numpy.float64)
        for vector, weight in zip(vectors, weights):
            total += weight * vector[start:end].astype(numpy.float64)
        result[start:end] = total / sum(weights)
    return result


def one_after_another(block):
    result = numpy.empty(length, numpy.float32)
    sums.fill(0.0)
    for vector, weight in zip(vectors, weights):
        for start in range(0, length, block):
            end = min(start + block, length)
            sums[start:end] += weight * vector[start:end].astype(numpy.float64)
    for start in range(0, length, block):
        end = min(start + block, length)
        result[start:end] = sums[start:end] / sum(weights)
    return result


sums = numpy.empty(length, numpy.float64)
expected = sum(w * (1.0 + d) for d, w in enumerate(weights)) / sum(weights)
for way in (side_by_side, one_after_another):
    for block in (8 * 1024, 64 * 1024):
        times = []
        for _ in range(turns):
            began = time.perf_counter()
            found = way(block)
            times.append(time.perf_counter() - began)
        assert abs(float(found[length // 2]) - expected) < 1e-5
        print(json.dumps({"way": way.__name__.replace("_", " "), "block": block, "seconds": min(times)}))
