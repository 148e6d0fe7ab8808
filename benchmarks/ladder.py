"""The ladder: null-text inversion from a plain transcription of the paper to all that we do.

    python benchmarks/ladder.py [--model shapes] [--device cpu] [--steps 5] [--inner-steps 3]
        [--rounds 8] [--seconds 20] [--compile] [--only WORD]

Each rung is timed with those below it ("cumulative") and, where it can stand alone, on the plain
transcription ("one at a time"). Early stopping is off, so that all do the same work. A rung whose
picture is more than a decibel worse than the transcription's is not timed, and says so; what this
machine can't run is a row with the reason. Appends rows of the harness to
benchmarks/results/<device>/ladder.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from pivotal.bench.cases import Case, Prepared
from pivotal.bench.errors import WrongResultError
from pivotal.bench.measuring import measure
from pivotal.bench.rounds import Effort
from pivotal.bench.rows import append
from pivotal.bench.suites.plan import PROMPT, picture
from pivotal.bench.tables import HEADINGS, cells
from pivotal.bench.timing import Stopwatch
from pivotal.control import NoEdit
from pivotal.driver import Denoiser, drive
from pivotal.engine import Engine
from pivotal.images import fit, from_tensor, psnr, read_image, to_tensor
from pivotal.inversion import ddim, null_text
from pivotal.inversion.base import Inverted
from pivotal.inversion.registry import method_named
from pivotal.runtime.torch_denoiser import TorchDenoiser

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from baselines.attention import explicit_copy  # noqa: E402
from baselines.null_text import null_text_inversion  # noqa: E402
from baselines.schedule import make_schedule  # noqa: E402

SUITE = "ladder"
GUIDANCE = 7.5
LOSS = 1.0  # decibels that a rung may cost


class Network(nn.Module):
    """A diffusers UNet as the transcription calls it: in its own dtype, rows at once or in turn."""

    def __init__(self, unet: nn.Module, dtype: torch.dtype, *, batched: bool) -> None:
        super().__init__()
        self.unet = nn.Module.to(unet, dtype)  # diffusers' own `to` only warns
        self.dtype = dtype
        self.batched = batched

    def forward(self, latents: Tensor, timestep: Any, encoder_hidden_states: Tensor) -> Any:
        given = latents.to(self.dtype), encoder_hidden_states.to(self.dtype)
        rows = (
            [given] if self.batched else list(zip(*(each.split(1) for each in given), strict=True))
        )
        found = [self.unet(z, timestep, encoder_hidden_states=text).sample for z, text in rows]
        return SimpleNamespace(sample=torch.cat(found).to(latents.dtype))


@dataclass(frozen=True)
class Ladder:
    """One picture, its encoding, and what the rungs share."""

    model: str
    device: str
    steps: int
    inner_steps: int
    compiles: bool

    @cached_property
    def engine(self) -> Engine:
        return Engine.load(self.model, device=self.device)

    @cached_property
    def inputs(self) -> Any:
        model = self.engine.model
        pixels = fit(read_image(picture()), model.default_size).pixels
        with torch.no_grad():
            latents = model.autoencoder.encode(to_tensor(pixels).to(model.device))
            cond, null = (model.text.encode([text]).to(model.device) for text in (PROMPT, ""))
            round_trip = from_tensor(model.autoencoder.decode(latents).cpu())[0]
        return SimpleNamespace(
            pixels=pixels, latents=latents, cond=cond, null=null, vae=psnr(pixels, round_trip)
        )

    def transcription(
        self, *, half: bool = False, fused: bool = False, batched: bool = False,
        compiled: bool = False,
    ) -> Callable[[], Tensor]:  # fmt: skip
        """The plain algorithm: null embeddings [1, steps, L, D]."""
        given, model = self.inputs, self.engine.model
        own = Engine.load(self.model, device=self.device).model.unet.unet
        unet: nn.Module = own if fused else explicit_copy(own)
        if compiled:
            # As in CompiledGraphs: on a CPU that optimisation makes gradients wrong (torch 2.13).
            unet.compile(options={"layout_optimization": False} if self.device == "cpu" else None)
        network = Network(unet, torch.bfloat16 if half else torch.float32, batched=batched)
        schedule = make_schedule(asdict(model.levels.config), self.steps)

        def run() -> Tensor:
            nulls = null_text_inversion(
                network, schedule, given.latents, given.cond.hidden_states,
                given.null.hidden_states, inner_steps=self.inner_steps, guidance_scale=GUIDANCE,
                early_stop_epsilon=-1.0,
            ).nulls  # fmt: skip
            return torch.stack(nulls, dim=1)

        return run

    def ours(
        self, method: str, options: Mapping[str, Any], *, half: bool = True,
        compiled: bool = False, graphs: bool = False,
    ) -> Callable[[], Tensor]:  # fmt: skip
        """Our algorithm and denoiser: null embeddings [1, steps, L, D]."""
        given = self.inputs
        dtype = "bfloat16" if half else "float32"
        model = Engine.load(self.model, device=self.device, dtype=dtype).model
        denoiser: Denoiser
        denoiser = eager = TorchDenoiser(model.unet, model.levels.config.prediction_type)
        if compiled:
            from pivotal.runtime.compiled_denoiser import CompiledDenoiser
            from pivotal.runtime.compiled_unet import CompileOptions

            denoiser = CompiledDenoiser(eager, CompileOptions(cuda_graphs=graphs))
        chosen = method_named(method)
        typed = chosen.options_from({"guidance_scale": GUIDANCE, **options})
        schedule = model.levels.schedule(self.steps)

        def run() -> Tensor:
            found = drive(
                chosen.invert(schedule, given.latents, given.cond, given.null, typed), denoiser
            )
            embeddings: Tensor = found.stored["null_embeddings"]
            return embeddings

        return run

    def decibels(self, embeddings: Tensor) -> float:
        """Of the picture that null embeddings bring back, by one replay in float32."""
        given, engine = self.inputs, self.engine
        schedule = engine.model.levels.schedule(self.steps)
        ask = (given.latents, given.cond, given.null)
        noise = drive(ddim.invert(schedule, *ask, ddim.DDIMOptions()), engine.denoiser).noise
        inverted = Inverted(noise, {"null_embeddings": embeddings.float()})
        replay = null_text.replay(schedule, inverted, given.cond, given.null, GUIDANCE, NoEdit())
        back = drive(replay, engine.denoiser)
        with torch.no_grad():
            return psnr(given.pixels, from_tensor(engine.model.autoencoder.decode(back).cpu())[0])

    @cached_property
    def plain_decibels(self) -> float:
        return self.decibels(self.transcription()())


def cases(ladder: Ladder) -> Iterator[Case]:
    """Cumulative first, then one at a time."""
    fixed = {"inner_steps": ladder.inner_steps, "early_stop": -1.0, "early_stop_growth": 0.0}

    def rung(name: str, make: Callable[[], Callable[[], Tensor]], kind: str = "cumulative",
             needs: str | None = None, eager: Callable[[], Callable[[], Tensor]] | None = None,
             ) -> Case:  # fmt: skip
        whole = name == "plain transcription, a row at a time"
        half = not whole if kind == "cumulative" else "half" in name
        settings = {
            "model": ladder.model, "steps": ladder.steps, "inner_steps": ladder.inner_steps,
            "kind": kind, "dtype": "bfloat16" if half else "float32",
        }  # fmt: skip
        return Case(SUITE, name, lambda: _prepared(ladder, make, eager), settings, kind, needs)

    def plain(**given: bool) -> Callable[[], Callable[[], Tensor]]:
        return lambda: ladder.transcription(**given)

    def absent() -> Callable[[], Tensor]:
        raise WrongResultError("nothing to run")

    parallel = {"iterations": ladder.inner_steps, "direction": "gradient"}
    slow = None if ladder.compiles else "compiling takes minutes; --compile measures it"
    yield rung("plain transcription, a row at a time", plain())
    yield rung("+ half precision (bfloat16)", plain(half=True))
    yield rung("+ fused attention", plain(half=True, fused=True))
    yield rung("+ batched cond and uncond", plain(half=True, fused=True, batched=True))

    def driven(**given: bool) -> Callable[[], Callable[[], Tensor]]:
        return lambda: ladder.ours("null-text", fixed, **given)

    yield rung("+ our driver and guided step", driven())
    yield rung("+ compile", driven(compiled=True), needs=slow, eager=driven())
    yield rung(
        "+ CUDA graphs",
        driven(compiled=True, graphs=True),
        needs=slow if ladder.device.startswith("cuda") else "a CUDA device is needed",
        eager=driven(),
    )
    yield rung("+ Triton kernels", absent, needs="fitting asks for no routes; see suite kernels")
    yield rung("+ time-parallel fit", lambda: ladder.ours("null-text-parallel", parallel))
    yield rung("+ TensorRT", absent, needs="TensorRT answers no gradients, which fitting needs")
    alone = "one at a time"
    yield rung("alone: plain transcription, a row at a time", plain(), alone)
    yield rung("alone: half precision (bfloat16)", plain(half=True), alone)
    yield rung("alone: fused attention", plain(fused=True), alone)
    yield rung("alone: batched cond and uncond", plain(batched=True), alone)
    yield rung("alone: compile", plain(compiled=True), alone, needs=slow, eager=plain())
    yield rung(
        "alone: time-parallel fit",
        lambda: ladder.ours("null-text-parallel", parallel, half=False),
        alone,
    )


def _prepared(
    ladder: Ladder,
    make: Callable[[], Callable[[], Tensor]],
    eager: Callable[[], Callable[[], Tensor]] | None,
) -> Prepared:
    """eager: makes the same work for a rung that compiles."""

    def check(embeddings: Tensor) -> Mapping[str, Any]:
        found = ladder.decibels(embeddings)
        if not found >= ladder.plain_decibels - LOSS:
            raise WrongResultError(
                f"{found:.1f} dB, the plain transcription has {ladder.plain_decibels:.1f}"
            )
        return {"psnr": found, "vae_psnr": ladder.inputs.vae, "plain_psnr": ladder.plain_decibels}

    run = make()
    if eager is None:
        return Prepared(run, check)
    return Prepared(run, check, compile=run, eager=eager())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--inner-steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each rung, at most")
    parser.add_argument("--compile", action="store_true", help="also the rungs that compile")
    parser.add_argument("--only", default="", help="rungs whose name contains this")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    given = parser.parse_args()
    ladder = Ladder(given.model, given.device, given.steps, given.inner_steps, given.compile)
    device = torch.device(given.device)
    path = given.results / Stopwatch(device).name / "ladder.jsonl"
    chosen = [case for case in cases(ladder) if given.only in case.name]
    effort = Effort(given.rounds, min(3, given.rounds), given.seconds)
    command = ["python", "benchmarks/ladder.py", *sys.argv[1:]]
    print(" | ".join(HEADINGS))
    for row in measure(chosen, device, effort, command=command):
        append(path, row)
        print(" | ".join(cells(row)))


if __name__ == "__main__":
    main()
