"""The paper's "Lenet", LeNet-300-100 (LeCun et al., 1998): hidden layers of 300 and 100 units."""

from torch import nn

# What --paper sets.
PAPER = """
--dataset=mnist --optimizer=adam --lr=1.2e-3 --batch_size=60
--max_iter=50000 --eval_iter=100 --valid_freq=1000
--prune_percent=20 --prune_percent_output=10 --prune_iterations=17
"""


def build(channels, size, classes):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size * size, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )
