"""The built-in families as PyTorch networks for pictures of 3x32x32, layer for layer. Convolutions
that are followed by a normalisation, and ResNets as a whole, begin as torchvision's."""

import torch
from torch import nn
from torch.nn import functional


def conv_norm(inputs, maps, kernel, stride=1, groups=1, function=None):
    conv = nn.Conv2d(inputs, maps, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(maps)] + ([function(inplace=True)] if function else [])


def head(inputs, classes=10, dropout=0.0):
    layers = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return layers + ([nn.Dropout(dropout)] if dropout else []) + [nn.Linear(inputs, classes)]


class Residual(nn.Module):
    """A block of ResNet: its layers, a shortcut, and a rectifier."""

    def __init__(self, layers, inputs, maps, stride):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        changes = stride != 1 or inputs != maps
        shortcut = conv_norm(inputs, maps, 1, stride) if changes else [nn.Identity()]
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x):
        return functional.relu(self.layers(x) + self.shortcut(x), inplace=True)


def basic(inputs, maps, stride):
    first = conv_norm(inputs, maps, 3, stride, function=nn.ReLU)
    return Residual(first + conv_norm(maps, maps, 3), inputs, maps, stride), maps


def bottleneck(inputs, maps, stride):
    layers = conv_norm(inputs, maps, 1, function=nn.ReLU)
    layers += conv_norm(maps, maps, 3, stride, function=nn.ReLU)
    return Residual(layers + conv_norm(maps, 4 * maps, 1), inputs, 4 * maps, stride), 4 * maps


def resnet(block, widths, blocks, large_stem=False):
    """With `large_stem` the first layers of the network for ImageNet: 7x7, stride 2, pooling."""
    layers = conv_norm(3, widths[0], 7 if large_stem else 3, 2 if large_stem else 1, function=nn.ReLU)
    if large_stem:
        layers.append(nn.MaxPool2d(3, 2, 1))
    maps = widths[0]
    for stage, (width, count) in enumerate(zip(widths, blocks)):
        for at in range(count):
            layer, maps = block(maps, width, 2 if stage > 0 and at == 0 else 1)
            layers.append(layer)
    return nn.Sequential(*layers, *head(maps))


class Excitation(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, wide, narrow):
        super().__init__()
        self.squeeze = nn.Conv2d(wide, narrow, 1)
        self.excite = nn.Conv2d(narrow, wide, 1)

    def forward(self, x):
        scale = functional.silu(self.squeeze(functional.adaptive_avg_pool2d(x, 1)), inplace=True)
        return x * torch.sigmoid(self.excite(scale))


class Inverted(nn.Module):
    """An inverted residual block."""

    def __init__(self, inputs, maps, kernel, stride, factor, function, excited):
        super().__init__()
        wide = inputs * factor
        layers = conv_norm(inputs, wide, 1, function=function) if factor != 1 else []
        layers += conv_norm(wide, wide, kernel, stride, groups=wide, function=function)
        layers += [Excitation(wide, inputs // 4)] if excited else []
        self.layers = nn.Sequential(*layers, *conv_norm(wide, maps, 1))
        self.residual = stride == 1 and inputs == maps

    def forward(self, x):
        return x + self.layers(x) if self.residual else self.layers(x)


def inverted(stages, function, excited):
    layers, maps = conv_norm(3, 32, 3, function=function), 32
    for factor, kernel, width, count, stride in stages:
        for at in range(count):
            step = stride if at == 0 else 1
            layers.append(Inverted(maps, width, kernel, step, factor, function, excited))
            maps = width
    layers += conv_norm(maps, 1280, 1, function=function)
    return nn.Sequential(*layers, *head(1280, dropout=0.2))


def cnn():
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 8 * 8, 10))


def mobilenet_v2():
    stages = [(1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 3, 32, 3, 2), (6, 3, 64, 4, 2)]
    stages += [(6, 3, 96, 3, 1), (6, 3, 160, 3, 2), (6, 3, 320, 1, 1)]
    return inverted(stages, nn.ReLU6, False)


def efficientnet_b0():
    stages = [(1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2)]
    stages += [(6, 5, 112, 3, 1), (6, 5, 192, 4, 2), (6, 3, 320, 1, 1)]
    return inverted(stages, nn.SiLU, True)


SMALL, WIDE = [16, 32, 64], [64, 128, 256, 512]

FAMILIES = {
    "cnn": cnn,
    "resnet8": lambda: resnet(basic, SMALL, [1, 1, 1]),
    "resnet20": lambda: resnet(basic, SMALL, [3, 3, 3]),
    "resnet18": lambda: resnet(basic, WIDE, [2, 2, 2, 2]),
    "resnet50": lambda: resnet(bottleneck, WIDE, [3, 4, 6, 3]),
    "resnet50_large_stem": lambda: resnet(bottleneck, WIDE, [3, 4, 6, 3], large_stem=True),
    "mobilenet_v2": mobilenet_v2,
    "efficientnet_b0": efficientnet_b0,
}


def build(family):
    """A network with initial weights."""
    network = FAMILIES[family]()
    if family != "cnn":
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
    return network


def cost(network):
    """Trained values, and multiplications with an addition in convolutions and products, forward,
    per example."""
    multiply_adds = 0

    def count(layer, _, output):
        nonlocal multiply_adds
        outputs = output.numel() // output.shape[0]
        multiply_adds += outputs * layer.weight[0].numel()

    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    network.eval()
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    network.train()
    return sum(p.numel() for p in network.parameters()), multiply_adds
