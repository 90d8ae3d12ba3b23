"""Architectures for every dataset: one file each, with build(channels, size, classes) -> nn.Module."""
