"""The paper's "Resnet-18": the ResNet for CIFAR with 20 layers (He et al., 2016), of torchvision's blocks.

Its shortcuts have 1x1 convolutions where the image is halved, which the paper's count of 270 thousand weights includes.
"""

from torch import nn
from torchvision.models.resnet import BasicBlock, conv1x1, conv3x3


def build(channels, size, classes):
    return nn.Sequential(
        conv3x3(channels, 16),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        stage(16, 16, stride=1),
        stage(16, 32, stride=2),
        stage(32, 64, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


def stage(inputs, outputs, stride):
    """Three blocks, the first of which changes the number of channels and halves the image where `stride` is 2."""
    shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs)) if stride > 1 else None
    return nn.Sequential(
        BasicBlock(inputs, outputs, stride, shortcut), BasicBlock(outputs, outputs), BasicBlock(outputs, outputs)
    )
