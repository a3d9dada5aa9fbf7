"""Writes exports/pytorch_*.onnx: small networks as PyTorch's two exporters write them.

    python export_pytorch.py            needs torch, torchvision, onnx and onnxscript

Names are pytorch_NETWORK_MODE: `training` and `eval` by the TorchScript exporter, `dynamo` and
`dynamo_training` by the newer one, which folds batch normalisation; `dynamo_plain` without its
optimizations. Weights are drawn from a seed.
"""

import pathlib
import sys
import warnings
from functools import partial

import onnx
import torch
from torch import nn
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.ops import Conv2dNormActivation

FOLDER = pathlib.Path(__file__).parent / "exports"
CLASSES = 3


class Cnn(nn.Module):
    """Convolutions with and without a bias, both poolings, a view by the batch's size."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 3, padding=(0, 1))
        self.average = nn.AvgPool2d(2)
        self.dropout = nn.Dropout(0.25)
        self.dense = nn.Linear(6 * 4 * 1, CLASSES)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = nn.functional.max_pool2d(x, (1, 2))
        x = self.average(torch.tanh(self.second(nn.functional.pad(x, (0, 0, 2, 0)))))
        x = self.dropout(x.view(x.size(0), -1))
        return torch.log_softmax(self.dense(x), dim=1)


class Block(nn.Module):
    def __init__(self, channels, maps, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, maps, 3, stride, 1, bias=False),
            nn.BatchNorm2d(maps),
            nn.ReLU(),
            nn.Conv2d(maps, maps, 3, 1, 1, bias=False),
            nn.BatchNorm2d(maps),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or channels != maps:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, maps, 1, stride, bias=False), nn.BatchNorm2d(maps)
            )

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 1, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Block(4, 4, 1),
        Block(4, 6, 2),
        Block(6, 8, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


class Mean(nn.Module):
    """A mean over rows, a softmax over columns as attention, and a mean of features."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, 2, 1)
        self.scores = nn.Linear(4, 1)
        self.dense = nn.Linear(4, CLASSES)

    def forward(self, x):
        x = torch.nn.functional.leaky_relu(self.conv(x), 0.1).mean(dim=2)
        x = x.permute(0, 2, 1)
        weights = torch.softmax(self.scores(x), dim=1)
        return self.dense((weights * x).sum(dim=1) + x.mean(dim=1))


def mobilenet_v2():
    return nn.Sequential(
        Conv2dNormActivation(3, 4, stride=2, activation_layer=nn.ReLU6),
        InvertedResidual(4, 4, stride=1, expand_ratio=1),
        InvertedResidual(4, 6, stride=2, expand_ratio=2),
        InvertedResidual(6, 6, stride=1, expand_ratio=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(6, CLASSES),
    )


def mobilenet_v3():
    block = partial(InvertedResidualConfig, width_mult=1.0)
    return MobileNetV3(
        [
            block(8, 3, 8, 8, True, "RE", 2, 1),
            block(8, 5, 12, 8, True, "HS", 1, 1),
        ],
        last_channel=8,
        num_classes=CLASSES,
    )


def efficientnet():
    block = partial(MBConvConfig, width_mult=0.25, depth_mult=1.0)
    return EfficientNet(
        [block(1, 3, 1, 32, 32, 1), block(2, 5, 1, 32, 32, 2)],
        dropout=0.2,
        stochastic_depth_prob=0.4,
        num_classes=CLASSES,
        last_channel=16,
    )


# Networks, their examples' shapes, and the modes in which an exporter writes something of its own.
NETWORKS = {
    "cnn": (Cnn, (1, 8, 4), ("training", "eval", "dynamo", "dynamo_training", "dynamo_plain")),
    "resnet": (resnet, (1, 8, 8), ("training", "eval", "dynamo", "dynamo_plain")),
    "mean": (Mean, (1, 6, 10), ("training", "eval", "dynamo")),
    "mobilenet_v2": (mobilenet_v2, (3, 16, 16), ("training", "dynamo_plain")),
    "mobilenet_v3": (mobilenet_v3, (3, 16, 16), ("training", "dynamo")),
    "efficientnet": (
        efficientnet,
        (3, 16, 16),
        ("training", "eval", "dynamo_training", "dynamo_plain"),
    ),
}


def strip(path):
    """Drops what exporters say about the source, which is most of a small file."""
    model = onnx.load(path)
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for item in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        del item.metadata_props[:]
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    model.doc_string = ""
    onnx.save(model, path)


def export(name, mode):
    make, shape, _ = NETWORKS[name]
    torch.manual_seed(7)
    network = make()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    training = mode in ("training", "dynamo_training", "dynamo_plain")
    network.train(training)
    path = FOLDER / f"pytorch_{name}_{mode}.onnx"
    x = (torch.randn(2, *shape),)
    if mode.startswith("dynamo"):
        batch = torch.export.Dim("batch")
        torch.onnx.export(
            network,
            x,
            path,
            dynamo=True,
            dynamic_shapes=({0: batch},),
            external_data=False,
            optimize=mode != "dynamo_plain",
            verbose=False,
        )
    else:
        kind = torch.onnx.TrainingMode.TRAINING if training else torch.onnx.TrainingMode.EVAL
        torch.onnx.export(
            network,
            x,
            path,
            dynamo=False,
            training=kind,
            do_constant_folding=not training,
            dynamic_axes={"input": {0: "n"}},
            input_names=["input"],
            output_names=["logits"],
        )
    strip(path)


def main(*chosen):
    FOLDER.mkdir(exist_ok=True)
    warnings.filterwarnings("ignore")
    for name, (_, _, modes) in NETWORKS.items():
        for mode in modes:
            label = f"pytorch_{name}_{mode}"
            if not chosen or any(word in label for word in chosen):
                export(name, mode)
                print(label, (FOLDER / f"{label}.onnx").stat().st_size)


main(*sys.argv[1:])
