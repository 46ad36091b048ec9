"""The streams of the comparison: the rows that pawl-peers learns, as bytes."""

import dataclasses
import gzip
import pathlib

import numpy as np
import torch
from torch import Tensor

import files

EXPERIENCES = 5
TEST_ROWS = 500  # of each experience


@dataclasses.dataclass
class Rows:
    x: Tensor  # [N, ...] uint8
    y: Tensor  # [N] int64

    def first(self, n: int) -> "Rows":
        return Rows(self.x[:n].contiguous(), self.y[:n].contiguous())

    def of_classes(self, classes: list[int]) -> "Rows":
        chosen = torch.isin(self.y, torch.tensor(classes))
        return Rows(self.x[chosen], self.y[chosen])

    def __len__(self) -> int:
        return len(self.y)


@dataclasses.dataclass
class Stream:
    experiences: list[Rows]
    tests: list[Rows]


def inputs(bytes_: Tensor) -> Tensor:
    return bytes_.to(torch.float32).mul_(1 / 255)


def read(path: pathlib.Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def mnist(data: pathlib.Path) -> tuple[Rows, Rows]:
    def array(path: pathlib.Path) -> Tensor:
        raw = read(path)
        dimensions = raw[3]
        shape = np.frombuffer(raw, ">u4", dimensions, 4).astype(int)
        return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy())

    held = {key: array(path) for key, path in files.mnist(data).items()}
    return (
        Rows(held["train_x"], held["train_y"].long()),
        Rows(held["test_x"], held["test_y"].long()),
    )


def cifar10(data: pathlib.Path) -> tuple[Rows, Rows]:
    def rows(paths: list[pathlib.Path]) -> Rows:
        raw = np.concatenate([np.frombuffer(read(path), np.uint8) for path in paths]).reshape(-1, 3073)
        y = torch.from_numpy(raw[:, 0].astype(np.int64))
        return Rows(torch.from_numpy(raw[:, 1:].reshape(-1, 3, 32, 32).copy()), y)

    parts = files.cifar10(data)
    return rows(parts["train"]), rows(parts["test"])


def split(train: Rows, test: Rows, rows: int | None) -> Stream:
    """Two classes per experience, in the order of the labels."""
    stream = Stream([], [])
    for e in range(EXPERIENCES):
        classes = [2 * e, 2 * e + 1]
        stream.experiences.append(train.of_classes(classes).first(rows or len(train)))
        stream.tests.append(test.of_classes(classes).first(TEST_ROWS))
    return stream


def permuted(train: Rows, test: Rows, rows: int | None) -> Stream:
    """A permutation of the pixels per experience."""
    stream = Stream([], [])
    for e in range(EXPERIENCES):
        order = torch.from_numpy(np.random.default_rng(e).permutation(train.x[0].numel()))

        def permute(part: Rows) -> Rows:
            return Rows(part.x.flatten(1)[:, order].view_as(part.x), part.y)

        stream.experiences.append(permute(train.first(rows or len(train))))
        stream.tests.append(permute(test.first(TEST_ROWS)))
    return stream


def load(name: str, data: pathlib.Path, rows: int | None, images: int | None) -> Stream:
    if name == "split_cifar10":
        return split(*cifar10(data), images)
    return (permuted if name == "permuted_mnist" else split)(*mnist(data), rows)
