"""Writes exports/sklearn_*.onnx: scikit-learn's multi-layer perceptrons as skl2onnx writes them.

    python export_sklearn.py            needs scikit-learn, skl2onnx and onnx
"""

import pathlib
import warnings

import numpy
import onnx
from skl2onnx import to_onnx
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDER = pathlib.Path(__file__).parent / "exports"


def classifier(activation):
    return MLPClassifier((8, 6), activation=activation, max_iter=3, random_state=7)


def main():
    FOLDER.mkdir(exist_ok=True)
    warnings.filterwarnings("ignore")
    draw = numpy.random.default_rng(7)
    x = draw.normal(size=(60, 5)).astype(numpy.float32)
    classes = draw.integers(0, 3, 60)
    names = numpy.array(["ash", "birch", "cedar"])[classes]
    plain = {"zipmap": False}
    cases = {
        "mlp_zipmap": (classifier("relu"), classes, {}),
        "mlp_names": (classifier("tanh"), names, {}),
        "mlp_arrays": (classifier("logistic"), classes, plain),
        "mlp_binary": (classifier("relu"), classes > 0, plain),
        "mlp_scaled": (make_pipeline(StandardScaler(), classifier("relu")), classes, plain),
        "regressor": (MLPRegressor(hidden_layer_sizes=(4,), max_iter=3, random_state=7), x[:, 0] * x[:, 1], {}),
    }
    for name, (estimator, y, options) in cases.items():
        estimator.fit(x, y)
        given = {id(estimator): options} if options else None
        model = to_onnx(estimator, x[:1], options=given, target_opset={"": 17, "ai.onnx.ml": 3})
        path = FOLDER / f"sklearn_{name}.onnx"
        onnx.save(model, path)
        print(path.name, path.stat().st_size)


main()
