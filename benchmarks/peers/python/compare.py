"""Runs the sides in turns, work by work and round by round, and prints the table. Called by scripts/compare_peers.

The programs stay up and learn one work at a time when asked, so that loading is not repeated and no two run at once.
"""

import argparse
import collections
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys

import files

HERE = pathlib.Path(__file__).resolve().parent
WORKS = {  # name: what the table says of it
    "er": "P1 ER",
    "ewc": "P2 EWC",
    "naive": "P3 naive",
    "lwf": "P3 LwF",
    "si": "P3 SI",
    "a_gem": "P3 A-GEM",
    "derpp": "P3 DER++",
    "er_cnn": "P4 ER, SlimResNet18",
}
SIDES = ["plain Python", "Avalanche", "Avalanche, online stream", "Avalanche, memory per experience", "C++ by hand",
         "pawl"]
BEGIN, END = "<!-- written by scripts/compare_peers: begin -->", "<!-- written by scripts/compare_peers: end -->"
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}


def fail(message: str) -> None:
    sys.exit(f"\npawl: {message}")


class Program:
    """A program that learns the works it is asked for."""

    def __init__(self, name: str, command: list[str], arguments: argparse.Namespace):
        self.name = name
        limits = ["--rows", str(arguments.rows), "--images", str(arguments.images)]
        self.process = subprocess.Popen(
            [*command, "--data", str(arguments.data), *limits, "--rounds", "1", "--asked"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})

    def learn(self, work: str) -> list[dict]:
        results = []
        try:
            print(work, file=self.process.stdin, flush=True)
            while (line := self.process.stdout.readline()).strip():
                results.append(json.loads(line))
        except (BrokenPipeError, json.JSONDecodeError):
            line = ""
        if not line:
            fail(f"{self.name} ended while learning '{work}'; its reason is above.")
        return results

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


@dataclasses.dataclass
class Times:
    """What a side did, round by round, without first experiences, in which memories fill and penalties begin."""

    step_us: list[list[float]] = dataclasses.field(default_factory=list)
    end_ms: list[float] = dataclasses.field(default_factory=list)
    accuracy: list[float] = dataclasses.field(default_factory=list)

    def add(self, result: dict) -> None:
        self.step_us.append(result["step_us"][1:])
        self.end_ms += result["end_ms"][1:]
        self.accuracy.append(100 * result["accuracy"])

    def ratio(self, other: "Times") -> float:
        """Of the medians of each round, because the speed of a shared machine changes from round to round."""
        rounds = zip(self.step_us, other.step_us)
        return statistics.median(statistics.median(own) / statistics.median(its) for own, its in rounds)

    def row(self, pawl: "Times") -> list[str]:
        step_us = sum(self.step_us, [])
        return [
            f"{statistics.median(step_us):.0f} [{min(step_us):.0f}, {max(step_us):.0f}]",
            f"{self.ratio(pawl):.2f}",
            f"{statistics.median(self.end_ms):.1f}",
            f"{statistics.mean(self.accuracy):.1f} [{min(self.accuracy):.1f}, {max(self.accuracy):.1f}]",
        ]


def measure(works: list[str], programs: list[Program], rounds: int) -> tuple[dict, list[str]]:
    """Times by work and side, and what the sides ran on."""
    times: dict = {work: collections.defaultdict(Times) for work in works}
    versions: dict[str, None] = {}
    for number in range(1, rounds + 1):
        for work in works:
            for program in programs:
                for result in program.learn(work):
                    times[work][result["side"]].add(result)
                    versions[result["versions"]] = None
            print(f"round {number} of {rounds}: {work}", file=sys.stderr, flush=True)
    return times, list(versions)


def table(times: dict) -> str:
    lines = ["| work | side | µs per step | × pawl | end, ms | accuracy, % |", "|---|---|---|---|---|---|"]
    for work, sides in times.items():
        for side in sorted(sides, key=SIDES.index):
            lines.append(f"| {WORKS[work]} | {side} | " + " | ".join(sides[side].row(sides["pawl"])) + " |")
    return "\n".join(lines)


def machine() -> str:
    try:
        model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    except OSError:
        model = None
    return f"{os.cpu_count()} cores of {model[1] if model else platform.machine()}"


def load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def section(arguments: argparse.Namespace, times: dict, versions: list[str], loads: list[str]) -> str:
    command = f"scripts/compare_peers --data DIR --rounds {arguments.rounds} --rows {arguments.rows} " \
              f"--images {arguments.images}{' --write' if arguments.document else ''}"
    return "\n".join([
        f"`{command}`, {datetime.date.today()}, {machine()}, load average {loads[0]} at the start, {loads[1]} at the "
        f"end. {'; '.join(versions)}.",
        "",
        f"Rounds: {arguments.rounds}. µs per step: median [least, most] over the experiences after the first; × pawl: "
        "median over the rounds of the ratio to pawl's; end: median of what follows the last step of an experience; "
        "accuracy: mean [least, most] of the rounds.",
        "",
        table(times),
    ])


def replace_section(document: pathlib.Path, text: str) -> None:
    old = document.read_text()
    if old.count(BEGIN) != 1 or old.count(END) != 1:
        fail(f"{document} needs the two lines '{BEGIN}' and '{END}', each once.")
    before, rest = old.split(BEGIN)
    document.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of MNIST and CIFAR-10")
    parser.add_argument("--rounds", type=int, required=True, help="times that each work is learned by each side")
    parser.add_argument("--rows", type=int, required=True, help="digits per experience")
    parser.add_argument("--images", type=int, required=True, help="CIFAR-10 images per experience")
    parser.add_argument("--pawl-peers", required=True, help="the C++ program")
    parser.add_argument("--document", type=pathlib.Path, help="whose section is replaced")
    arguments = parser.parse_args()
    works = list(WORKS)
    if not files.has_cifar10(arguments.data):
        works.remove("er_cnn")
        print(f"P4 is left out: there is no CIFAR-10 in '{arguments.data}' (scripts/fetch_data cifar10 gets it).")
    loads = [load()]
    programs = [
        Program("plain.py", [sys.executable, str(HERE / "plain.py")], arguments),
        Program("with_avalanche.py", [sys.executable, str(HERE / "with_avalanche.py")], arguments),
        Program("pawl-peers", [arguments.pawl_peers, "--json"], arguments),
    ]
    times, versions = measure(works, programs, arguments.rounds)
    loads.append(load())
    for program in programs:
        program.stop()
    text = section(arguments, times, versions, loads)
    print(f"\n{text}")
    if arguments.document:
        replace_section(arguments.document, text)
        print(f"\nThe section in {arguments.document} is replaced.")


if __name__ == "__main__":
    main()
