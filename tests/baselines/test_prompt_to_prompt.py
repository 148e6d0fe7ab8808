import pytest
import torch

from baselines.attention import explicit_copy
from baselines.local_blend import LocalBlend, blend_mask, region
from baselines.null_text import reconstruct
from baselines.prompt_to_prompt import (
    Controls,
    Editor,
    edit,
    edit_cross,
    edit_steps,
    forward_pass,
    predict_rows,
)
from baselines.schedule import make_schedule

STEPS, L = 5, 11


@pytest.fixture
def schedule(config):
    return make_schedule(config, STEPS)


@pytest.fixture
def prompts(texts):
    """Source and two targets that differ from it in places, `[3, L, D]`."""
    source = texts[0]
    return torch.stack([source, source + 0.3 * texts[1], source + 0.3 * texts[2]])


@pytest.fixture
def null(texts):
    return texts[0] + 0.2 * texts[3]


def identity_controls(kind, targets):
    """The edit of each kind that changes nothing when target and source are one prompt."""
    one = torch.ones(targets, L)
    window = torch.zeros(STEPS, targets, L)
    window[:3] = 1
    window[:2, :, 4] = 0
    common = {"cross_alpha": window, "self_window": (0, 3), "self_max_pixels": 64}
    if kind == "swap":
        return Controls(mapper=torch.eye(L).repeat(targets, 1, 1), **common)
    if kind == "refine":
        index = torch.arange(L).repeat(targets, 1)
        return Controls(gather=index, gather_alpha=one, **common)
    return Controls(equalizer=one, **common)


@pytest.mark.parametrize("kind", ["swap", "refine", "reweight"])
def test_an_identity_edit_returns_the_source(unet, schedule, noise, prompts, null, kind):
    same = prompts[:1].expand(3, -1, -1)
    out = edit(unet, schedule, noise, same, null, identity_controls(kind, 2))
    plain = reconstruct(unet, schedule, noise, prompts[:1], null[None])
    torch.testing.assert_close(out, plain.expand(3, -1, -1, -1), rtol=1e-8, atol=1e-8)


def test_without_controls_every_row_is_plainly_sampled(unet, schedule, noise, prompts, null):
    nulls = torch.stack([null + 0.01 * i for i in range(STEPS)])
    out = edit(unet, schedule, noise, prompts, nulls, Controls())
    for row in range(3):
        plain = reconstruct(unet, schedule, noise, prompts[row : row + 1], list(nulls[:, None]))
        torch.testing.assert_close(out[row : row + 1], plain, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["swap", "refine", "reweight"])
def test_edits_act_on_the_conditional_targets_only(unet, schedule, noise, prompts, null, kind):
    latents = noise.expand(3, -1, -1, -1)
    controls = identity_controls(kind, 2)
    plain = forward_pass(unet, schedule, latents, 0, prompts, null, Controls())
    edited = forward_pass(unet, schedule, latents, 0, prompts, null, controls)
    after = forward_pass(unet, schedule, latents, 3, prompts, null, controls)
    after_plain = forward_pass(unet, schedule, latents, 3, prompts, null, Controls())
    torch.testing.assert_close(edited[:4], plain[:4], rtol=1e-10, atol=1e-10)
    assert (edited[4] - plain[4]).abs().max() > 1e-3
    assert (edited[5] - plain[5]).abs().max() > 1e-3
    assert torch.equal(after, after_plain)  # every window has closed


def test_cross_edits_are_the_papers_formulas_entry_by_entry(generator):
    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    source, targets = rand(2, 3, L), rand(2, 2, 3, L)
    mapper, aligned, scale, alpha = rand(2, L, L), rand(2, L), rand(2, L), rand(STEPS, 2, L)
    index = torch.randint(0, L, (2, L), generator=generator)
    swap = edit_cross(
        source, targets, Controls(mapper=mapper, equalizer=scale, cross_alpha=alpha), 3
    )
    refine = edit_cross(
        source,
        targets,
        Controls(gather=index, gather_alpha=aligned, equalizer=scale, cross_alpha=alpha),
        3,
    )
    alone = edit_cross(source, targets, Controls(equalizer=scale, cross_alpha=alpha), 3)
    for t, h, p, n in [(0, 0, 0, 0), (1, 0, 2, 5), (0, 1, 1, 10), (1, 1, 2, 7)]:
        own, a, c = targets[t, h, p, n], alpha[3, t, n], scale[t, n]
        mapped = sum(source[h, p, m] * mapper[t, m, n] for m in range(L))
        torch.testing.assert_close(swap[t, h, p, n], c * a * mapped + (1 - a) * own)
        taken = aligned[t, n] * source[h, p, index[t, n]] + (1 - aligned[t, n]) * own
        torch.testing.assert_close(refine[t, h, p, n], c * a * taken + (1 - a) * own)
        torch.testing.assert_close(alone[t, h, p, n], c * a * source[h, p, n] + (1 - a) * own)


