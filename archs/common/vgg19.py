"""The paper's VGG-19 for 32x32 (Simonyan & Zisserman, 2015): batch norm, sixteen convolutions.

An average pool over the last 2x2 pixels replaces the fifth max pool.
"""

from torch import nn
from torchvision.models import vgg

# What --paper sets, with the warm-up that finds winning tickets at this learning rate.
PAPER = """
--dataset=cifar10 --optimizer=sgd --momentum=0.9 --weight_decay=1e-4 --batch_size=64 --augment
--lr=0.1 --warmup_iter=10000 --lr_milestones=56000,84000
--max_iter=112000 --eval_iter=100 --valid_freq=1000
--prune_scope=global --prune_percent=20 --prune_percent_output=0 --prune_iterations=25
"""


def build(channels, size, classes):
    layers = vgg.make_layers(vgg.cfgs["E"][:-1], batch_norm=True)
    layers[0] = nn.Conv2d(channels, 64, 3, padding=1)
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))
