"""Measure how long training takes. Run by hand, on an idle machine:

    python3 tests/benchmark.py
    python3 tests/benchmark.py --device=cuda

It compares (a) this project, through the functions that main.py calls, with (b) the usual way: a
torchvision dataset with ToTensor and Normalize in a DataLoader, unfused Adam, and masks applied to
the gradients through NumPy; and with (c) the floor: the same convolutions and matrix products,
forward and backward, and the optimizer's update, with nothing between them. On a GPU, (c) is one
CUDA graph, and (a) is also compared with a graph of as many kernels that do nothing.

Each runs in a process of its own, with its own settings. Images are random, because only their
shape matters. The numbers are medians over repeated, interleaved runs. An epoch includes the
evaluation of validation and test set.
"""

import argparse
import contextlib
import io
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10, MNIST

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import archs  # noqa: E402
import main  # noqa: E402

# Examples that an epoch trains on and evaluates.
SIZES = {"mnist": (55000, 15000), "cifar10": (45000, 15000)}
# Steps and evaluated examples that are timed at once; the CPU takes seconds for a step of resnet18.
WORK = {"fc1": (900, 15000), "lenet5": (300, 5000), "resnet18": (3, 60)}


def clock(device):
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def random_examples(dataset, n):
    facts = archs.facts(dataset)
    images = torch.randint(256, (n, facts.CHANNELS, facts.SIZE, facts.SIZE), dtype=torch.uint8)
    return images, torch.randint(facts.CLASSES, (n,))


def prepared(arch_type, dataset, device, steps, evaluated, batch_size, amp):
    """Return (args, data, state) as main.main has them before a round, with random images."""
    flags = [
        f"--dataset={dataset}",
        f"--arch_type={arch_type}",
        "--end_iter=1",
        f"--batch_size={batch_size}",
    ]
    args = main.parse_args(flags + ["--amp"] * amp)
    numbers = iter(
        [random_examples(dataset, steps * batch_size), random_examples(dataset, evaluated)]
    )
    with replaced(archs, "load", lambda *_, **__: next(numbers)):
        args.val_size = 0
        with contextlib.redirect_stdout(None):
            data = main.hold_out(args, main.load_data(args, device))
    return args, data, main.new_state(args, main.new_model(args, 0, device))


def prepared_for_step(arch_type, dataset, device, batch_size, amp):
    """Return the arguments of main.Step, for data of a single batch."""
    args, data, state = prepared(arch_type, dataset, device, 1, 1, batch_size, amp)
    return args, state, data


def ours(arch_type, dataset, device, steps, evaluated, batch_size, amp):
    """Return a function that returns (seconds per step, seconds per evaluated example) of (a)."""
    args, data, state = prepared(arch_type, dataset, device, steps, evaluated, batch_size, amp)

    def run():
        ticks, spent, evaluate, tick = [], [], main.evaluate, main.utils.Log.step

        def first(log):
            if not ticks:
                ticks.append(clock(device))
            tick(log)

        def timed(*args):
            start = clock(device)
            result = evaluate(*args)
            spent.append((start, clock(device)))
            return result

        state.iteration, state.rows = 0, [[]]
        with (
            tempfile.TemporaryDirectory() as args.output_dir,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            replaced(main, "evaluate", timed),
            replaced(main.utils.Log, "step", first),
            main.utils.Run(args) as files,
        ):
            main.train(args, state, data, files)
        per_step = (spent[0][0] - ticks[0]) / (steps - 1)
        per_evaluation = statistics.median(end - start for start, end in spent)
        return per_step, per_evaluation / evaluated

    return run


@contextlib.contextmanager
def replaced(module, name, value):
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def usual(arch_type, dataset, device, steps, evaluated, batch_size, amp):
    """The same for (b)."""
    facts, kind = archs.facts(dataset), {"mnist": MNIST, "cifar10": CIFAR10}[dataset]

    def loader(n, **options):
        images, labels = random_examples(dataset, n)
        examples = kind.__new__(kind)  # torchvision's own __getitem__, without its files
        examples.data = images[:, 0] if facts.CHANNELS == 1 else images.permute(0, 2, 3, 1).numpy()
        examples.targets = labels
        examples.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(facts.MEAN, facts.STD)]
        )
        examples.target_transform = None
        return DataLoader(examples, batch_size, **options)

    train, test = loader(steps * batch_size, shuffle=True), loader(evaluated)
    model = archs.build(dataset, arch_type).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1.2e-3, foreach=False, fused=False)
    masks = {
        name: torch.ones_like(weight).cpu().numpy() for name, weight in main.prunable(model).items()
    }

    def run():
        model.train()
        start = clock(device)
        for x, y in train:
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                loss = F.cross_entropy(model(x.to(device)), y.to(device))
            loss.backward()
            for name, weight in main.prunable(model).items():
                weight.grad = torch.from_numpy(weight.grad.cpu().numpy() * masks[name]).to(device)
            optimizer.step()
            loss.item()
        middle = clock(device)
        model.eval()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
            for x, y in test:
                (model(x.to(device)).argmax(1) == y.to(device)).sum().item()
        return (middle - start) / steps, (clock(device) - middle) / evaluated

    return run


