"""Measure how long training takes. Run by hand, on a machine that does nothing else:

    python3 tests/benchmark.py                  # everything
    python3 tests/benchmark.py threads parts    # some of the tables
    python3 tests/benchmark.py --device=cuda

`ratios` compares (a) this project, through the functions that main.py calls, with three others:
(b) the usual way: a torchvision dataset with ToTensor and Normalize in a DataLoader, unfused Adam,
    and masks applied to the gradients through NumPy;
(c) the floor: the same convolutions and matrix products, forward and backward, and the optimizer's
    update, with nothing between them;
(d) a competent loop: images as uint8 on the device, fused Adam, masks multiplied in after the step,
    and evaluation in batches of 500.
All have the same number of threads, which main.py would choose. On a GPU, (c) is one CUDA graph,
and (a) is also compared with eager iterations.

`sparse` compares (a) with sparse and with dense linear layers, if few weights are left.
`threads` compares one thread with all, alone and beside another process that does the same.
`parts` divides the time of a step of (a), and `rounds` that of a run.

Each contender runs in a process of its own. Images are random, because only their shape matters.
The numbers are medians over repeated, interleaved runs. An epoch includes the evaluation of
validation and test set.
"""

import argparse
import contextlib
import dataclasses
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
import utils  # noqa: E402

# Examples that an epoch trains on and evaluates.
SIZES = {"mnist": (55000, 15000), "cifar10": (45000, 15000)}
# Steps and evaluated examples that are timed at once on a CPU, which takes seconds for a step of
# resnet18.
WORK = {
    "fc1": (900, 15000),
    "lenet5": (300, 5000),
    "alexnet": (5, 500),
    "conv2": (5, 500),
    "resnet18": (3, 60),
}
SECONDS = 4  # of a measurement beside another process


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured, and on what."""

    arch_type: str
    dataset: str
    batch_size: int = 60
    amp: bool = False
    device: str = "cpu"
    threads: int = 1
    percent: float = 100  # of the weights left, chosen at random
    sparse_below: float = 0
    steps: int = 100  # timed at once
    evaluated: int = 1  # examples

    def __str__(self):
        name = f"{self.arch_type}/{self.dataset}" + " amp" * self.amp
        return f"{name:20} {self.batch_size:5}"


def clock(case):
    if case.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@contextlib.contextmanager
def replaced(module, name, value):
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def settings(case):
    flags = [
        f"--dataset={case.dataset}",
        f"--arch_type={case.arch_type}",
        f"--batch_size={case.batch_size}",
        f"--sparse_below={case.sparse_below}",
        "--end_iter=1",
        "--val_size=0",
    ]
    return main.parse_args(flags + ["--amp"] * case.amp)


def operations(case):
    """Return the floating-point operations of a batch's forward pass."""
    args = settings(case)
    _, count = main.inspect_network(args, main.new_model(args, round_=0))
    return count


def adapted(case, options):
    """Return the case on the device, and with the threads, that the options or main.py choose."""
    threads = utils.pick_threads(options.threads, operations(case))
    return dataclasses.replace(case, device=options.device, threads=threads)


def random_examples(dataset, n):
    facts = archs.facts(dataset)
    images = torch.randint(256, (n, facts.CHANNELS, facts.SIZE, facts.SIZE), dtype=torch.uint8)
    return images, torch.randint(facts.CLASSES, (n,))


def prepared(case):
    """Return (args, state, data) as main.main has them before a round, with random images."""
    args = settings(case)
    device = torch.device(case.device)
    examples = {
        True: random_examples(case.dataset, case.steps * case.batch_size),
        False: random_examples(case.dataset, case.evaluated),
    }
    with replaced(archs, "load", lambda dataset, data_dir, train: examples[train]):
        data = main.hold_out(args, main.load_data(args, device))
    state = main.new_state(args, main.new_model(args, 0, device))
    for mask in state.masks.values():
        mask.bernoulli_(case.percent / 100)
    main.apply_masks(state.model, state.masks)
    utils.restore(state.start, state.model.state_dict())
    return args, state, data


# ---- Contenders: functions of a case that return a function that measures it once ----------------


