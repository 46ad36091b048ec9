"""What is learned, and the command line that the Python sides share."""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

import files
import networks
import streams


@dataclasses.dataclass(frozen=True)
class Work:
    name: str
    stream: str
    batch: int
    lr: float = 0.05
    network: Callable[[], nn.Module] = networks.mlp


WORKS = [
    Work("er", "split_mnist", 10),
    Work("ewc", "permuted_mnist", 128, 0.1),
    Work("naive", "split_mnist", 128),
    Work("lwf", "split_mnist", 128),
    Work("si", "split_mnist", 128),
    Work("a_gem", "split_mnist", 128),
    Work("derpp", "split_mnist", 128),
    Work("er_cnn", "split_cifar10", 10, 0.03, networks.SlimResNet18),
]


class Stopwatch:
    """Where the time of each experience goes: its steps, and what follows the last one."""

    def __init__(self) -> None:
        self.step_us: list[float] = []
        self.end_ms: list[float] = []

    def start(self) -> None:
        self.started = self.stepped = time.perf_counter()

    def last_step(self) -> None:
        self.stepped = time.perf_counter()

    def end(self, steps: int) -> None:
        self.step_us.append((self.stepped - self.started) / steps * 1e6)
        self.end_ms.append((time.perf_counter() - self.stepped) * 1e3)


def accuracy(net: nn.Module, stream: streams.Stream) -> float:
    net.eval()
    with torch.no_grad():
        right = sum(net(streams.inputs(test.x)).argmax(1).eq(test.y).sum().item() for test in stream.tests)
    net.train()
    return right / sum(len(test) for test in stream.tests)


def report(work: Work, side: str, watch: Stopwatch, right: float, versions: str) -> None:
    line = {
        "work": work.name,
        "side": side,
        "step_us": [round(value, 1) for value in watch.step_us],
        "end_ms": [round(value, 2) for value in watch.end_ms],
        "accuracy": round(right, 4),
        "versions": f"{versions}, Python {sys.version.split()[0]}",
    }
    print(json.dumps(line), flush=True)


def main(about: str, learn: Callable[[Work, streams.Stream], None]) -> None:
    """Calls `learn`, which reports, for the works that the command line asks for."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of MNIST and CIFAR-10")
    parser.add_argument("--work", action="append", choices=[work.name for work in WORKS], help="default: all")
    parser.add_argument("--rounds", type=int, default=1, help="times that each work is learned")
    parser.add_argument("--rows", type=int, help="digits per experience; default: all")
    parser.add_argument("--images", type=int, default=500, help="CIFAR-10 images per experience")
    parser.add_argument("--asked", action="store_true", help="works are named on standard input, one a line; "
                        "an empty line ends each answer")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    named = {work.name: work for work in WORKS}
    loaded: dict[str, streams.Stream] = {}
    seed = 0
    try:
        for name in asked() if arguments.asked else chosen(arguments):
            work = named[name]
            if work.stream not in loaded:
                loaded[work.stream] = streams.load(work.stream, arguments.data, arguments.rows, arguments.images)
            for _ in range(arguments.rounds):
                seed += 1
                torch.manual_seed(seed)
                learn(work, loaded[work.stream])
            if arguments.asked:
                print(flush=True)
    except files.Missing as missing:
        sys.exit(str(missing))


def asked() -> Iterator[str]:
    for line in sys.stdin:
        yield line.strip()


def chosen(arguments: argparse.Namespace) -> Iterator[str]:
    for work in WORKS:
        if arguments.work:
            if work.name in arguments.work:
                yield work.name
        elif work.stream == "split_cifar10" and not files.has_cifar10(arguments.data):
            print(f"{work.name} is left out: there is no CIFAR-10 in '{arguments.data}'", file=sys.stderr)
        else:
            yield work.name
