"""The paper's "Resnet-18": the 20-layer ResNet for CIFAR (He et al., 2016).

It consists of torchvision's blocks. Shortcuts that halve the image have 1x1 convolutions, which the
paper's count of 270 thousand weights includes.
"""

from torch import nn
from torchvision.models.resnet import BasicBlock, conv1x1, conv3x3

# What --paper sets, with the learning rate and the warm-up that find winning tickets.
PAPER = """
--dataset=cifar10 --optimizer=sgd --momentum=0.9 --weight_decay=1e-4 --batch_size=128 --augment
--lr=0.03 --warmup_iter=20000 --lr_milestones=20000,25000
--max_iter=30000 --eval_iter=100 --valid_freq=1000
--prune_scope=global --prune_percent=20 --prune_percent_output=0 --prune_percent_downsample=0
--prune_iterations=20
"""


def build(channels, size, classes):
    return resnet(channels, classes, stride=1, blocks=3)


def resnet(channels, classes, stride, blocks):
    """Return a ResNet with three stages of blocks, and with a stride of the first convolution."""
    return nn.Sequential(
        conv3x3(channels, 16, stride),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        stage(16, 16, stride=1, blocks=blocks),
        stage(16, 32, stride=2, blocks=blocks),
        stage(32, 64, stride=2, blocks=blocks),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


def stage(inputs, outputs, stride, blocks):
    """Return a stage. Its first block sets the channels and, with stride 2, halves the image."""
    shortcut = None
    if stride > 1:
        shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
    return nn.Sequential(
        BasicBlock(inputs, outputs, stride, shortcut),
        *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)),
    )
