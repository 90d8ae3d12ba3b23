"""The lottery ticket experiment: train, prune the smallest weights, reset the survivors, repeat.

Winning tickets, their control with new random weights, and the two curves in one figure:

    python3 main.py --prune_type=lt --arch_type=fc1 --dataset=mnist --prune_percent=10 --prune_iterations=35
    python3 main.py --prune_type=reinit --arch_type=fc1 --dataset=mnist --prune_percent=10 --prune_iterations=35
    python3 combine_plots.py

The same in a minute, without a download:

    python3 main.py --dataset=digits --prune_percent=20 --prune_iterations=16 --end_iter=20

To watch: tensorboard --logdir=runs

J. Frankle and M. Carbin, "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks", ICLR 2019.
"""

import argparse
import math
import warnings
from collections import Counter
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import archs
import utils

EVAL_BATCH = 500  # small enough for a CPU's caches


def main(args):
    device = pick_device(args.gpu)
    with utils.Log(args) as log:
        if log.finished:
            return
        data = load_data(args, device)
        model = prepare(new_model(args, round_=0), args, device)
        masks = dense_masks(model)
        saved = log.saved
        first = take_up(saved, model, masks) if saved else 0
        initial = log.initial(model)

        for round_ in range(first, args.prune_iterations):
            best = train(args, model, masks, data, round_, log, saved)
            saved = None
            log.ticket(round_, model, masks, best)
            masks = prune(prunable(model), masks, args.prune_percent, args.prune_scope)
            model.load_state_dict(initial if args.prune_type == "lt" else new_model(args, round_ + 1).state_dict())
            apply_masks(model, masks)


def pick_device(gpu):
    """The torch.device that `--gpu` names; the CPU where there is no GPU at all. Sets up its arithmetic for speed."""
    torch.set_flush_denormal(True)  # Adam's moments of weights without gradient get there, and are ten times slower then
    if gpu == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if gpu < count:
        torch.cuda.set_device(gpu)
        torch.set_float32_matmul_precision("high")  # TF32
        return torch.device("cuda", gpu)
    if gpu == count == 0:
        print("no GPU found: running on the CPU")
        return torch.device("cpu")
    raise utils.BadInput(f"--gpu={gpu} is not here: {f'0 to {count - 1} are' if count else 'use --gpu=cpu'}")


def seed_torch(seed, *key):
    """Make what torch draws next follow from `seed` and `key` (round, epoch) alone, not from what was drawn before."""
    torch.manual_seed(int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0]))


def load_data(args, device):
    """The dataset on `device`: .train, .val and .test, each uint8 images and int64 labels, and .normalize for the images."""
    facts = archs.facts(args.dataset)
    try:
        images, labels = archs.load(args.dataset, args.data_dir, train=True)
        test = archs.load(args.dataset, args.data_dir, train=False)
    except (OSError, ValueError) as error:
        raise utils.BadInput(error) from error

    val_size = args.val_size
    train_size = len(labels) - val_size
    if train_size <= 0:
        raise utils.BadInput(f"--val_size={val_size} leaves nothing of the {len(labels)} training examples to train on")
    if args.batch_size > train_size:
        raise utils.BadInput(f"--batch_size={args.batch_size} is larger than the {train_size} training examples")
    seed_torch(args.seed)
    train, val = torch.randperm(len(labels)).split([train_size, val_size])
    if val_size == 0:
        print("--val_size=0: the best epoch is selected on the test set")

    mean, std = (255 * torch.tensor(x, device=device).view(-1, 1, 1) for x in (facts.MEAN, facts.STD))
    test = [tensor.to(device) for tensor in test]
    return SimpleNamespace(
        train=[images[train].to(device), labels[train].to(device)],
        val=[images[val].to(device), labels[val].to(device)] if val_size else test,
        test=test,
        normalize=lambda images: (images - mean).div_(std),
    )


