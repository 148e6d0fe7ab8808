"""A small data-parallel training loop: a budget, gradients averaged over workers, checkpoints.

Every random draw of a step is seeded by (seed, step, rank), so a run that is resumed sees what an
uninterrupted one would have seen.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """What a run may cost, and how it goes about it. Exactly one of minutes and steps is set."""

    minutes: float | None = None
    steps: int | None = None
    workers: int = 4
    batch: int = 8
    learning_rate: float = 5e-4
    warmup_steps: int = 200
    decay_from: float = 0.7
    final_rate: float = 0.02
    ema_decay: float = 0.999
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError(f"set minutes or steps, not {self.minutes} and {self.steps}")

    def spent(self, step: int, seconds: float) -> float:
        """The fraction of the budget that is used up."""
        if self.steps is not None:
            return step / self.steps
        assert self.minutes is not None
        return seconds / (60 * self.minutes)

    def rate(self, step: int, spent: float) -> float:
        """Linear warm-up, then constant, then a line down to `final_rate` of the learning rate.

        Until `decay_from` of the budget is spent, a run can be given more without loss.
        """
        left = min(1.0, (1.0 - min(spent, 1.0)) / (1.0 - self.decay_from))
        decay = self.final_rate + (1 - self.final_rate) * left
        return self.learning_rate * min(1.0, (step + 1) / self.warmup_steps) * decay


@dataclass
class Draws:
    """The randomness of one step on one worker."""

    numpy: np.random.Generator
    torch: torch.Generator


def draws_for(seed: int, step: int, rank: int) -> Draws:
    """Generators that depend on nothing but the seed, the step and the worker."""
    sequence = np.random.SeedSequence((seed, step, rank))
    generator = torch.Generator().manual_seed(int(sequence.generate_state(1)[0]))
    return Draws(np.random.default_rng(sequence), generator)


class Task(Protocol):
    """What is trained: named modules, a loss, and something to show now and then."""

    modules: dict[str, torch.nn.Module]

    def loss(self, draws: Draws, batch: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The scalar loss of one freshly drawn batch, and figures for the log."""
        ...

    def show(self, averaged: dict[str, torch.nn.Module], folder: Path, step: int) -> None:
        """Write samples of the averaged weights (called on worker 0 only)."""
        ...


@dataclass
class Progress:
    """What a checkpoint holds besides tensors."""

    step: int = 0
    seconds: float = 0.0


class Average:
    """An exponential moving average of parameters, with a warm-up of the decay."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], decay: float) -> None:
        self.shadow = [p.detach().clone() for p in parameters]
        self.decay = decay

    def update(self, parameters: Sequence[torch.nn.Parameter], step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in parameters], 1 - decay)


def train(make_task: Callable[[], Task], budget: Budget, folder: Path, show_every: int) -> None:
    """Train until the budget is spent, resuming from the folder's checkpoint if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    if budget.workers == 1:
        _work(0, make_task, budget, folder, show_every, port=None)
        return
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    mp.spawn(  # type: ignore[attr-defined]
        _work, args=(make_task, budget, folder, show_every, port), nprocs=budget.workers
    )


