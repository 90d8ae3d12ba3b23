"""DenseNet-121 (Huang et al., 2017) from torchvision, for 32x32: a 3x3 stem without a pool."""

from torch import nn
from torchvision import models


def build(channels, size, classes):
    model = models.densenet121(num_classes=classes)
    model.features.conv0 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    model.features.pool0 = nn.Identity()
    return model