def ours(case):
    """Measure (a): return (seconds per step, seconds per evaluated example)."""
    args, state, data = prepared(case)
    evaluate = main.evaluate
    count = utils.Log.step

    def run():
        first_steps = []
        evaluations = []

        def counted(log):
            if not first_steps:
                first_steps.append(clock(case))
            count(log)

        def timed(*args):
            start = clock(case)
            result = evaluate(*args)
            evaluations.append((start, clock(case)))
            return result

        state.iteration = 0
        state.rows = [[]]
        with (
            tempfile.TemporaryDirectory() as args.output_dir,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            replaced(main, "evaluate", timed),
            replaced(utils.Log, "step", counted),
            utils.Run(args) as trial,
        ):
            trial.state = state
            main.train(args, state, data, trial)
        # The last two are of the test and the training examples, after training.
        *_, (start, end), _ = evaluations
        return (start - first_steps[0]) / (case.steps - 1), (end - start) / case.evaluated

    return run


def eager(case):
    """Measure (a) without a CUDA graph."""
    main.Step.speed_up = lambda step: None
    return ours(case)


def usual(case):
    """Measure (b)."""
    facts = archs.facts(case.dataset)
    kind = {"mnist": MNIST, "cifar10": CIFAR10}[case.dataset]
    device = torch.device(case.device)

    def loader(n, **options):
        images, labels = random_examples(case.dataset, n)
        examples = kind.__new__(kind)  # torchvision's own __getitem__, without its files
        examples.data = images[:, 0] if facts.CHANNELS == 1 else images.permute(0, 2, 3, 1).numpy()
        examples.targets = labels
        examples.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(facts.MEAN, facts.STD)]
        )
        examples.target_transform = None
        return DataLoader(examples, case.batch_size, **options)

    train = loader(case.steps * case.batch_size, shuffle=True)
    test = loader(case.evaluated)
    model = archs.build(case.dataset, case.arch_type).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1.2e-3, foreach=False, fused=False)
    masks = {
        name: torch.ones_like(weight).cpu().numpy() for name, weight in main.prunable(model).items()
    }

    def run():
        model.train()
        start = clock(case)
        for x, y in train:
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=case.amp):
                loss = F.cross_entropy(model(x.to(device)), y.to(device))
            loss.backward()
            for name, weight in main.prunable(model).items():
                weight.grad = torch.from_numpy(weight.grad.cpu().numpy() * masks[name]).to(device)
            optimizer.step()
            loss.item()
        middle = clock(case)
        model.eval()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=case.amp):
            for x, y in test:
                (model(x.to(device)).argmax(1) == y.to(device)).sum().item()
        return (middle - start) / case.steps, (clock(case) - middle) / case.evaluated

    return run