def repeated(step, steps, device, also):
    """Return a function that returns (seconds per iteration, also) for a main.Step."""
    iterate = step.graph.replay if step.graph else step.iterate

    def run():
        start = clock(device)
        for _ in range(steps):
            iterate()
        return (clock(device) - start) / steps, also

    return run


def floor(arch_type, dataset, device, steps, batch_size, amp):
    """The same for (c), without an evaluation."""
    facts = archs.facts(dataset)
    args, state, data = prepared_for_step(arch_type, dataset, device, batch_size, amp)
    layers = []

    def keep(layer, inputs, output):
        layers.append((layer, inputs[0].detach(), torch.randn_like(output)))

    for module in state.model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_hook(keep)
    x = torch.randn(batch_size, facts.CHANNELS, facts.SIZE, facts.SIZE, device=device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
        state.model(x.to(memory_format=torch.channels_last))
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    products = []
    for index, layer in enumerate(layers):
        products.append(product(*layer, first=index == 0, amp=amp))

    class Floor(main.Step):
        @torch.no_grad()
        def iterate(self):
            for forward, _ in products:
                forward()
            for _, backward in reversed(products):
                backward()
            main.update(self.args, self.parameters, self.optimizer_state, self.rates[0])

    return repeated(Floor(args, state, data), steps, device, None)


def count_kernels(arch_type, dataset, device, steps, batch_size, amp):
    """Return a function that returns the number of kernels in a step of (a)."""
    step = main.Step(*prepared_for_step(arch_type, dataset, device, batch_size, amp))

    def run():
        for _ in range(3):
            step.position.zero_()
            step.iterate()
        step.position.zero_()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step.iterate()
            torch.cuda.synchronize()
        return sum(
            event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events()
        )

    return run


def nothing(arch_type, dataset, device, steps, batch_size, amp, kernels):
    """The same for a graph of this number of kernels, which do next to nothing."""
    number = torch.zeros(1, device=device)

    class Nothing(main.Step):
        def iterate(self):
            for _ in range(kernels):
                number.add_(1)

    step = Nothing(*prepared_for_step(arch_type, dataset, device, batch_size, amp))
    return repeated(step, steps, device, kernels)


def product(layer, x, gradient, first, amp):
    """Return a layer's arithmetic as two functions, forward and backward.

    The `first` layer's input needs no gradient.
    """
    weight = layer.weight.detach()
    if amp:
        x, gradient, weight = x.bfloat16(), gradient.bfloat16(), weight.bfloat16()
    shape = (layer.stride, layer.padding, layer.dilation) if isinstance(layer, nn.Conv2d) else None

    def forward():
        return F.conv2d(x, weight, None, *shape) if shape else x @ weight.t()

    def backward():
        if shape:
            wanted = [not first, True, False]
            result = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, *shape, False, [0, 0], layer.groups, wanted
            )[1]
        else:
            result = gradient.t() @ x
            if not first:
                gradient @ weight
        layer.weight.grad = result.float()  # where the optimizer reads it

    return forward, backward


CONTENDERS = {"a": ours, "b": usual, "c": floor, "kernels": count_kernels, "empty": nothing}
ready = {}


def worker(name, *case):
    """Run a contender in this process; prepare it in the first call."""
    if (name, case) not in ready:
        ready.clear()
        ready[name, case] = CONTENDERS[name](*case)
    return ready[name, case]()


