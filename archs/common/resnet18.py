"""ResNet-18 (He et al., 2016) from torchvision, with a stem for 32x32: 3x3, stride 1, no pool.

The paper's "Resnet-18" is another network: the 20-layer ResNet for CIFAR, here `resnet20`.
"""

from torch import nn
from torchvision import models


def build(channels, size, classes):
    model = models.resnet18(num_classes=classes)
    model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model