def new_model(args, round_):
    """The model with random weights that follow from the seed and the round: Gaussian Glorot weights, zero biases.

    Batch norm stays as it is built, at its identity.
    """
    seed_torch(args.seed, round_, 0)  # epoch 0, as training counts from 1
    model = archs.build(args.dataset, args.arch_type)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def prepare(model, args, device):
    """The model on `device`, in the memory format and precision that it trains in."""
    model = model.to(device, memory_format=torch.channels_last)
    if args.amp:
        model.forward = torch.autocast(device.type, torch.bfloat16)(model.forward)
    return model


def prunable(model):
    """The weights of the model's convolutions and linear layers, {parameter name: parameter}.

    By the layer's type, since batch norm calls its scale "weight" too.
    """
    weights = {id(module.weight) for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in weights}


def dense_masks(model):
    """Masks of the unpruned network, {parameter name: bool tensor}, true where a weight survives."""
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()}


def prune(weights, masks, percent, scope="layer"):
    """Masks without the smallest weights: of the n that `masks` keep, exactly round(percent / 100 * n) go.

    `weights` and `masks` ({parameter name: tensor}, the masks bool and true where a weight survives) stay as they are.
    `percent` is a number, or {parameter name: number}. `scope` "layer" counts and compares within each layer, "global"
    over all layers together; a layer at 0 percent stays out of that. The count decides, never a threshold: equal
    magnitudes cannot remove more, and what is pruned is no candidate any more, so that masks are nested.
    """
    percents = percent if isinstance(percent, dict) else dict.fromkeys(masks, percent)
    names = [name for name in masks if percents[name] > 0]
    pruned = dict(masks)
    for group in [[name] for name in names] if scope == "layer" else [names]:
        alive = torch.cat([masks[name].flatten() for name in group])
        magnitude = torch.cat([weights[name].detach().abs().flatten() for name in group])
        survivors = alive.nonzero().squeeze(1)
        counts = Counter()
        for name in group:
            counts[percents[name]] += int(masks[name].sum())
        count = round(sum(percent / 100 * n for percent, n in counts.items()))
        smallest = magnitude[survivors].topk(count, largest=False, sorted=False).indices
        alive[survivors[smallest]] = False
        for name, mask in zip(group, alive.split([masks[name].numel() for name in group]), strict=True):
            pruned[name] = mask.view_as(masks[name])
    return pruned


@torch.no_grad()
def apply_masks(model, masks):
    for name, weight in prunable(model).items():
        weight.masked_fill_(~masks[name], 0)


def take_up(saved, model, masks):
    """Put the model and the masks where a checkpoint says that they were; returns the round."""
    with utils.fitting():
        model.load_state_dict(saved["model"])
        for name, mask in masks.items():
            mask.copy_(saved["masks"][name])
    return saved["round"]


