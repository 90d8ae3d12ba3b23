"""Linear layers that store only their surviving weights and compute only with these.

On a CPU, they train and run faster than nn.Linear if few weights survive: docs/speed.md.
"""

import math
import warnings
from collections import Counter

import torch
from torch import nn
from torch.autograd.function import once_differentiable

CACHED = 2**20  # inputs (examples times features) of a product: 4 MB, which fit a CPU's caches


def layers_below(model, masks, below):
    """Return the linear layers that can be made sparse, {name: layer}.

    These have less than `below` percent of their weights. Left out are subclasses of nn.Linear,
    layers that share their weight with others, and those with a `forward` of their own or a hook on
    their weight.

    Args:
        model: an nn.Module.
        masks: {parameter name: bool tensor}, true if a weight survives.
        below: a number in [0, 100].
    """
    uses = Counter()
    for module in model.modules():
        uses.update(map(id, module.parameters(recurse=False)))
    found = {}
    for name, layer in model.named_modules():
        mask = masks.get(f"{name}.weight")
        if type(layer) is not nn.Linear or mask is None or uses[id(layer.weight)] != 1:
            continue
        hooks = layer.weight._backward_hooks or layer.weight._post_accumulate_grad_hooks
        if hooks or "forward" in vars(layer):
            continue
        if 100 * int(mask.sum()) < below * mask.numel():
            found[name] = layer
    return found


def sparsify(model, masks, below, contiguous=True):
    """Make the layers_below of a network sparse, in place.

    Pruned weights must be zero. If the outputs of a layer are not `contiguous`, they are laid out
    column by column. This is faster if the next layer is sparse, too. But dropout, which draws in
    the order of memory, then drops other units, and `view` may not work.
    """
    for name, layer in layers_below(model, masks, below).items():
        dense = layer.weight
        pattern = Pattern(dense, masks[f"{name}.weight"].to(dense.device), contiguous)
        layer.weight = nn.Parameter(dense.detach()[pattern.mask], dense.requires_grad)
        layer.pattern = pattern
        layer.__class__ = SparseLinear
        dense.detach().fill_(math.nan)  # so that a use of this tensor cannot pass unnoticed


def densify(model):
    """Make the sparse layers of a network dense again, in place."""
    for layer in model.modules():
        if isinstance(layer, SparseLinear):
            dense = layer.pattern.weight
            dense.detach().copy_(layer.pattern.dense(layer.values))
            layer.__class__ = nn.Linear
            layer.weight = dense
            del layer.pattern


def is_sparse(model):
    """Return whether a network has sparse layers."""
    return any(isinstance(layer, SparseLinear) for layer in model.modules())


def survivors(tensor):
    """Return the values of a CSR tensor, which share its memory; another tensor as it is."""
    return tensor.values() if tensor.layout == torch.sparse_csr else tensor


class WeightRead(RuntimeError):
    """Raised if the weight of a sparse layer is read, which has only the survivors."""


class SparseLinear(nn.Linear):
    """A linear layer that has only the weights that a mask keeps. The others are zero.

    An nn.Linear becomes one by changing its class, so that its hooks and all references to it stay
    valid. Its parameter `weight` is then the vector of survivors, in the order of the rows. Its
    state dict is that of the nn.Linear, with zeros where weights are pruned.

    Reading `weight` raises WeightRead. (An AttributeError would make nn.Module return the vector.)
    """

    @property
    def weight(self):
        raise WeightRead("the weight of a sparse layer is read")

    @property
    def values(self):
        """The parameter `weight`, the vector of survivors."""
        return self._parameters["weight"]

    def forward(self, x):
        rows = x.reshape(-1, self.in_features)
        examples = max(1, CACHED // self.in_features)
        parts = [rows] if len(rows) <= examples else rows.split(examples)
        products = [
            SparseProduct.apply(part, self.values, self.bias, self.pattern) for part in parts
        ]
        y = products[0] if len(products) == 1 else torch.cat(products)
        return y if x.dim() == 2 else y.view(*x.shape[:-1], self.out_features)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.pattern.dense(self.values)

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        name = f"{prefix}weight"
        weight = state_dict.get(name)
        if weight is not None and weight.shape == self.pattern.mask.shape:
            values = weight[self.pattern.mask]
            if weight.count_nonzero() != values.count_nonzero():
                *_, errors = rest
                errors.append(f"{name} is not zero where this layer is pruned")
            state_dict = state_dict | {name: values}
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Pattern:
    """The places of the survivors in the weight of an nn.Linear.

    Args:
        weight: the weight, a Parameter (out_features, in_features), to which densify returns.
        mask: bool tensor of the same shape, true if a weight survives.
        contiguous: whether the outputs of the layer are contiguous.
    """

    def __init__(self, weight, mask, contiguous):
        self.weight = weight
        self.mask = mask
        self.contiguous = contiguous
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            rows = mask.to_sparse_csr()
        # The survivors of a row are those from row_starts[i] to row_starts[i + 1].
        # MKL would convert int64 in each call.
        self.row_starts = rows.crow_indices().int()
        self.columns = rows.col_indices().int()
        # The same for the transposed weight, whose survivors are values[order].
        numbers = torch.arange(len(self.columns), device=mask.device)
        columns = self.matrix(numbers).to_sparse_csc()
        self.column_starts = columns.ccol_indices()
        self.rows = columns.row_indices()
        self.order = columns.values()

    def matrix(self, values):
        """Return values of the survivors as a CSR tensor (out_features, in_features)."""
        return torch.sparse_csr_tensor(
            self.row_starts,
            self.columns,
            values,
            self.mask.shape,
            check_invariants=False,
        )

    def transposed_matrix(self, values):
        """Return values of the survivors as a CSR tensor (in_features, out_features)."""
        return torch.sparse_csr_tensor(
            self.column_starts,
            self.rows,
            values.index_select(0, self.order),
            self.mask.shape[::-1],
            check_invariants=False,
        )

    def dense(self, values):
        """Return values of the survivors as a tensor (out_features, in_features) with zeros."""
        return self.matrix(values.detach()).to_dense()


class SparseProduct(torch.autograd.Function):
    """x @ weight.T + bias, in time proportional to the number of survivors.

    Activations (N, features) are stored as their transpose (features, N), so that the products run
    along rows.
    """

    @staticmethod
    def forward(ctx, x, values, bias, pattern):
        x_t = x.t().contiguous()
        n, outputs = len(x), len(pattern.mask)
        y = x.new_empty_strided((n, outputs), (1, n))  # a view could not be changed in place
        start = x.new_zeros(()) if bias is None else bias.unsqueeze(1)
        matrix = pattern.matrix(values)
        torch.addmm(start, matrix, x_t, out=y.t())
        ctx.pattern = pattern
        ctx.matrix = matrix
        ctx.save_for_backward(x_t, values)
        return y.contiguous() if pattern.contiguous else y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x_t, values = ctx.saved_tensors
        gradient_t = gradient.t().contiguous()
        of_x = of_values = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = torch.empty_like(x_t)
            torch.mm(ctx.pattern.transposed_matrix(values), gradient_t, out=of_x)
            of_x = of_x.t()
        if ctx.needs_input_grad[1]:
            product = torch.sparse.sampled_addmm(ctx.matrix, gradient_t, x_t.t(), beta=0)
            of_values = product.values()
        if ctx.needs_input_grad[2]:
            of_bias = gradient_t.sum(1)
        return of_x, of_values, of_bias, None
