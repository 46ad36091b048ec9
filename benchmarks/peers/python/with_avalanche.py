"""The same works with Avalanche, without metrics and loggers, from float rows in memory.

Where its algorithms do something else than the loops by hand:
  er, er_cnn  the stream is cut into experiences of one batch, so that the memory is written at every step; "memory
              per experience" writes it, with the same reservoir, when an experience of the stream ends
  ewc         squares the mean gradients of whole batches, over all rows
  si          the importance is capped at 0.001 and may be negative; the path takes the gradient of penalty and loss
  a_gem       100 rows of each experience, kept when it ends; the reference takes equally many of each
  derpp       a memory balanced by class, written with new logits when an experience ends; one draw for both terms, in
              one forward pass
Prints a line of JSON per round and work.  with_avalanche.py --data DIR [--work NAME] [--rounds N] [--rows N]
"""

import pathlib
import sys
import warnings

import torch

import streams
import works

warnings.filterwarnings("ignore")  # of the import: solvers and deprecations that nothing here touches


def import_torchvision() -> None:
    """Its wheel is compiled for CUDA. Where it cannot load its operators, declaring the two that its import describes
    is enough, because nothing here calls them."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        globals()["operators"] = operators  # they live as long as this object
        import torchvision  # noqa: F401


import_torchvision()

import avalanche  # noqa: E402
from avalanche.benchmarks import benchmark_from_datasets  # noqa: E402
from avalanche.benchmarks.scenarios.online import split_online_stream  # noqa: E402
from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset as tensor_dataset  # noqa: E402
from avalanche.core import SupervisedPlugin  # noqa: E402
from avalanche.training.plugins import (  # noqa: E402
    AGEMPlugin, EWCPlugin, LwFPlugin, ReplayPlugin, SynapticIntelligencePlugin)
from avalanche.training.storage_policy import ReservoirSamplingBuffer  # noqa: E402
from avalanche.training.supervised import DER, Naive  # noqa: E402

MEMORY = 500


class LastStep(SupervisedPlugin):
    """Tells the stopwatch when the steps of an experience are over."""

    def __init__(self, watch: works.Stopwatch):
        super().__init__()
        self.watch = watch

    def after_training_epoch(self, strategy, **kwargs) -> None:
        self.watch.last_step()


class Reservoir(ReservoirSamplingBuffer):
    def update(self, strategy, **kwargs) -> None:
        """What the deprecated method of the base does, without the warning that it prints at every step."""
        self.post_adapt(strategy, strategy.experience)


def replay(batch: int) -> ReplayPlugin:
    return ReplayPlugin(MEMORY, batch, batch, storage_policy=Reservoir(MEMORY))


def plugins(work: works.Work) -> list[SupervisedPlugin]:
    return {
        "er": lambda: [replay(work.batch)],
        "er_cnn": lambda: [replay(work.batch)],
        "ewc": lambda: [EWCPlugin(20 / 2, mode="online", decay_factor=1.0)],
        "naive": lambda: [],
        "lwf": lambda: [LwFPlugin(alpha=4, temperature=2)],
        "si": lambda: [SynapticIntelligencePlugin(0.2, eps=0.1)],
        "a_gem": lambda: [AGEMPlugin(MEMORY // streams.EXPERIENCES, work.batch)],
        "derpp": lambda: [],
    }[work.name]()


def strategy(work: works.Work, watch: works.Stopwatch) -> Naive | DER:
    net = work.network()
    common = {
        "model": net,
        "optimizer": torch.optim.SGD(net.parameters(), work.lr),
        "train_mb_size": work.batch,
        "plugins": [*plugins(work), LastStep(watch)],
        "evaluator": None,
    }
    if work.name == "derpp":
        return DER(mem_size=MEMORY, batch_size_mem=work.batch, alpha=0.5, beta=0.5, **common)
    return Naive(**common)


def benchmark_of(stream: streams.Stream):
    """Inputs are made floats here, outside the time that is measured."""
    return benchmark_from_datasets(
        train=[tensor_dataset(streams.inputs(rows.x), rows.y) for rows in stream.experiences]
    )


def learn_once(work: works.Work, stream: streams.Stream, online: bool, side: str) -> None:
    watch = works.Stopwatch()
    learner = strategy(work, watch)
    for experience in benchmark_of(stream).train_stream:
        steps = -(-len(experience.dataset) // work.batch)
        watch.start()
        if online:
            for part in split_online_stream([experience], work.batch, shuffle=True):
                learner.train(part)
            watch.last_step()
        else:
            learner.train(experience)
        watch.end(steps)
    versions = f"Avalanche {avalanche.__version__}, torch {torch.__version__}"
    works.report(work, side, watch, works.accuracy(learner.model, stream), versions)


def learn(work: works.Work, stream: streams.Stream) -> None:
    online = work.name in ("er", "er_cnn")
    learn_once(work, stream, online, "Avalanche, online stream" if online else "Avalanche")
    if work.name == "er":
        learn_once(work, stream, False, "Avalanche, memory per experience")


if __name__ == "__main__":
    works.main("The same works with Avalanche", learn)
