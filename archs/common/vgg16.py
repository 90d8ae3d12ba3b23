"""VGG-16 (Simonyan & Zisserman, 2015) with batch norm: torchvision's convolutions and one linear layer, usual for 32x32."""

from torch import nn
from torchvision.models import vgg


def build(channels, size, classes):
    layers = vgg.make_layers(vgg.cfgs["D"], batch_norm=True)
    # The five pools halve 32x32 to 1x1; smaller images are padded at the stem so that they fit too.
    layers[0] = nn.Conv2d(channels, 64, 3, padding=1 + max(0, 32 - size) // 2)
    # torchvision's own VGG would first make the 120 million weights of its head for 224x224 images.
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))
