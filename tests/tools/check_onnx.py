"""Holds an ONNX file against recorded outputs with ONNX Runtime.

check_onnx.py MODEL.onnx CASES.json [TOLERANCE]

CASES.json: [{"shape": [n, ...], "input": [floats], "output": [floats]}, ...].
Prints the largest difference; exits with 1 when it is above the tolerance (1e-4).
"""

import json
import sys

import numpy
import onnx
import onnxruntime


def main(model_path, cases_path, tolerance="1e-4"):
    onnx.checker.check_model(model_path, full_check=True)
    session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    with open(cases_path, encoding="utf-8") as file:
        cases = json.load(file)
    worst = 0.0
    for case in cases:
        x = numpy.array(case["input"], dtype=numpy.float32).reshape(case["shape"])
        found = session.run(None, {name: x})[0].ravel()
        expected = numpy.array(case["output"], dtype=numpy.float32)
        if found.shape != expected.shape:
            sys.exit(f"{model_path}: {found.size} outputs, expected {expected.size}")
        worst = max(worst, float(numpy.abs(found - expected).max()))
    print(f"{model_path}: {len(cases)} cases, largest difference {worst:.3g}")
    sys.exit(0 if worst <= float(tolerance) else 1)


main(*sys.argv[1:])
