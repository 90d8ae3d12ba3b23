"""The paper's VGG-19 for 32x32 (Simonyan & Zisserman, 2015): batch norm, sixteen convolutions.

An average pool over the last 2x2 pixels replaces the fifth max pool.
"""

from torch import nn
from torchvision.models import vgg


def build(channels, size, classes):
    layers = vgg.make_layers(vgg.cfgs["E"][:-1], batch_norm=True)
    layers[0] = nn.Conv2d(channels, 64, 3, padding=1)
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))