def _work(
    rank: int,
    make_task: Callable[[], Task],
    budget: Budget,
    folder: Path,
    show_every: int,
    port: int | None,
) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    if port is not None:
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=budget.workers)
    torch.manual_seed(budget.seed)
    task = make_task()
    parameters = [p for m in task.modules.values() for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=budget.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    average = Average(parameters, budget.ema_decay)
    progress = load_checkpoint(folder, parameters, average, optimizer)
    before, started, losses = progress.seconds, time.monotonic(), []
    spent = budget.spent(progress.step, progress.seconds)
    while spent < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = budget.rate(progress.step, spent)
        draws = draws_for(budget.seed, progress.step, rank)
        loss, figures = task.loss(draws, budget.batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        progress.seconds = before + time.monotonic() - started
        progress.step += 1
        mean_loss, spent = _average_gradients(
            parameters,
            float(loss.detach()),
            budget.spent(progress.step, progress.seconds),
            rank,
            port,
        )
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        average.update(parameters, progress.step)
        losses.append(mean_loss)
        if rank == 0 and progress.step % budget.log_every == 0:
            _log(progress, spent, losses, figures)
            losses.clear()
        last = spent >= 1.0
        if rank == 0 and (last or progress.step % budget.checkpoint_every == 0):
            save_checkpoint(folder, parameters, average, optimizer, progress)
        if rank == 0 and (last or progress.step % show_every == 0):
            show(task, parameters, average, folder, progress.step)
    if port is not None:
        dist.barrier()
        dist.destroy_process_group()


def _average_gradients(
    parameters: Sequence[torch.nn.Parameter], loss: float, spent: float, rank: int, port: int | None
) -> tuple[float, float]:
    """Average gradients and loss over workers; all of them take worker 0's reading of the clock."""
    if port is None:
        return loss, spent
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    clock = spent if rank == 0 else 0.0
    flat = torch.cat([g.reshape(-1) for g in gradients] + [torch.tensor([loss, clock])])
    dist.all_reduce(flat)
    workers = dist.get_world_size()
    offset = 0
    for parameter, gradient in zip(parameters, gradients, strict=True):
        part = flat[offset : offset + gradient.numel()]
        parameter.grad = part.view_as(gradient).div_(workers)
        offset += gradient.numel()
    return float(flat[-2]) / workers, float(flat[-1])


def _log(progress: Progress, spent: float, losses: list[float], figures: dict[str, float]) -> None:
    rest = "  ".join(f"{name} {value:.5g}" for name, value in figures.items())
    logger.info(
        "step %d  %.0f%%  %.0f s  loss %.5f  %s",
        progress.step, 100 * spent, progress.seconds, sum(losses) / len(losses), rest,
    )  # fmt: skip


def show(
    task: Task,
    parameters: Sequence[torch.nn.Parameter],
    average: Average,
    folder: Path,
    step: int,
) -> None:
    """Let the task show its averaged weights, then put the trained ones back."""
    trained = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        torch._foreach_copy_(list(parameters), average.shadow)
        task.show(task.modules, folder, step)
        torch._foreach_copy_(list(parameters), trained)


def save_checkpoint(
    folder: Path,
    parameters: Sequence[torch.nn.Parameter],
    average: Average,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write the whole state under a temporary name, then rename it into place."""
    state = {
        "parameters": [p.detach() for p in parameters],
        "average": average.shadow,
        "optimizer": optimizer.state_dict(),
        "step": progress.step,
        "seconds": progress.seconds,
    }
    unfinished = folder / "checkpoint.part"
    torch.save(state, unfinished)
    unfinished.replace(folder / "checkpoint.pt")
    (folder / "progress.json").write_text(json.dumps(vars(progress)))


def load_checkpoint(
    folder: Path,
    parameters: Sequence[torch.nn.Parameter],
    average: Average,
    optimizer: torch.optim.Optimizer,
) -> Progress:
    """Restore the folder's state in place; a fresh start where there is none."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        return Progress()
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        torch._foreach_copy_(list(parameters), state["parameters"])
        torch._foreach_copy_(average.shadow, state["average"])
    optimizer.load_state_dict(state["optimizer"])
    for group in optimizer.param_groups:
        group.update(foreach=None, fused=True)
    logger.info("resuming at step %d, %.0f s", state["step"], state["seconds"])
    return Progress(state["step"], state["seconds"])


def load_averaged(folder: Path, modules: dict[str, torch.nn.Module]) -> None:
    """Load a checkpoint's averaged weights into modules built like the trained ones."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
    with torch.no_grad():
        torch._foreach_copy_(list(parameters), state["average"])
