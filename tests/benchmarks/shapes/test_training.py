"""A run that was stopped and resumed ends where an uninterrupted one ends."""

from pathlib import Path

import pytest
import torch

from shapes.training import Budget, Draws, draws_for, load_averaged, train


class _Line:
    """Fits a line to noisy points: the smallest task there is."""

    def __init__(self) -> None:
        self.line = torch.nn.Linear(3, 1)
        self.modules: dict[str, torch.nn.Module] = {"line": self.line}
        self.shown: list[int] = []

    def loss(self, draws: Draws, batch: int) -> tuple[torch.Tensor, dict[str, float]]:
        points = torch.randn(batch, 3, generator=draws.torch)
        noise = torch.from_numpy(draws.numpy.normal(size=(batch, 1))).float()
        wanted = points.sum(dim=1, keepdim=True) + 0.1 * noise
        return (self.line(points) - wanted).square().mean(), {}

    def show(self, averaged: dict[str, torch.nn.Module], folder: Path, step: int) -> None:
        (folder / f"shown{step}").touch()


def _budget(**changes: object) -> Budget:
    settings = {"steps": 12, "workers": 1, "batch": 4, "checkpoint_every": 6, "warmup_steps": 3}
    return Budget(**{**settings, **changes})


def _state(folder: Path) -> dict[str, object]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def test_a_resumed_run_ends_in_the_same_state(tmp_path: Path) -> None:
    train(_Line, _budget(), tmp_path / "whole", show_every=100)

    class Stopped(_Line):
        def loss(self, draws: Draws, batch: int) -> tuple[torch.Tensor, dict[str, float]]:
            if (tmp_path / "parts" / "checkpoint.pt").exists():
                raise KeyboardInterrupt
            return super().loss(draws, batch)

    with pytest.raises(KeyboardInterrupt):
        train(Stopped, _budget(), tmp_path / "parts", show_every=100)
    assert _state(tmp_path / "parts")["step"] == 6
    train(_Line, _budget(), tmp_path / "parts", show_every=100)
    whole, parts = _state(tmp_path / "whole"), _state(tmp_path / "parts")
    assert whole["step"] == parts["step"] == 12
    for name in ("parameters", "average"):
        for ours, theirs in zip(whole[name], parts[name], strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_two_workers_average_their_gradients(tmp_path: Path) -> None:
    train(_Line, _budget(workers=2), tmp_path, show_every=12)
    assert _state(tmp_path)["step"] == 12
    assert (tmp_path / "shown12").exists()


def test_the_average_lags_behind_and_is_what_is_exported(tmp_path: Path) -> None:
    train(_Line, _budget(), tmp_path, show_every=100)
    task = _Line()
    load_averaged(tmp_path, task.modules)
    state = _state(tmp_path)
    assert torch.equal(task.line.weight, state["average"][0])
    assert not torch.equal(task.line.weight, state["parameters"][0])


def test_draws_depend_on_seed_step_and_worker_alone() -> None:
    assert draws_for(0, 5, 1).numpy.random() == draws_for(0, 5, 1).numpy.random()
    seen = {draws_for(*key).numpy.random() for key in ((0, 5, 1), (1, 5, 1), (0, 6, 1), (0, 5, 2))}
    assert len(seen) == 4


def test_a_budget_is_minutes_or_steps() -> None:
    with pytest.raises(ValueError, match="minutes or steps"):
        Budget()
    budget = Budget(minutes=2.0, learning_rate=1.0, warmup_steps=10, final_rate=0.1)
    assert budget.spent(step=0, seconds=60) == 0.5
    assert budget.rate(step=0, spent=0.0) == pytest.approx(0.1)
    assert budget.rate(step=100, spent=1.0) == pytest.approx(0.1)