def train(args, model, masks, data, round_, log, saved=None):
    """Train for one round, evaluating as it goes, from its beginning or from where `saved`, a checkpoint, left it.

    Leaves the final weights in `model`, returns those at best validation.
    """
    labels = data.train[1]
    device, steps = labels.device, len(labels) // args.batch_size
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.Adam(model.parameters(), args.lr, weight_decay=args.weight_decay, fused=True, capturable=on_gpu)
    epoch_ = SimpleNamespace(
        batches=torch.zeros(steps, args.batch_size, dtype=torch.int64, device=device),
        done=torch.zeros(1, dtype=torch.int64, device=device),
        loss=torch.zeros((), dtype=torch.float64, device=device),
    )
    first, skip, best, best_accuracy = 1, 0, None, -1
    if saved:
        first, skip, best, best_accuracy = (saved[name] for name in ("epoch", "step", "best", "best_accuracy"))
        with utils.fitting():
            optimizer.load_state_dict(saved["optimizer"])
        optimizer.param_groups[0]["capturable"] = on_gpu  # the checkpoint may be of another device
    random = torch.cuda if on_gpu else torch  # where the device's random numbers, for dropout, come from
    model.train()
    step = graphed(make_step(model, masks, data, optimizer, epoch_), epoch_.done, model, optimizer)

    def checkpoint(epoch, step):
        log.checkpoint(
            round=round_,
            epoch=epoch,
            step=step,
            model=model.state_dict(),
            masks=masks,
            optimizer=optimizer.state_dict(),
            loss=epoch_.loss,
            random={device.type: random.get_rng_state()},
            best=best,
            best_accuracy=best_accuracy,
        )

    log.round(round_, masks, steps, (first - 1) * steps + skip)
    for epoch in range(first, args.end_iter + 1):
        seed_torch(args.seed, round_, epoch)
        order = torch.randperm(len(labels))  # the same on every device; its last, incomplete batch is left out
        epoch_.batches.copy_(order[: epoch_.batches.numel()].view_as(epoch_.batches))
        epoch_.done.fill_(skip)
        epoch_.loss.zero_()
        if skip:
            epoch_.loss.copy_(saved["loss"])
            if device.type in saved["random"]:
                random.set_rng_state(saved["random"][device.type])
        model.train()
        for index in range(skip, steps):  # nothing in here waits for the device, but a checkpoint when it is due
            step()
            log.bar.update()
            if log.checkpoint_due():
                checkpoint(epoch, index + 1)
        skip = 0
        loss, row = epoch_.loss.item() / steps, None
        if epoch % args.valid_freq == 0 or epoch == args.end_iter:
            row = {"epoch": epoch, "iteration": epoch * steps, "train_loss": loss, **measure(model, data)}
            if row["val_accuracy"] > best_accuracy:
                best, best_accuracy = utils.copy_state(model), row["val_accuracy"]
        if not math.isfinite(loss + (row["val_loss"] if row else 0)):
            raise utils.Failure(
                f"the loss is not finite in round {round_}, epoch {epoch}: "
                f"start anew with a lower --lr than {args.lr}, and --overwrite or another --output_dir"
            )
        log.epoch(epoch, loss, row)
    checkpoint(args.end_iter + 1, 0)
    return best


