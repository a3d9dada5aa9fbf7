"""Writes exports/keras_*.onnx: small Keras networks as tf2onnx writes them.

    python export_keras.py              needs tensorflow-cpu, keras, tf2onnx and onnx

Pictures are [n, h, w, c], so tf2onnx puts a Transpose before and behind each convolution; its
optimizations take most of them out again, in keras_NETWORK_plain they are left. Weights are drawn
from a seed.
"""

import os
import pathlib
import sys
from contextlib import nullcontext
from unittest import mock

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy
import onnx
import tensorflow
import tf2onnx
from keras import layers

FOLDER = pathlib.Path(__file__).parent / "exports"
CLASSES = 3


def mlp():
    return keras.Sequential(
        [
            layers.Input((10,)),
            layers.Dense(8, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )


def cnn():
    """What Keras' guides show: convolutions with a bias, pooling, Flatten."""
    return keras.Sequential(
        [
            layers.Input((9, 8, 2)),
            layers.Rescaling(1.0 / 2.0),
            layers.Conv2D(4, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(5, 3, strides=2, padding="same", activation="tanh"),
            layers.AveragePooling2D(2, padding="same"),
            layers.Flatten(),
            layers.Dense(6, activation="sigmoid"),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )


def mobile():
    """A residual block with a depthwise convolution, padded as MobileNet pads, and a mean."""
    entry = layers.Input((9, 9, 2))
    x = layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False)(entry)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU(6.0)(x)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    y = layers.BatchNormalization()(y)
    y = layers.ReLU(6.0)(y)
    y = layers.Conv2D(4, 1, use_bias=False)(y)
    y = layers.BatchNormalization()(y)
    x = layers.Add()([x, y])
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding="valid", use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    x = layers.LeakyReLU(0.1)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(entry, layers.Dense(CLASSES, activation="softmax")(x))


def excited():
    """Squeeze and excitation, a swish, and two branches that are joined."""
    entry = layers.Input((8, 8, 2))
    x = layers.SeparableConv2D(6, 3, padding="same", activation="swish")(entry)
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = layers.Conv2D(2, 1, activation="relu")(s)
    s = layers.Conv2D(6, 1, activation="sigmoid")(s)
    x = layers.Multiply()([x, s])
    a = layers.Conv2D(3, 3, dilation_rate=2, padding="same")(x)
    b = layers.MaxPooling2D(3, strides=1, padding="same")(x)
    x = layers.Concatenate()([a, b])
    x = layers.GlobalMaxPooling2D()(x) + layers.Reshape((9,))(layers.AveragePooling2D(8)(x))
    return keras.Model(entry, layers.Dense(CLASSES)(x))


NETWORKS = {"mlp": mlp, "cnn": cnn, "mobile": mobile, "excited": excited}


def draw_weights(layer):
    draw = numpy.random.uniform
    if isinstance(layer, layers.BatchNormalization):
        width = layer.gamma.shape[0]
        layer.set_weights([draw(least, least + 1, width) for least in (0.5, -0.5, -0.5, 0.5)])
    elif getattr(layer, "use_bias", False):
        # tf2onnx leaves out a bias of zeros.
        *kernels, bias = layer.get_weights()
        layer.set_weights([*kernels, draw(-0.1, 0.1, bias.shape)])


def export(name, optimized=True):
    keras.utils.set_random_seed(7)
    network = NETWORKS[name]()
    for layer in network.layers:
        draw_weights(layer)
    shape = network.inputs[0].shape
    signature = [tensorflow.TensorSpec((None, *shape[1:]), tensorflow.float32, name="input")]

    @tensorflow.function(input_signature=signature)
    def call(x):
        return network(x, training=False)

    path = FOLDER / f"keras_{name}{'' if optimized else '_plain'}.onnx"
    plain = mock.patch("tf2onnx.optimizer._get_optimizers", return_value={})
    with nullcontext() if optimized else plain:
        model, _ = tf2onnx.convert.from_function(call, input_signature=signature, opset=17)
    for node in model.graph.node:
        node.doc_string = ""
    del model.graph.value_info[:]
    onnx.save(model, path)
    print(path.name, path.stat().st_size)


def main(*chosen):
    FOLDER.mkdir(exist_ok=True)
    for name in chosen or NETWORKS:
        export(name)
    export("mobile", optimized=False)


main(*sys.argv[1:])
