"""Answers of a model in ONNX Runtime on one thread of the CPU, as often as asked.

onnxruntime_answer.py MODEL.onnx INPUT

INPUT: float32 of one example. For each line on standard input, a number of runs, it prints a line
of JSON: processor time and time of a run in milliseconds, and the output.
"""

import json
import sys
import time

import numpy
import onnxruntime


def main(model_path, input_path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model_path, options, providers=["CPUExecutionProvider"]
    )
    declared = session.get_inputs()[0]
    x = numpy.fromfile(input_path, dtype="<f4").reshape([1, *declared.shape[1:]])
    for line in sys.stdin:
        runs = int(line)
        began, wall_began = time.process_time(), time.perf_counter()
        for _ in range(runs):
            output = session.run(None, {declared.name: x})[0]
        times = {
            "processor_ms": 1e3 * (time.process_time() - began) / runs,
            "wall_ms": 1e3 * (time.perf_counter() - wall_began) / runs,
        }
        print(json.dumps({**times, "output": output.ravel().tolist()}))
        sys.stdout.flush()


main(*sys.argv[1:])
