"""Where the official files of MNIST and CIFAR-10 lie below a data folder. Needs nothing but Python."""

import pathlib
import sys

MNIST = {
    "train_x": "train-images-idx3-ubyte",
    "train_y": "train-labels-idx1-ubyte",
    "test_x": "t10k-images-idx3-ubyte",
    "test_y": "t10k-labels-idx1-ubyte",
}
CIFAR10 = {
    "train": [f"data_batch_{number}.bin" for number in range(1, 6)],
    "test": ["test_batch.bin"],
}


class Missing(Exception):
    """A file that was looked for in vain."""


def find(data: pathlib.Path, folder: str, name: str, data_set: str) -> pathlib.Path:
    for path in (data / folder / name, data / name):
        for candidate in (path.with_name(path.name + ".gz"), path):
            if candidate.is_file():
                return candidate
    raise Missing(f"there is no {folder}/{name} in '{data}'; run  scripts/fetch_data {data_set} FOLDER")


def mnist(data: pathlib.Path) -> dict[str, pathlib.Path]:
    return {key: find(data, "mnist", name, "mnist") for key, name in MNIST.items()}


def cifar10(data: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    return {
        part: [find(data, "cifar-10-batches-bin", name, "cifar10") for name in names]
        for part, names in CIFAR10.items()
    }


def has_cifar10(data: pathlib.Path) -> bool:
    try:
        cifar10(data)
    except Missing:
        return False
    return True


if __name__ == "__main__":
    try:
        mnist(pathlib.Path(sys.argv[1]))
    except Missing as missing:
        sys.exit(f"pawl: {missing}")