def competent(case):
    """Measure (d)."""
    facts = archs.facts(case.dataset)
    device = torch.device(case.device)
    mean = 255 * torch.tensor(facts.MEAN, device=device).view(-1, 1, 1)
    std = 255 * torch.tensor(facts.STD, device=device).view(-1, 1, 1)
    train = [
        part.to(device) for part in random_examples(case.dataset, case.steps * case.batch_size)
    ]
    test = [part.to(device) for part in random_examples(case.dataset, case.evaluated)]
    model = archs.build(case.dataset, case.arch_type)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1.2e-3, fused=True)
    masks = [(weight, torch.ones_like(weight)) for weight in main.prunable(model).values()]

    def loss_and_logits(images, labels):
        with torch.autocast(device.type, torch.bfloat16, enabled=case.amp):
            logits = model((images.float() - mean) / std)
            return F.cross_entropy(logits, labels), logits

    def run():
        model.train()
        total = torch.zeros((), device=device)
        start = clock(case)
        order = torch.randperm(len(train[1]), device=device)
        for batch in order.split(case.batch_size):
            loss, _ = loss_and_logits(train[0][batch], train[1][batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for weight, mask in masks:
                    weight.mul_(mask)
            total += loss.detach()
        total.item()
        middle = clock(case)

        model.eval()
        correct = torch.zeros((), device=device)
        with torch.no_grad():
            for x, y in zip(test[0].split(500), test[1].split(500), strict=True):
                loss, logits = loss_and_logits(x, y)
                total += loss
                correct += (logits.argmax(1) == y).sum()
        correct.item()
        return (middle - start) / case.steps, (clock(case) - middle) / case.evaluated

    return run


def floor(case):
    """Measure (c): return the seconds per step."""
    args, state, data = prepared(case)
    forward, backward = products(case, state.model)

    class Floor(main.Step):
        @torch.no_grad()
        def iterate(self):
            forward()
            backward()
            main.update(self.args, self.parameters, self.optimizer_state, self.rates[0])

    return repeated(Floor(args, state, data), case)


def products(case, model):
    """Return two functions that compute a network's products, forward and backward."""
    facts = archs.facts(case.dataset)
    layers = []

    def keep(layer, inputs, output):
        layers.append(product(case, layer, inputs[0].detach(), torch.randn_like(output), layers))

    hooks = [
        module.register_forward_hook(keep)
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    x = torch.randn(case.batch_size, facts.CHANNELS, facts.SIZE, facts.SIZE, device=case.device)
    with torch.no_grad(), torch.autocast(case.device, torch.bfloat16, enabled=case.amp):
        model(x.to(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def forward():
        for layer_forward, _ in layers:
            layer_forward()

    def backward():
        for _, layer_backward in reversed(layers):
            layer_backward()

    return forward, backward


def product(case, layer, x, gradient, previous):
    """Return a layer's products as two functions, forward and backward.

    The first layer, which has no `previous` ones, needs no gradient of its input.
    """
    first = not previous
    weight = layer.weight.detach()
    if case.amp:
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


def repeated(step, case):
    """Return a function that returns the seconds per iteration of a main.Step."""
    step.speed_up()
    iterate = step.graph.replay if step.graph else step.iterate

    def run():
        start = clock(case)
        for _ in range(case.steps):
            iterate()
        return (clock(case) - start) / case.steps

    return run


def steps_for_seconds(case):
    """Measure the steps of (a) for a fixed time, so that two processes are busy as long."""
    step = main.Step(*prepared(case))

    def run():
        start = clock(case)
        steps = 0
        while clock(case) < start + SECONDS:
            step()
            steps += 1
        return (clock(case) - start) / steps

    return run


def parts(case):
    """Measure parts of a step of (a): return {name: seconds}."""
    args, state, data = prepared(case)
    step = main.Step(args, state, data)
    forward, backward = products(case, state.model)
    images, labels = data.train
    rate = step.rates[0]

    def whole():
        step.position.zero_()
        step.iterate()

    def batch():
        batch = step.batches.index_select(0, step.position.zero_()).squeeze(0)
        labels.index_select(0, batch)
        data.normalize(images.index_select(0, batch))

    @torch.no_grad()
    def masks():
        for weight, mask in step.masks:
            weight.mul_(mask)

    functions = {
        "the whole step": whole,
        "batch": batch,
        "products, forward": forward,
        "products, backward": backward,
        "update": lambda: main.update(args, step.parameters, step.optimizer_state, rate),
        "masks": masks,
    }

    def run():
        times = {}
        for name, function in functions.items():
            start = clock(case)
            with torch.set_grad_enabled(function is whole):
                for _ in range(case.steps):
                    function()
            times[name] = (clock(case) - start) / case.steps
        return times

    return run


ready = {}


def worker(contender, case):
    """Run a contender in this process; prepare it in the first call."""
    torch.set_num_threads(case.threads)
    if (contender, case) not in ready:
        ready.clear()
        ready[contender, case] = contender(case)
    return ready[contender, case]()


# ---- Tables --------------------------------------------------------------------------------------


class Processes:
    """Worker processes by name, with the settings for the device that main.py makes."""

    def __init__(self, device):
        self.device = device
        self.pools = {}

    def submit(self, name, contender, case):
        """Run a contender in the process of this name; return a future."""
        if name not in self.pools:
            # (b) has torch's own settings.
            gpu = 0 if self.device == "cuda" else "cpu"
            options = () if contender is usual else (main.pick_device, (gpu,))
            self.pools[name] = ProcessPoolExecutor(1, get_context("spawn"), *options)
        return self.pools[name].submit(worker, contender, case)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for pool in self.pools.values():
            pool.shutdown()


def ratios(processes, options):
    """Print the table of (a) to (d)."""
    gpu = options.device == "cuda"
    cases = [
        Case("fc1", "mnist"),
        Case("lenet5", "mnist"),
        Case("lenet5", "cifar10"),
        Case("resnet18", "cifar10"),
        Case("resnet18", "cifar10", batch_size=512 if gpu else 60, amp=True),
    ]
    print(
        f"\n{'':34} {'milliseconds per step':^39} {'ratios':^20} {'seconds per epoch':^29}"
        f" {'ratios':^13}"
    )
    print(
        f"{'network/data':20} batch threads         a         b         d         c"
        "    b/a    d/a    a/c         a         b         d    b/a    d/a  images/s"
    )
    for case in cases:
        steps, evaluated = (2000, 15000) if gpu else WORK[case.arch_type]
        case = dataclasses.replace(
            adapted(case, options),
            steps=min(steps, SIZES[case.dataset][0] // case.batch_size),
            evaluated=evaluated,
        )
        compare(processes, case, options.repeats)


def compare(processes, case, repeats):
    """Print a line of the table."""
    fewer = dataclasses.replace(
        case, steps=min(case.steps, 300), evaluated=min(case.evaluated, 3000)
    )
    contenders = {
        "a": (ours, case),
        "b": (usual, fewer),
        "c": (floor, case),
        "d": (competent, case),
    }
    if case.device == "cuda":
        contenders["eager"] = (eager, case)
    results = measure(processes, contenders, repeats)
    step = {}
    each = {}
    for name, found in results.items():
        if name == "c":
            step[name] = statistics.median(found)
        else:
            step[name] = statistics.median(result[0] for result in found)
            each[name] = statistics.median(result[1] for result in found)
    trained, tested = SIZES[case.dataset]
    epoch = {}
    for name in each:
        epoch[name] = trained // case.batch_size * step[name] + tested * each[name]
    print(
        f"{case} {case.threads:7}"
        + "".join(f" {1000 * step[name]:9.3f}" for name in "abdc")
        + f" {step['b'] / step['a']:6.1f} {step['d'] / step['a']:6.2f}"
        + f" {step['a'] / step['c']:6.2f}"
        + "".join(f" {epoch[name]:9.2f}" for name in "abd")
        + f" {epoch['b'] / epoch['a']:6.1f} {epoch['d'] / epoch['a']:6.2f}"
        + f" {case.batch_size / step['a']:9.0f}",
        flush=True,
    )
    if case.device == "cuda":
        slower = step["eager"] / step["a"]
        print(
            f"{'':20} (a) without a graph: {1000 * step['eager']:.3f} ms, {slower:.2f} times that"
        )


def measure(processes, contenders, repeats):
    """Return the results of contenders, {name: list}; their runs are interleaved."""
    results = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, call in contenders.items():
            result = processes.submit(name, *call).result()
            if repeat:  # the first warms up
                results[name].append(result)
    return results


def sparse(processes, options):
    """Print the table of sparse against dense layers."""
    print(f"\n{'':36} {'milliseconds per step':^38} {'per 1,000 evaluated images':^27}")
    print(
        f"{'network/data':20} batch threads      %   sparse    dense  ratio sparse/floor"
        "    sparse    dense  ratio"
    )
    cases = [Case("fc1", "mnist", percent=percent) for percent in (100, 21, 13.5, 7, 3.6)]
    cases += [Case("lenet5", "mnist", percent=5), Case("conv2", "cifar10", percent=5)]
    cases += [Case("alexnet", "cifar10", percent=percent) for percent in (100, 5)]
    for threads in [options.threads] if options.threads else [1, utils.THREADS]:
        for case in cases:
            steps, evaluated = WORK[case.arch_type]
            case = dataclasses.replace(case, threads=threads, steps=steps, evaluated=evaluated)
            compare_layers(processes, case, options.repeats)


def compare_layers(processes, case, repeats):
    """Print a line of the table."""
    contenders = {
        "sparse": (ours, dataclasses.replace(case, sparse_below=99.9)),
        "dense": (ours, case),
        "floor": (floor, case),
    }
    results = measure(processes, contenders, repeats)
    least = statistics.median(results["floor"])
    step = {}
    each = {}
    for name in ("sparse", "dense"):
        step[name] = statistics.median(result[0] for result in results[name])
        each[name] = statistics.median(result[1] for result in results[name])
    print(
        f"{case} {case.threads:7} {case.percent:6}"
        + "".join(f" {1e3 * seconds:8.3f}" for seconds in step.values())
        + f" {step['sparse'] / step['dense']:6.2f} {step['sparse'] / least:12.2f} "
        + "".join(f" {1e6 * seconds:8.2f}" for seconds in each.values())
        + f" {each['sparse'] / each['dense']:6.2f}",
        flush=True,
    )


def threads(processes, options):
    """Print the table of one thread against all."""
    most = options.threads or utils.THREADS
    cases = [
        Case("fc1", "mnist", 60),
        Case("fc1", "mnist", 600),
        Case("lenet5", "mnist", 60),
        Case("conv2", "mnist", 60),
        Case("resnet20", "mnist", 60),
    ]
    print(f"\n{'':38} {'alone: ms per step':^28} {'beside another process':^28}")
    print(
        f"{'network/data':20} batch  MFLOP/batch"
        + f" {'1 thread':>10} {f'{most} threads':>10} {'ratio':>6}" * 2
    )
    for case in cases:
        alone = {}
        beside = {}
        for repeat in range(options.repeats + 1):
            for count in (1, most):
                run = (steps_for_seconds, dataclasses.replace(case, threads=count))
                first = processes.submit("first", *run).result()
                both = [processes.submit(name, *run) for name in ("first", "second")]
                pair = [future.result() for future in both]
                if repeat:  # the first warms up
                    alone.setdefault(count, []).append(first)
                    beside.setdefault(count, []).extend(pair)
        line = f"{case} {operations(case) / 1e6:12.0f}"
        for times in (alone, beside):
            one, all_ = (1000 * statistics.median(times[count]) for count in (1, most))
            line += f" {one:10.2f} {all_:10.2f} {one / all_:6.2f}"
        print(line, flush=True)


def print_parts(processes, options):
    """Print where the time of a step goes."""
    print()
    for case in (Case("fc1", "mnist"), Case("lenet5", "mnist")):
        case = dataclasses.replace(adapted(case, options), steps=300)
        results = measure(processes, {"parts": (parts, case)}, options.repeats)["parts"]
        times = {name: statistics.median(found[name] for found in results) for name in results[0]}
        whole = times.pop("the whole step")
        times["the rest: other operations and autograd"] = whole - sum(times.values())
        print(f"{case}: {utils.plural(case.threads, 'thread')}, a step takes {1000 * whole:.3f} ms")
        for name, seconds in times.items():
            print(f"{'':20} {1000 * seconds:7.3f} ms {100 * seconds / whole:5.1f}%  {name}")


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
timed(main, "draw", "files, figures")
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


def rounds(processes, options):
    """Run fc1 on images of MNIST's shape; print time outside of training, start-up, memory."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [
            f"--output_dir={folder}",
            "--prune_iterations=3",
            "--end_iter=10",
            f"--gpu={'0' if options.device == 'cuda' else 'cpu'}",
        ]
        if options.threads:
            flags.append(f"--threads={options.threads}")
        code = ROUND.replace("sys.argv0", repr(time.time()))
        result = subprocess.run(
            [sys.executable, "-c", code, *flags],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    print("\n" + "\n".join(result.stdout.splitlines()[-4:]))


TABLES = {
    "ratios": ratios,
    "sparse": sparse,
    "threads": threads,
    "parts": print_parts,
    "rounds": rounds,
}


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", default=list(TABLES), metavar="table")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="default: as main.py chooses")
    parser.add_argument("--repeats", default=5, type=int)
    options = parser.parse_args()
    if unknown := set(options.tables) - set(TABLES):
        parser.error(f"unknown table {unknown.pop()}; choose from {', '.join(TABLES)}")
    return options


if __name__ == "__main__":
    options = parse_args()
    name = platform.processor() or platform.machine()
    if options.device == "cuda":
        name = torch.cuda.get_device_name()
    print(f"{name}, {os.cpu_count()} CPUs, torch {torch.__version__}")
    with Processes(options.device) as processes:
        for name in options.tables:
            TABLES[name](processes, options)
