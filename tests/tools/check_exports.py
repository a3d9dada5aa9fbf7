"""Holds the files of trained exports against outputs of the same weights with ONNX Runtime.

check_exports.py FOLDER [TOLERANCE]

FOLDER holds NAME.json, {"shape": [n, ...], "input": [floats], "output": [floats]}, and beside it
NAME.training.onnx, NAME.inference.onnx and NAME.folded.onnx. The output is what one of the model's
outputs should be; named probabilities count as a row per example. The training file is only run,
not compared, when it drops values or takes the batch's statistics.
Prints the largest difference of each file as a share of the largest output; exits with 1 when one
is above the tolerance (1e-4).
"""

import json
import pathlib
import sys

import numpy
import onnx
import onnxruntime


def is_random(model):
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Constant" and "value" in attributes:
            constants[node.output[0]] = attributes["value"].t
    for node in model.graph.node:
        training = [item for item in node.attribute if item.name == "training_mode" and item.i]
        if node.op_type == "Dropout" and len(node.input) > 2:
            training = onnx.numpy_helper.to_array(constants[node.input[2]])
        if node.op_type.startswith("Random") or training:
            return True
    return False


def rows(output):
    """An output as numbers, if it is made of them."""
    if isinstance(output, list):
        output = [list(row.values()) for row in output]
    output = numpy.asarray(output)
    return output.ravel() if output.dtype == numpy.float32 or output.dtype == float else None


def difference(path, x, expected):
    """The largest difference of the output that fits best, as a share of the largest expected;
    None when the file is random."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )
    found = session.run(None, {session.get_inputs()[0].name: x})
    if is_random(model):
        return None
    found = [numbers for numbers in map(rows, found) if numbers is not None]
    found = [numbers for numbers in found if numbers.shape == expected.shape]
    if not found:
        sys.exit(f"{path}: no output of {expected.size} numbers")
    away = min(float(numpy.abs(numbers - expected).max()) for numbers in found)
    return away / float(numpy.abs(expected).max())


def main(folder, tolerance="1e-4"):
    worst = compared = 0
    cases = sorted(pathlib.Path(folder).glob("*.json"))
    for path in cases:
        case = json.loads(path.read_text(encoding="utf-8"))
        x = numpy.array(case["input"], dtype=numpy.float32).reshape(case["shape"])
        expected = numpy.array(case["output"], dtype=numpy.float32)
        for kind in ("training", "inference", "folded"):
            file = path.with_suffix(f".{kind}.onnx")
            away = difference(file, x, expected)
            print(f"{file.name}: {'runs' if away is None else f'{away:.3g} away'}")
            if away is None and kind != "training":
                sys.exit(f"{file.name}: what training needs is left")
            if away is not None:
                compared += 1
                worst = max(worst, away)
    print(f"{len(cases)} exports, {compared} files compared, largest difference {worst:.3g}")
    sys.exit(0 if worst <= float(tolerance) else 1)


main(*sys.argv[1:])