def test_self_injection_keeps_to_its_window_and_its_layers(unet, schedule, noise, prompts, null):
    latents = noise.expand(3, -1, -1, -1)

    def at(step, limit):
        controls = Controls(self_window=(1, 3), self_max_pixels=limit)
        return forward_pass(unet, schedule, latents, step, prompts, null, controls)

    plain = [
        forward_pass(unet, schedule, latents, step, prompts, null, Controls()) for step in range(4)
    ]
    assert torch.equal(at(0, 256), plain[0])
    assert torch.equal(at(3, 256), plain[3])
    assert torch.equal(at(1, 63), plain[1])
    for step in (1, 2):
        small, all_layers = at(step, 64), at(step, 256)
        assert torch.equal(small[:4], plain[step][:4])
        assert (small[4:] - plain[step][4:]).abs().max() > 1e-4
        assert (small[4:] - all_layers[4:]).abs().max() > 1e-4


def word_rows(*tokens):
    alpha = torch.zeros(3, L)
    alpha[:, list(tokens)] = 1
    return alpha


def test_local_blend_leaves_the_outside_of_the_mask_at_the_source(
    unet, schedule, noise, prompts, null
):
    blend = LocalBlend(word_rows(4, 5), (16, 16), threshold=0.8)
    controls = Controls(equalizer=torch.full((2, L), 1.5), blend=blend)
    records = list(edit_steps(unet, schedule, noise, prompts, null, controls))
    assert records[0].mask is None  # int(0.2 * 5) is 1
    assert (records[0].latents[1] - records[0].latents[0]).abs().min() > 0
    for record in records[1:]:
        mask = record.mask
        assert 0.02 < mask.double().mean() < 0.98
        assert (mask | ~mask[:1]).all()  # the source's own region is in everyone's
        difference = (record.latents - record.latents[:1]).abs()
        outside = (~mask).expand_as(difference)
        assert difference[outside].max() == 0
        assert difference[1:][mask[1:].expand_as(difference[1:])].min() > 0
    source = reconstruct(unet, schedule, noise, prompts[:1], null[None])
    torch.testing.assert_close(records[-1].latents[:1], source, rtol=1e-8, atol=1e-8)


def test_word_maps_are_of_the_edited_attention_and_add_up(unet, schedule, noise, prompts, null):
    blend = LocalBlend(word_rows(4), (8, 8), start=1.0)
    latents = noise.expand(3, -1, -1, -1)
    weights = torch.ones(2, L)
    weights[:, 4] = 3.0
    records = {
        name: next(
            edit_steps(
                unet, schedule, latents, prompts, null, Controls(equalizer=scale, blend=blend)
            )
        )
        for name, scale in {"kept": torch.ones(2, L), "tripled": weights}.items()
    }
    kept, tripled = records["kept"].word_maps, records["tripled"].word_maps
    torch.testing.assert_close(kept[0], tripled[0])
    assert (tripled[1:] / kept[1:]).mean() > 1.5
    editor = Editor(Controls(blend=blend))
    with torch.no_grad():
        predict_rows(explicit_copy(unet, editor), editor, schedule, 0, latents, prompts, null)
    assert len(editor.kept) == 2  # down and mid at 8 x 8
    by_hand = sum(maps[0, :, :, 4].mean(0) for maps in editor.kept) / 2
    torch.testing.assert_close(kept[0].flatten(), by_hand)


def test_subtracted_words_are_cut_out(unet, schedule, noise, prompts, null):
    shape = (16, 16)
    cut = LocalBlend(
        word_rows(4, 5),
        shape,
        threshold=0.3,
        subtract_alpha=word_rows(7),
        subtract_threshold=0.6,
    )
    maps = torch.rand(3, 4, 256, L, generator=torch.Generator().manual_seed(3)).double()
    mask = blend_mask(maps, cut, (32, 32))
    inside = region(maps, word_rows(4, 5), 0.3, shape, (32, 32), pool=True)
    taken = region(maps, word_rows(7), 0.6, shape, (32, 32), pool=False)
    assert torch.equal(mask, inside & ~taken)
    assert mask.shape == (3, 1, 32, 32)
    assert (mask != inside).any()
    assert torch.equal(mask[..., ::2, ::2], mask[..., 1::2, 1::2])  # nearest


def test_contradictions_raise(unet, schedule, noise, prompts, null):
    with pytest.raises(ValueError, match="not both"):
        Controls(mapper=torch.eye(L)[None], gather=torch.zeros(1, L), gather_alpha=torch.ones(1, L))
    with pytest.raises(ValueError, match="no cross-attention layer"):
        edit(unet, schedule, noise, prompts, null, Controls(blend=LocalBlend(word_rows(4), (5, 5))))
