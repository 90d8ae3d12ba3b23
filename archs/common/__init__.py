"""Architectures for all datasets: a file each, with build(channels, size, classes) -> nn.Module."""