def compare(pools, arch_type, dataset, device, batch_size, repeats, amp):
    """Print a line of the table."""
    steps, evaluated = (2000, 15000) if device.type == "cuda" else WORK[arch_type]
    steps = min(steps, SIZES[dataset][0] // batch_size)
    cases = {
        "a": (arch_type, dataset, device, steps, evaluated, batch_size, amp),
        "b": (arch_type, dataset, device, min(steps, 300), min(evaluated, 3000), batch_size, amp),
        "c": (arch_type, dataset, device, steps, batch_size, amp),
    }
    if device.type == "cuda":
        cases["empty"] = (
            *cases["c"],
            pools["kernels"].submit(worker, "kernels", *cases["c"]).result(),
        )
    results = {name: [] for name in cases}
    for repeat in range(repeats + 1):
        for name, case in cases.items():
            result = pools[name].submit(worker, name, *case).result()
            if repeat:  # the first warms up
                results[name].append(result)
    step = {
        name: statistics.median(result[0] for result in found) for name, found in results.items()
    }
    each = {name: statistics.median(result[1] for result in results[name]) for name in "ab"}
    trained, tested = SIZES[dataset]
    epoch = {name: trained // batch_size * step[name] + tested * each[name] for name in each}
    print(
        f"{f'{arch_type}/{dataset}' + ' amp' * amp:20} {batch_size:5}"
        + "".join(f" {1000 * step[name]:9.3f}" for name in "abc")
        + f" {step['b'] / step['a']:6.1f} {step['a'] / step['c']:6.2f}"
        + f" {epoch['a']:9.2f} {epoch['b']:9.2f} {epoch['b'] / epoch['a']:6.1f}"
        + f" {batch_size / step['a']:9.0f}",
        flush=True,
    )
    if "empty" in step:
        kernels = results["empty"][0][1]
        print(
            f"{'':20} {kernels} empty kernels: {1000 * step['empty']:.3f} ms, "
            f"(a) {step['a'] / step['empty']:.1f} times that"
        )


ROUND = """
import sys, time
began = time.time()
import torch
import archs, main, utils
images = {True: 60000, False: 10000}
def load(dataset, data_dir, train):
    n = images[train]
    return torch.randint(256, (n, 1, 28, 28), dtype=torch.uint8), torch.randint(10, (n,))
archs.load = load
first, spent = [], {"evaluation": 0, "files, figures": 0}
def timed(owner, name, part):
    original = getattr(owner, name)
    def run(*args, **kwargs):
        start = time.perf_counter()
        result = original(*args, **kwargs)
        spent[part] += time.perf_counter() - start
        return result
    setattr(owner, name, run)
timed(main, "evaluate", "evaluation")
timed(utils, "save_round", "files, figures")
timed(main.combine_plots, "draw_run", "files, figures")
timed(utils.Log, "add", "files, figures")
timed(utils.Log, "__init__", "files, figures")
timed(utils.Run, "checkpoint", "files, figures")
update = utils.tqdm.update
utils.tqdm.update = lambda self, n=1: (first or first.append(time.time()), update(self, n))[1]
start = time.perf_counter()
main.main(main.parse_args(sys.argv[1:]))
total = time.perf_counter() - start
rounds = 3
for part, seconds in spent.items():
    share = f"{100 * seconds / total:.1f}% of all"
    print(f"a round outside training, {part}: {seconds / rounds:.2f} s, {share}")
print(f"start to first step: {first[0] - float(sys.argv0):.2f} s")
with open("/proc/self/status") as status:  # ru_maxrss would have the parent's peak
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(f"peak memory: {peak / 1024:.0f} MiB")
"""


def whole_rounds(device):
    """Run fc1 on images of MNIST's shape; print time outside of training, start-up, memory."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [
            f"--output_dir={folder}",
            "--prune_iterations=3",
            "--end_iter=10",
            f"--gpu={'0' if device.type == 'cuda' else 'cpu'}",
        ]
        code = ROUND.replace("sys.argv0", repr(time.time()))
        result = subprocess.run(
            [sys.executable, "-c", code, *flags],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    print("\n".join(result.stdout.splitlines()[-4:]))


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", default=5, type=int)
    return parser.parse_args()


if __name__ == "__main__":
    args = parse_args()
    device = main.pick_device(0 if args.device == "cuda" else "cpu")
    name = (
        torch.cuda.get_device_name()
        if args.device == "cuda"
        else platform.processor() or platform.machine()
    )
    print(
        f"{name}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    print(
        f"{'':26} {'milliseconds per step':^29} {'ratios':^13} {'seconds per epoch':^26} "
        f"{'images/s':>9}"
    )
    print(
        f"{'network/data':20} batch         a         b         c    b/a    a/c"
        "         a         b    b/a"
    )
    cases = [
        ("fc1", "mnist", 60, False),
        ("lenet5", "mnist", 60, False),
        ("lenet5", "cifar10", 60, False),
        ("resnet18", "cifar10", 60, False),
        ("resnet18", "cifar10", 512 if args.device == "cuda" else 60, True),
    ]
    spawn, gpu = get_context("spawn"), args.device == "cuda"
    settings = {
        name: (main.pick_device, (0 if gpu else "cpu",)) for name in CONTENDERS if name != "b"
    }
    pools = {name: ProcessPoolExecutor(1, spawn, *settings.get(name, ())) for name in CONTENDERS}
    for arch_type, dataset, batch_size, amp in cases:
        compare(pools, arch_type, dataset, device, batch_size, args.repeats, amp)
    for pool in pools.values():
        pool.shutdown()
    whole_rounds(device)
