"""Continual learning written by hand with PyTorch, as a careful user would for one network and one method.

The loops of benchmarks/peers/*_loops.hpp, work for work: autograd, torch.optim.SGD, rows kept as bytes and gathered
per batch. Prints a line of JSON per round and work.  plain.py --data DIR [--work NAME] [--rounds N] [--rows N]
"""

import copy
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import streams
import works
from streams import Rows, inputs


class Loop:
    """Plain SGD over the experiences, one after another."""

    def __init__(self, net: nn.Module, lr: float):
        self.net = net
        self.sgd = torch.optim.SGD(net.parameters(), lr)
        self.parameters = list(net.parameters())
        self.experience = 0

    def begin(self) -> None:
        pass

    def step(self, x: Tensor, y: Tensor) -> None:
        raise NotImplementedError

    def end(self, rows: Rows) -> None:
        pass

    def backward(self, loss: Tensor) -> None:
        self.sgd.zero_grad()
        loss.backward()
        loss.item()  # a divergence would be noticed

    def backward_and_step(self, loss: Tensor) -> None:
        self.backward(loss)
        self.sgd.step()

    def learn(self, rows: Rows, batch: int, watch: works.Stopwatch) -> None:
        """One epoch in a shuffled order."""
        watch.start()
        self.begin()
        order = torch.randperm(len(rows)).split(batch)
        for positions in order:
            self.step(rows.x[positions], rows.y[positions])
        watch.last_step()
        self.end(rows)
        self.experience += 1
        watch.end(len(order))


class Naive(Loop):
    def step(self, x: Tensor, y: Tensor) -> None:
        self.backward_and_step(F.cross_entropy(self.net(inputs(x)), y))


class Memory:
    """A reservoir of rows (Vitter, 1985), with the logits they were stored with where given."""

    def __init__(self, capacity: int = 500):
        self.capacity, self.seen = capacity, 0
        self.x = self.y = self.logits = None

    def insert(self, x: Tensor, y: Tensor, logits: Tensor | None = None) -> None:
        if self.x is None:
            self.x = x.new_zeros((self.capacity, *x.shape[1:]))
            self.y = y.new_zeros(self.capacity)
            self.logits = None if logits is None else logits.new_zeros((self.capacity, logits.shape[1]))
        source, target = [], []
        for row in range(len(y)):
            slot = self.seen if self.seen < self.capacity else random.randrange(self.seen + 1)
            self.seen += 1
            if slot < self.capacity:
                source.append(row)
                target.append(slot)
        if not source:
            return
        self.x[target], self.y[target] = x[source], y[source]
        if logits is not None:
            self.logits[target] = logits[source]

    def draw(self, n: int) -> Tensor:
        return torch.randperm(min(self.seen, self.capacity))[:n]

    def draw_below(self, classes: int, n: int) -> Tensor:
        """Of the rows whose label is below `classes`."""
        rows = self.y[: min(self.seen, self.capacity)].lt(classes).nonzero().squeeze(1)
        return rows[torch.randperm(len(rows))[:n]]


class Er(Loop):
    """Experience replay: fresh and replayed rows in one forward pass."""

    def __init__(self, net: nn.Module, lr: float):
        super().__init__(net, lr)
        self.memory = Memory()

    def step(self, x: Tensor, y: Tensor) -> None:
        all_x, all_y = x, y
        if self.memory.seen:
            rows = self.memory.draw(len(y))
            all_x, all_y = torch.cat((x, self.memory.x[rows])), torch.cat((y, self.memory.y[rows]))
        self.backward_and_step(F.cross_entropy(self.net(inputs(all_x)), all_y))
        self.memory.insert(x, y)


class DerPlusPlus(Loop):
    """Dark experience replay ++ (Buzzega et al., NeurIPS 2020), in three forward passes as published."""

    def __init__(self, net: nn.Module, lr: float):
        super().__init__(net, lr)
        self.memory = Memory()

    def step(self, x: Tensor, y: Tensor) -> None:
        memory = self.memory
        z = self.net(inputs(x))
        loss = F.cross_entropy(z, y)
        if memory.seen:
            first, second = memory.draw(len(y)), memory.draw(len(y))
            loss = loss + 0.5 * F.mse_loss(self.net(inputs(memory.x[first])), memory.logits[first])
            loss = loss + 0.5 * F.cross_entropy(self.net(inputs(memory.x[second])), memory.y[second])
        self.backward_and_step(loss)
        memory.insert(x, y, z.detach())


