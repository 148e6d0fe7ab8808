import itertools

import pytest
import torch

from pivotal.control import NoEdit
from pivotal.inversion import ddim, direct
from pivotal.inversion.pivots import KeptOnPivots

STEPS = 4


def transcription(schedule, latents, source, target, null, scale):
    """Algorithm 1 of arXiv:2310.01506: stored differences, added to the source alone.

    source, target, null: functions (z, t) -> eps. Returns the source's and the target's latents.
    """
    levels = schedule.levels

    def step(z, eps, start, end):
        x0 = (z - (1 - start.alpha_bar) ** 0.5 * eps) / start.alpha_bar**0.5
        return end.alpha_bar**0.5 * x0 + (1 - end.alpha_bar) ** 0.5 * eps

    def guided(z, t, prompt):
        uncond = null(z, t)
        return uncond + scale * (prompt(z, t) - uncond)

    pivots = [latents]
    for low, high in itertools.pairwise(levels):
        pivots.append(step(pivots[-1], source(pivots[-1], high.timestep), low, high))
    differences, z = [], pivots[-1]
    for i in reversed(range(STEPS)):
        high, low = levels[i + 1], levels[i]
        reached = step(z, guided(z, high.timestep, source), high, low)
        differences.append(pivots[i] - reached)
        z = reached + differences[-1]
    from_source = from_target = pivots[-1]
    for i, difference in zip(reversed(range(STEPS)), differences, strict=True):
        high, low = levels[i + 1], levels[i]
        from_source = step(from_source, guided(from_source, high.timestep, source), high, low)
        from_source = from_source + difference
        from_target = step(from_target, guided(from_target, high.timestep, target), high, low)
    return from_source, from_target


class FirstIsSource(NoEdit):
    def sources(self, rows):
        return torch.zeros(rows, dtype=torch.int64)


def test_both_rows_are_the_papers(
    torch_denoiser, plain_unet, gentle, case, there, back, text, some
):
    two, schedule, scale = case(2), gentle(STEPS), 3.0
    one, options = some(two, [0]), direct.DirectOptions()
    inverted = there(direct, torch_denoiser(), schedule, one, options)
    null = some(two, [0, 0])[2]
    ours = back(
        direct,
        torch_denoiser(),
        schedule,
        inverted.expand(2),
        (None, two[1], null),
        scale,
        options,
        FirstIsSource(),
    )
    unet = plain_unet()
    prompts = [two[1].select(torch.tensor([row])) for row in range(2)]
    theirs = transcription(
        schedule,
        one[0],
        text(unet, prompts[0]),
        text(unet, prompts[1]),
        text(unet, one[2]),
        scale,
    )
    torch.testing.assert_close(ours, torch.cat(theirs), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 4.0, 7.5])
def test_the_source_comes_back_exactly_at_any_guidance(
    torch_denoiser, gentle, case, there, back, scale
):
    two, schedule, options = case(2), gentle(STEPS), direct.DirectOptions()
    inverted = there(direct, torch_denoiser(), schedule, two, options)
    assert torch.equal(
        back(direct, torch_denoiser(), schedule, inverted, two, scale, options), two[0]
    )


def test_its_pivots_are_ddims_noisiest_first(torch_denoiser, gentle, case, there):
    one, schedule = case(), gentle(STEPS)
    inverted = there(direct, torch_denoiser(), schedule, one, direct.DirectOptions(2.0))
    noise = there(ddim, torch_denoiser(), schedule, one, ddim.DDIMOptions(2.0)).noise
    assert torch.equal(inverted.noise, noise)
    assert torch.equal(inverted.stored["pivots"][:, 0], noise)
    assert torch.equal(inverted.stored["pivots"][:, -1], one[0])


def test_an_edit_sees_the_source_on_its_pivot(latents):
    pivots, moved = latents(3)[None].expand(2, -1, -1, -1, -1), latents(2, seed=5)
    seen = []

    class Watching(FirstIsSource):
        def after_step(self, step, latents, word_maps):
            seen.append(latents)
            return latents

    KeptOnPivots(Watching(), pivots).after_step(1, moved, None)
    assert torch.equal(seen[0][0], pivots[0, 2])
    assert torch.equal(seen[0][1], moved[1])
