"""VGG-16 (Simonyan & Zisserman, 2015) with batch norm, for 32x32: one linear layer at the end."""

from torch import nn
from torchvision.models import vgg


def build(channels, size, classes):
    layers = vgg.make_layers(vgg.cfgs["D"], batch_norm=True)
    # The five pools reduce 32x32 to 1x1. The first convolution pads smaller images.
    layers[0] = nn.Conv2d(channels, 64, 3, padding=1 + max(0, 32 - size) // 2)
    # torchvision's own VGG would first create 120 million weights of a head for 224x224 images.
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))