class AGem(Loop):
    """Averaged gradient episodic memory (Chaudhry et al., ICLR 2019)."""

    reference_rows = 128

    def __init__(self, net: nn.Module, lr: float):
        super().__init__(net, lr)
        self.memory = Memory()

    def step(self, x: Tensor, y: Tensor) -> None:
        reference = None
        if self.experience > 0:
            rows = self.memory.draw_below(2 * self.experience, self.reference_rows)  # of the past
            loss = F.cross_entropy(self.net(inputs(self.memory.x[rows])), self.memory.y[rows])
            reference = torch.autograd.grad(loss, self.parameters)
        self.backward(F.cross_entropy(self.net(inputs(x)), y))
        if reference is not None:
            self.project(torch.cat([g.flatten() for g in reference]))
        self.sgd.step()
        self.memory.insert(x, y)

    def project(self, reference: Tensor) -> None:
        own = torch.cat([p.grad.flatten() for p in self.parameters])
        product = own.dot(reference).item()
        if product >= 0:
            return
        projected = own - product / reference.dot(reference) * reference
        for p, g in zip(self.parameters, projected.split([p.numel() for p in self.parameters])):
            p.grad.copy_(g.view_as(p))


def pull(importance: list[Tensor], weights: list[Tensor], anchor: list[Tensor]) -> Tensor:
    penalty = torch.zeros(())
    for f, p, old in zip(importance, weights, anchor):
        penalty = penalty + (f * (p - old).pow(2)).sum()
    return penalty


class Ewc(Loop):
    """Elastic weight consolidation (Kirkpatrick et al., PNAS 2017; online: Schwarz et al., ICML 2018), its penalty
    through autograd. The Fisher is empirical, one sample after another."""

    strength = 20
    fisher_samples = 200

    def __init__(self, net: nn.Module, lr: float):
        super().__init__(net, lr)
        self.fisher = [torch.zeros_like(p) for p in self.parameters]
        self.anchor = [p.detach().clone() for p in self.parameters]

    def step(self, x: Tensor, y: Tensor) -> None:
        loss = F.cross_entropy(self.net(inputs(x)), y)
        if self.experience > 0:
            loss = loss + self.strength / 2 * pull(self.fisher, self.parameters, self.anchor)
        self.backward_and_step(loss)

    def end(self, rows: Rows) -> None:
        chosen = torch.randperm(len(rows))[: self.fisher_samples]
        x, y = inputs(rows.x[chosen]), rows.y[chosen]
        for i in range(len(y)):
            loss = F.cross_entropy(self.net(x[i : i + 1]), y[i : i + 1])
            for f, g in zip(self.fisher, torch.autograd.grad(loss, self.parameters)):
                f.addcmul_(g, g, value=1 / len(y))
        for old, p in zip(self.anchor, self.parameters):
            old.copy_(p.detach())


class Si(Loop):
    """Synaptic intelligence (Zenke et al., ICML 2017), its penalty through autograd."""

    def __init__(self, net: nn.Module, lr: float):
        super().__init__(net, lr)
        self.omega = [torch.zeros_like(p) for p in self.parameters]
        self.path = [torch.zeros_like(p) for p in self.parameters]
        self.anchor = [p.detach().clone() for p in self.parameters]

    def step(self, x: Tensor, y: Tensor) -> None:
        self.backward(F.cross_entropy(self.net(inputs(x)), y))
        before = [p.detach().clone() for p in self.parameters]
        gradient = [p.grad.clone() for p in self.parameters]
        if self.experience > 0:
            (0.1 * pull(self.omega, self.parameters, self.anchor)).backward()
        self.sgd.step()
        for path, g, p, old in zip(self.path, gradient, self.parameters, before):
            path.sub_(g * (p.detach() - old))

    def end(self, rows: Rows) -> None:
        for omega, path, anchor, p in zip(self.omega, self.path, self.anchor, self.parameters):
            omega.add_(path.clamp_min(0) / ((p.detach() - anchor).square() + 0.1))
            path.zero_()
            anchor.copy_(p.detach())


class Lwf(Loop):
    """Learning without forgetting (Li and Hoiem, ECCV 2016): distillation at temperature 2."""

    def begin(self) -> None:
        if self.experience > 0:
            self.teacher = copy.deepcopy(self.net)

    def step(self, x: Tensor, y: Tensor) -> None:
        x = inputs(x)
        z = self.net(x)
        loss = F.cross_entropy(z, y)
        if self.experience > 0:
            known = 2 * self.experience  # classes of the experiences before
            with torch.no_grad():
                old = F.log_softmax(self.teacher(x)[:, :known] / 2, 1)
            now = F.log_softmax(z[:, :known] / 2, 1)
            loss = loss + 4 * F.kl_div(now, old, reduction="batchmean", log_target=True)
        self.backward_and_step(loss)


LOOPS = {
    "er": Er,
    "ewc": Ewc,
    "naive": Naive,
    "lwf": Lwf,
    "si": Si,
    "a_gem": AGem,
    "derpp": DerPlusPlus,
    "er_cnn": Er,
}


def learn(work: works.Work, stream: streams.Stream) -> None:
    loop, watch = LOOPS[work.name](work.network(), work.lr), works.Stopwatch()
    for rows in stream.experiences:
        loop.learn(rows, work.batch, watch)
    works.report(work, "plain Python", watch, works.accuracy(loop.net, stream), f"torch {torch.__version__}")


if __name__ == "__main__":
    works.main("The loops by hand, in Python", learn)
