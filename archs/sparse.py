"""Linear layers that store only their surviving weights and compute only with these.

On a CPU, they train and run faster than nn.Linear if few weights survive: docs/speed.md.
"""

import warnings
from collections import Counter

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.dropout import _DropoutNd

CACHED = 2**20  # inputs (examples times features) of a product: 4 MB, which fit a CPU's caches


def sparsify(model, masks, below):
    """Replace linear layers of a network by a SparseLinear, in place.

    Layers of which less than `below` percent of the weights survive are replaced. Subclasses of
    nn.Linear and layers that share their weight with others stay dense.

    Args:
        model: an nn.Module.
        masks: {parameter name: bool tensor}, true if a weight survives.
        below: a number in [0, 100].
    """
    uses = Counter()
    for module in model.modules():
        uses.update(map(id, module.parameters(recurse=False)))
    # Dropout draws in the order of memory. It drops the same units if outputs are contiguous.
    contiguous = any(isinstance(module, _DropoutNd) for module in model.modules())
    sparse = {}
    for name, layer in model.named_modules():
        mask = masks.get(f"{name}.weight")
        if type(layer) is not nn.Linear or mask is None or uses[id(layer.weight)] != 1:
            continue
        if 100 * int(mask.sum()) < below * mask.numel():
            sparse[layer] = SparseLinear(layer, mask.to(layer.weight.device), contiguous)
    _replace(model, sparse)


def densify(model):
    """Replace each SparseLinear of a network by the nn.Linear it stands for, in place."""
    layers = [layer for layer in model.modules() if isinstance(layer, SparseLinear)]
    _replace(model, {layer: layer.dense() for layer in layers})


def survivors(tensor):
    """Return the values of a CSR tensor, which share its memory; another tensor as it is."""
    return tensor.values() if tensor.layout == torch.sparse_csr else tensor


def _replace(model, layers):
    """Replace layers of a network, {old: new}, wherever they are used."""
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if layer in layers:
            model.set_submodule(name, layers[layer].train(layer.training))


class SparseLinear(nn.Module):
    """A linear layer that has only the weights that a mask keeps. The others are zero.

    It computes what the nn.Linear does that it replaces, and has the same state dict: `weight` with
    zeros where it is pruned, and `bias`. Its parameters are `values`, the surviving weights in the
    order of the rows of `weight`, and `bias`.

    Products are computed in the type of the parameters, also under autocast, because PyTorch has no
    sparse ones in bfloat16 on a CPU.

    Args:
        linear: the nn.Linear to replace. The bias is shared with it.
        mask: bool tensor (out_features, in_features), true if a weight survives.
        contiguous: whether the output is contiguous. Otherwise it is laid out column by column,
            which is faster if the next layer is sparse, too; `reshape` works on it, but `view` may
            not.
    """

    def __init__(self, linear, mask, contiguous=True):
        super().__init__()
        self.out_features, self.in_features = mask.shape
        self.contiguous = contiguous
        weight = linear.weight
        self.values = nn.Parameter(weight.detach()[mask], weight.requires_grad)
        self.bias = linear.bias

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            rows = mask.to_sparse_csr()
        # The survivors of a row are those from row_starts[i] to row_starts[i + 1].
        # MKL would convert int64 in each call.
        self.register_buffer("row_starts", rows.crow_indices().int(), persistent=False)
        self.register_buffer("columns", rows.col_indices().int(), persistent=False)
        # The same for the transposed weight, whose survivors are values[order].
        numbers = torch.arange(len(self.values), device=mask.device)
        columns = self.matrix(numbers).to_sparse_csc()
        self.register_buffer("column_starts", columns.ccol_indices(), persistent=False)
        self.register_buffer("rows", columns.row_indices(), persistent=False)
        self.register_buffer("order", columns.values(), persistent=False)

    def matrix(self, values):
        """Return values of the survivors as a CSR tensor (out_features, in_features)."""
        return torch.sparse_csr_tensor(
            self.row_starts,
            self.columns,
            values,
            (self.out_features, self.in_features),
            check_invariants=False,
        )

    def transposed_matrix(self, values):
        """Return values of the survivors as a CSR tensor (in_features, out_features)."""
        return torch.sparse_csr_tensor(
            self.column_starts,
            self.rows,
            values.index_select(0, self.order),
            (self.in_features, self.out_features),
            check_invariants=False,
        )

    @property
    def weight(self):
        """The dense weight (out_features, in_features), from which gradients flow to `values`."""
        return self.matrix(self.values).to_dense()

    @property
    def mask(self):
        """The bool tensor (out_features, in_features) that is true if a weight survives."""
        return self.matrix(torch.ones_like(self.values)).to_dense().bool()

    def forward(self, x):
        if x.dim() != 2:
            y = self(x.reshape(-1, self.in_features))
            return y.view(*x.shape[:-1], self.out_features)
        examples = max(1, CACHED // self.in_features)
        if len(x) > examples:
            return torch.cat([self(part) for part in x.split(examples)])
        if torch.is_autocast_enabled(x.device.type):
            y = SparseProduct.apply(x.to(self.values.dtype), self.values, self.bias, self)
            return y.to(torch.get_autocast_dtype(x.device.type))
        return SparseProduct.apply(x, self.values, self.bias, self)

    def extra_repr(self):
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, survivors={len(self.values)}"
        )

    def dense(self):
        """Return the nn.Linear with the same weights. It shares the bias."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(self.weight.detach(), self.values.requires_grad)
        linear.bias = self.bias
        return linear

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        self.dense()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        linear = self.dense()
        linear._load_from_state_dict(state_dict, prefix, *rest)
        mask = self.mask
        if linear.weight[~mask].any():
            *_, errors = rest
            errors.append(f"{prefix}weight is not zero where this layer is pruned")
        with torch.no_grad():
            self.values.copy_(linear.weight[mask])
        self.bias = linear.bias  # another one with load_state_dict(assign=True)


class SparseProduct(torch.autograd.Function):
    """x @ weight.T + bias, in time proportional to the number of survivors.

    Activations (N, features) are stored as their transpose (features, N), so that the products run
    along rows. Products are written to `out`, because autocast leaves such calls alone.
    """

    @staticmethod
    def forward(ctx, x, values, bias, layer):
        x_t = x.t().contiguous()
        y_t = x.new_empty(layer.out_features, len(x))
        start = x.new_zeros(()) if bias is None else bias.unsqueeze(1)
        matrix = layer.matrix(values)
        torch.addmm(start, matrix, x_t, out=y_t)
        ctx.layer = layer
        ctx.pattern = matrix
        ctx.save_for_backward(x_t, values)
        return y_t.t().contiguous() if layer.contiguous else y_t.t()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        layer = ctx.layer
        x_t, values = ctx.saved_tensors
        gradient_t = gradient.t().contiguous()
        of_x = of_values = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = torch.empty_like(x_t)
            torch.mm(layer.transposed_matrix(values), gradient_t, out=of_x)
            of_x = of_x.t()
        if ctx.needs_input_grad[1]:
            product = torch.sparse.sampled_addmm(ctx.pattern, gradient_t, x_t.t(), beta=0)
            of_values = product.values()
        if ctx.needs_input_grad[2]:
            of_bias = gradient_t.sum(1)
        return of_x, of_values, of_bias, None