def make_step(model, masks, data, optimizer, epoch):
    """A function that does one iteration, all of it on the device, so that it can be captured once and replayed.

    `epoch` is where it reads and writes: .batches (steps, batch size) has the examples' numbers, .done counts the steps,
    .loss adds up their losses.
    """
    images, labels = data.train
    kept = [(weight, torch.empty_like(weight).copy_(masks[name])) for name, weight in prunable(model).items()]

    def step():
        batch = epoch.batches.index_select(0, epoch.done).squeeze(0)
        logits = model(data.normalize(images.index_select(0, batch)))
        loss = F.cross_entropy(logits.float(), labels.index_select(0, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for weight, mask in kept:  # momentum and weight decay would bring pruned weights back
                weight.mul_(mask)
        epoch.loss.add_(loss.detach())
        epoch.done.add_(1)

    return step


def graphed(step, done, model, optimizer):
    """On a GPU, `step` captured once as a CUDA graph, which is replayed without work for the host; elsewhere `step` itself.

    Before a capture come some steps for real. What they change in the model and the optimizer is put back.
    """
    if not done.is_cuda:
        return step
    state = utils.copy_state(model)
    moments = {tensor: tensor.clone() for entry in optimizer.state.values() for tensor in entry.values()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Adam's, that these steps are not captured yet
        for _ in range(3):
            done.zero_()
            step()
    torch.cuda.current_stream().wait_stream(stream)
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        step = graph.replay
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        print(f"no CUDA graph, each step is launched anew: {str(error).splitlines()[0]}")
        torch.cuda.synchronize()
    model.load_state_dict(state)
    for entry in optimizer.state.values():
        for tensor in entry.values():
            tensor.copy_(moments.get(tensor, torch.zeros_like(tensor)))
    return step


def measure(model, data):
    """An evaluation's part of a row of the log."""
    val_loss, val_accuracy = evaluate(model, data.val, data.normalize)
    test_accuracy = val_accuracy if data.val is data.test else evaluate(model, data.test, data.normalize)[1]
    return {"val_loss": val_loss, "val_accuracy": val_accuracy, "test_accuracy": test_accuracy}


@torch.no_grad()
def evaluate(model, examples, normalize):
    """Mean loss and accuracy (percent) of `model` over all `examples`, in eval mode."""
    model.eval()
    images, labels = examples
    loss, correct = torch.zeros(2, dtype=torch.float64, device=labels.device)
    for x, y in zip(images.split(EVAL_BATCH), labels.split(EVAL_BATCH), strict=True):
        logits = model(normalize(x)).float()
        loss += F.cross_entropy(logits, y, reduction="sum")
        correct += (logits.argmax(1) == y).sum()
    loss, correct = torch.stack([loss, correct]).tolist()
    return loss / len(labels), 100 * correct / len(labels)


def parse_args(argv=None):
    parser = utils.Parser(
        description=__doc__.split("\n\n")[0],
        epilog="Example: %(prog)s --dataset=digits --prune_percent=20 --prune_iterations=16 --end_iter=20",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    number = utils.number
    count = number(int, "a whole number above 0", lambda value: value > 0)
    seed = number(int, "a whole number from 0 to 2**64 - 1", lambda value: 0 <= value < 2**64)
    percent = number(float, "a percentage between 0 and 100, both excluded", lambda value: 0 < value < 100)
    rate = number(float, "a finite number above 0", lambda value: value > 0)
    decay = number(float, "a finite number, 0 or more", lambda value: value >= 0)
    size = number(int, "a whole number, 0 or more", lambda value: value >= 0)

    group = parser.add_argument_group("experiment")
    add = group.add_argument
    add("--prune_type", default="lt", choices=utils.PRUNE_TYPES, help="reset survivors to the original or to new weights")
    add("--dataset", default="mnist", choices=archs.datasets(), help="digits comes with the code")
    add("--arch_type", default="fc1", choices=archs.architectures(), help="network")
    add("--seed", default=0, type=seed, metavar="N", help="decides everything random")

    group = parser.add_argument_group("pruning")
    add = group.add_argument
    add("--prune_percent", default=10.0, type=percent, metavar="P", help="percent of the surviving weights pruned per round")
    add("--prune_iterations", default=35, type=count, metavar="N", help="rounds, the first of them dense")
    add("--prune_scope", default="layer", choices=["layer", "global"], help="prune within each layer or over all together")

    group = parser.add_argument_group("training")
    add = group.add_argument
    add("--lr", default=1.2e-3, type=rate, metavar="X", help="Adam's learning rate")
    add("--batch_size", default=60, type=count, metavar="N", help="examples per iteration")
    add("--end_iter", default=100, type=count, metavar="N", help="epochs per round")
    add("--weight_decay", default=0.0, type=decay, metavar="X", help="Adam's L2 penalty")
    add("--val_size", type=size, metavar="N", help="training examples held out to select the best epoch;"
        " 0 selects on the test set (default: the dataset's, as a rule 5000%(default).0s)")  # fmt: skip
    add("--valid_freq", default=1, type=count, metavar="N", help="epochs between evaluations")

    group = parser.add_argument_group("machine")
    add = group.add_argument
    add("--gpu", default=0, type=gpu, metavar="N", help="index of the GPU, or cpu")
    add("--amp", action="store_true", help="bfloat16 in the forward pass")
    add("--data_dir", default="data", type=utils.folder, metavar="DIR", help="where datasets are, or are downloaded to")
    add("--output_dir", default=".", type=utils.folder, metavar="DIR", help="where results go")
    add("--overwrite", action="store_true", help="start anew where results exist")
    add("--print_freq", default=1, type=count, metavar="N", help="epochs between changes of the progress line")

    args = parser.parse_args(argv)
    if args.arch_type not in archs.architectures(args.dataset):
        names = ", ".join(archs.architectures(args.dataset))
        parser.error(f"--arch_type={args.arch_type} is not for --dataset={args.dataset}, which has {names}")
    if args.val_size is None:
        args.val_size = archs.facts(args.dataset).VAL_SIZE
    return args


def gpu(text):
    """The type of `--gpu`: "cpu" or an index."""
    return text if text == "cpu" else utils.number(int, "the index of a GPU, or cpu", lambda value: value >= 0)(text)


if __name__ == "__main__":
    with utils.one_line_errors("main.py"):
        main(parse_args())
