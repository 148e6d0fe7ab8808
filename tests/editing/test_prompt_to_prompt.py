"""Whole forward passes and whole edits against an independent Prompt-to-Prompt on explicit maps."""

import functools
from dataclasses import dataclass, field

import pytest
import torch

from baselines.alignment import refinement_alignment, replacement_mapper
from baselines.local_blend import LocalBlend
from baselines.prompt_to_prompt import Controls, edit_steps, forward_pass
from baselines.schedule import make_schedule
from pivotal.attention_routes import AttentionRoutes
from pivotal.control import NoEdit
from pivotal.editing.edit import Edit
from pivotal.errors import EditWithoutEffectError
from pivotal.query import Conditioning, Denoise

STEPS, GUIDANCE = 5, 4.0


@dataclass(frozen=True)
class Case:
    """An edit as a wish, and by hand in the terms of the explicit-map reference.

    Positions are tokens (0 is the start token) and steps are counted, so that nothing of ours is
    used to say what is expected. For each target: swaps are spans (source, target); weights and
    windows are by token, `None` being all tokens.
    """

    source: str
    edits: tuple[Edit, ...]
    swaps: tuple[list, ...] | None = None
    refine: bool = False
    weights: tuple[dict, ...] = ()
    windows: tuple[dict, ...] = ()
    self_window: tuple[int, int] = (0, 2)  # 0.4 of 5 steps
    blend: dict = field(default_factory=dict)

    def controls(self, tokenize, size=(12, 12), map_downscale=2):
        source = tokenize(self.source)
        targets = [tokenize(edit.target) for edit in self.edits]
        count, length = len(targets), len(source.ids)
        alpha = torch.zeros(STEPS, count, length, dtype=torch.float64)
        for t in range(count):
            windows = self.windows[t] if self.windows else {None: (0, 4)}  # 0.8 of 5 steps
            for tokens, (first, last) in windows.items():
                chosen = range(length) if tokens is None else tokens
                alpha[:, t, chosen] = 0
                alpha[first:last, t, chosen] = 1
        made = {}
        if self.swaps is not None:
            mappers = [
                replacement_mapper(own(source), own(target), swaps, length, "shifted")
                for target, swaps in zip(targets, self.swaps, strict=True)
            ]
            # Divided in float32 as ours is: a third differs by 1e-8 otherwise.
            made["mapper"] = torch.stack(mappers).float().double()
            # The reference gives a token without a counterpart no attention; ours lets it keep its
            # own. They are the last of the padding, and a closed window says the same.
            alpha = alpha * (made["mapper"].sum(dim=1) > 0)
        elif self.refine:
            pairs = [
                refinement_alignment(own(source), own(target), length, "shifted")
                for target in targets
            ]
            gather, aligned = (torch.stack(column) for column in zip(*pairs, strict=True))
            for t, target in enumerate(targets):
                # Padding beyond the source's goes on with the source's last padding in ours.
                beyond = torch.arange(length) >= length - max(0, source.length - target.length)
                gather[t, beyond], aligned[t, beyond] = length - 1, 1
            made |= {"gather": gather, "gather_alpha": aligned}
        if self.weights or not made:
            made["equalizer"] = torch.ones(count, length, dtype=torch.float64)
            for t, weights in enumerate(self.weights):
                for token, factor in weights.items():
                    made["equalizer"][t, token] = factor
        if self.blend:
            words = {name: torch.zeros(1 + count, length) for name in ("blend", "subtract")}
            for name, rows in words.items():
                for row, tokens in enumerate(self.blend.get(name, ())):
                    rows[row, tokens] = 1
            made["blend"] = LocalBlend(
                words["blend"],
                tuple(-(-side // map_downscale) for side in size),
                subtract_alpha=words["subtract"] if "subtract" in self.blend else None,
                **self.blend.get("options", {}),
            )
        return Controls(
            cross_alpha=alpha,
            self_window=self.self_window,
            self_max_pixels=-(-size[0] // 2) * -(-size[1] // 2),
            **made,
        )


def own(tokens):
    return tokens.ids[: tokens.length]


CAT = "a red cat on the mat"  # a 1, red 2, cat 3, on 4, the 5, mat 6, end 7
DOG = "a red dog on the mat"
CAT_DOG = ((3, 4), (3, 4))
PORCUPINE = "a red porcupine on the mat"  # three tokens, 3 to 5
SOFA = "a red cat on the leather sofa"

CASES = {
    "swap": Case(CAT, (Edit(DOG),), swaps=([CAT_DOG],)),
    "swap to more tokens": Case(CAT, (Edit(PORCUPINE),), swaps=([((3, 4), (3, 6))],)),
    "swap to fewer tokens": Case(PORCUPINE, (Edit(DOG),), swaps=([((3, 6), (3, 4))],)),
    "swap of two words, two tokens to three": Case(
        "a red tabby, on the mat",
        (Edit("a blue porcupine, on the mat"),),
        swaps=([((2, 3), (2, 3)), ((3, 5), (3, 6))],),
    ),
    "refinement adding words": Case(
        "a cat on the mat", (Edit("a fluffy cat on the red mat"),), refine=True
    ),
    "refinement dropping words": Case(
        "a fluffy cat on the red mat", (Edit("a cat on the mat"),), refine=True
    ),
    "refinement rewording": Case(CAT, (Edit("painting of a cat, on the sofa"),), refine=True),
    "re-weighting": Case(
        CAT,
        (Edit(CAT, weights={"red": 2.5, "on the": 0.5}),),
        weights=({2: 2.5, 4: 0.5, 5: 0.5},),
    ),
    "re-weighting below zero": Case(
        CAT, (Edit(CAT, weights={"cat": -1.5, "mat": 0}),), weights=({3: -1.5, 6: 0},)
    ),
    "re-weighting of all tokens of a word": Case(
        PORCUPINE, (Edit(PORCUPINE, weights={"Porcupine": 2}),), weights=({3: 2, 4: 2, 5: 2},)
    ),
    "re-weighting on a swap": Case(
        CAT,
        (Edit(PORCUPINE, weights={"porcupine": 2, "red": -0.5}),),
        swaps=([((3, 4), (3, 6))],),
        weights=({3: 2, 4: 2, 5: 2, 2: -0.5},),
    ),
    "re-weighting on a refinement": Case(
        "a cat on the mat",
        (Edit("a fluffy cat on the red mat", weights={"fluffy": 3, "mat": -1}),),
        refine=True,
        weights=({2: 3, 3: 3, 8: -1},),
    ),
    "windows of words": Case(
        CAT,
        (
            Edit(
                DOG,
                cross_replace_steps={"default": (0.2, 0.8), "dog": 0.2, "the mat": (0.4, 1)},
                weights={"mat": 2},
            ),
        ),
        swaps=([CAT_DOG],),
        weights=({6: 2},),
        windows=({None: (1, 4), (3,): (0, 1), (5, 6): (2, 5)},),
    ),
    "self-attention alone": Case(
        CAT,
        (Edit(DOG, cross_replace_steps=0, self_replace_steps=(0.2, 0.8)),),
        swaps=([CAT_DOG],),
        windows=({None: (0, 0)},),
        self_window=(1, 4),
    ),
    "cross-attention alone": Case(
        CAT,
        (Edit(DOG, cross_replace_steps=(0.2, 1), self_replace_steps=0),),
        swaps=([CAT_DOG],),
        windows=({None: (1, 5)},),
        self_window=(0, 0),
    ),
    "blend": Case(
        CAT,
        (Edit(DOG, blend=("cat", "dog"), blend_threshold=0.6),),
        swaps=([CAT_DOG],),
        blend={"blend": ([3], [3]), "options": {"threshold": 0.6}},
    ),
    "blend, bounded late and sharply": Case(
        CAT,
        (Edit(PORCUPINE, blend="auto", blend_threshold=0.7, blend_start=0.6),),
        swaps=([((3, 4), (3, 6))],),
        blend={"blend": ([3], [3, 4, 5]), "options": {"threshold": 0.7, "start": 0.6}},
    ),
    "blend less subtracted words": Case(
        CAT,
        (
            Edit(
                SOFA,
                blend=("cat", "red"),
                subtract=("mat", "sofa"),
                blend_threshold=0.6,
                subtract_threshold=0.8,
            ),
        ),
        refine=True,
        blend={
            "blend": ([2, 3], [2, 3]),
            "subtract": ([6], [8]),
            "options": {"threshold": 0.6, "subtract_threshold": 0.8},
        },
    ),
    "blend on a re-weighting": Case(
        CAT,
        (Edit(CAT, weights={"cat": 3}, blend=("mat",), blend_threshold=0.8),),
        weights=({3: 3},),
        blend={"blend": ([6], [6]), "options": {"threshold": 0.8}},
    ),
    "three swaps, each with weights and windows of its own": Case(
        CAT,
        (
            Edit(DOG, cross_replace_steps=0.4),
            Edit(PORCUPINE, weights={"mat": -1}),
            Edit(CAT, kind="swap", weights={"red": 2}, cross_replace_steps={"red": (0.4, 0.6)}),
        ),
        swaps=([CAT_DOG], [((3, 4), (3, 6))], []),
        weights=({}, {8: -1}, {2: 2}),
        windows=({None: (0, 2)}, {None: (0, 4)}, {None: (0, 4), (2,): (2, 3)}),
    ),
    "two refinements, blended": Case(
        CAT,
        (
            Edit(SOFA, blend=("cat",), blend_threshold=0.7),
            Edit("a cat", blend=("cat",), blend_threshold=0.7, weights={"cat": 2}),
        ),
        refine=True,
        weights=({}, {2: 2}),
        blend={"blend": ([3], [3], [2]), "options": {"threshold": 0.7}},
    ),
}
BLENDED = [name for name, case in CASES.items() if case.blend]


@pytest.fixture
def reference(network, scheduler_config, tokenize, embed, nulls):
    """The explicit-map edit's records, step by step."""

    def run(case, noise, dtype=torch.float64, map_downscale=2):
        prompts = [case.source, *[edit.target for edit in case.edits]]
        cond = torch.stack([embed(tokenize(prompt)) for prompt in prompts])
        return list(
            edit_steps(
                network(dtype),
                make_schedule(scheduler_config, STEPS),
                noise.to(dtype),
                cond.to(dtype),
                nulls.to(dtype),
                case.controls(tokenize, noise.shape[-2:], map_downscale),
                GUIDANCE,
            )
        )

    return run


@pytest.fixture(scope="module")
def plain(sampled, routed, tokenize, noise):
    """A prompt's own picture: latents [C, h, w] float64."""
    return functools.cache(lambda prompt: sampled(routed(), [tokenize(prompt)], noise, NoEdit())[0])


def largest(one, other):
    return (one - other).abs().max().item()


@pytest.mark.parametrize("name", CASES)
def test_a_whole_edit_is_the_explicit_map_reference_in_float64(
    name, edited, routed, reference, plain, noise
):
    case = CASES[name]
    latents, acting = edited(routed(), case.source, case.edits, noise)
    expected = reference(case, noise)[-1]
    assert largest(latents, expected.latents) < 1e-10
    if case.blend:
        assert torch.equal(acting.masks, expected.mask[1:, 0])
        for mask in acting.masks:  # or the case would show little
            assert 0.02 < mask.double().mean() < 0.98
    assert largest(latents[0], plain(case.source)) < 1e-10
    for row, edit in enumerate(case.edits, start=1):
        assert largest(latents[row], plain(edit.target)) > 1e-3
        assert largest(latents[row], latents[0]) > 1e-3


SINGLE = ("re-weighting on a swap", "windows of words", "two refinements, blended")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SINGLE else pytest.mark.slow) for name in CASES]
)
def test_a_whole_edit_is_the_explicit_map_reference_in_float32(
    name, edited, routed, reference, noise
):
    case = CASES[name]
    latents, acting = edited(routed(torch.float32), case.source, case.edits, noise.float())
    expected = reference(case, noise, torch.float32)[-1]
    assert latents.dtype == torch.float32
    if case.blend:
        assert torch.equal(acting.masks, expected.mask[1:, 0])
    assert largest(latents, expected.latents) < 1e-5


@pytest.mark.parametrize("name", ["re-weighting on a swap", "blend less subtracted words"])
def test_a_whole_edit_is_the_same_with_explicit_maps_in_the_kernel(name, edited, routed, noise):
    case = CASES[name]
    fused, _ = edited(routed(), case.source, case.edits, noise)
    explicit, _ = edited(routed(impl="reference"), case.source, case.edits, noise)
    assert largest(fused, explicit) < 1e-10


@pytest.mark.parametrize(("size", "map_downscale"), [((12, 20), 2), ((10, 14), 4)])
@pytest.mark.parametrize("name", ["re-weighting on a swap", *BLENDED[:1], *BLENDED[2:3]])
def test_any_shape_of_latents_and_any_size_of_maps(
    name, size, map_downscale, edited, routed, reference, noise
):
    case = CASES[name]
    noise = torch.cat([noise, noise.flip(2)], dim=3)[..., : size[0], : size[1]].contiguous()
    denoiser = routed(word_map_downscale=map_downscale)
    latents, acting = edited(denoiser, case.source, case.edits, noise)
    expected = reference(case, noise, map_downscale=map_downscale)[-1]
    assert latents.shape[-2:] == size
    assert largest(latents, expected.latents) < 1e-10
    if case.blend:
        assert torch.equal(acting.masks, expected.mask[1:, 0])


@pytest.mark.parametrize(
    "name",
    [
        "swap to fewer tokens",
        "refinement rewording",
        "re-weighting below zero",
        "re-weighting on a refinement",
        "windows of words",
        "three swaps, each with weights and windows of its own",
    ],
)
def test_one_forward_pass_is_the_explicit_map_reference(
    name, control, routed, network, schedule, scheduler_config, tokenize, embed, nulls, noise
):
    case, step, dtype = CASES[name], 1, torch.float32
    rows = 1 + len(case.edits)
    prompts = [case.source, *[edit.target for edit in case.edits]]
    cond = torch.stack([embed(tokenize(prompt)) for prompt in prompts]).to(dtype)
    # Rows have drifted apart by the later steps of an edit.
    latents = torch.cat([noise.roll(row, dims=-1) for row in range(rows)]).to(dtype)
    expected = forward_pass(
        network(dtype),
        make_schedule(scheduler_config, STEPS),
        latents,
        step,
        cond,
        nulls[step].to(dtype),
        case.controls(tokenize),
    )
    routes = control(case.source, case.edits).routes(step)
    answer = routed(dtype).answer(
        Denoise.at(
            torch.cat([latents, latents]),
            list(schedule.descending())[step][1],
            Conditioning(torch.cat([nulls[step].to(dtype).expand(rows, -1, -1), cond])),
            AttentionRoutes.cat([routes.identity_like(rows), routes]),
        )
    )
    assert largest(answer.eps, expected) < 1e-5


def test_word_maps_are_the_references_summed_over_the_steps(edited, routed, reference, noise):
    case = CASES["two refinements, blended"]
    _, acting = edited(routed(), case.source, case.edits, noise)
    expected = reference(case, noise)[-1].word_maps
    for target in (1, 2):
        ours = torch.stack([acting.maps[0, 2 * (target - 1)], acting.maps[target, 0]])
        assert largest(ours, expected[[0, target]]) < 1e-10


def test_the_identity_edit_changes_nothing(edited, routed, sampled, tokenize, noise):
    """Target is source, whatever the kind: all rows are the plain sample."""
    denoiser = routed()
    edits = [Edit(CAT), *[Edit(CAT, kind=kind) for kind in ("swap", "refine", "reweight")]]
    edits.append(Edit(CAT, weights={"cat": 1.0}))
    plain = sampled(denoiser, [tokenize(CAT)], noise, NoEdit())
    latents, _ = edited(denoiser, CAT, edits, noise)
    assert largest(latents, plain.expand_as(latents)) < 1e-10
    single = sampled(routed(torch.float32), [tokenize(CAT)], noise.float(), NoEdit())
    latents, _ = edited(routed(torch.float32), CAT, edits[1:2], noise.float())
    assert largest(latents, single.expand_as(latents)) < 1e-5


def test_an_edit_among_others_equals_it_alone(edited, routed, noise):
    """Kinds mixed, each with its own windows and masks, and different numbers of word columns."""
    denoiser = routed()
    edits = [
        Edit(DOG, blend=("cat", "dog"), blend_threshold=0.6),
        Edit(SOFA, self_replace_steps=0.8, weights={"leather": 2}),
        Edit(CAT, weights={"red": -1}, blend=("mat",), subtract=("cat",), blend_threshold=0.7),
        Edit(PORCUPINE, cross_replace_steps=0.4, self_replace_steps=0),
    ]
    together, acting = edited(denoiser, CAT, edits, noise)
    for target, edit in enumerate(edits, start=1):
        alone, acting_alone = edited(denoiser, CAT, [edit], noise)
        assert largest(together[target], alone[1]) < 1e-10
        assert largest(together[0], alone[0]) < 1e-10
        if acting_alone.masks is not None:
            assert torch.equal(acting.masks[target - 1], acting_alone.masks[0])
        else:
            assert acting.masks[target - 1].all()


def test_without_guidance_only_conditional_rows_are_asked(edited, routed, noise):
    """At guidance 1 an edit is the same as at a guidance of nearly 1, at half the cost."""
    denoiser = routed()
    results, counts = [], [denoiser.rows_forward]
    for guidance_scale in (1.0, 1.0 + 1e-9):
        latents, _ = edited(denoiser, CAT, [Edit(DOG)], noise, guidance_scale=guidance_scale)
        results.append(latents)
        counts.append(denoiser.rows_forward)
    assert largest(*results) < 1e-6
    assert (counts[1] - counts[0], counts[2] - counts[1]) == (2 * STEPS, 4 * STEPS)


class Recorded:
    """A control that keeps the latents each step ended with, before and after the control."""

    def __init__(self, control):
        self.control = control
        self.before, self.after = [], []

    def routes(self, step):
        return self.control.routes(step)

    def after_step(self, step, latents, word_maps):
        self.before.append(latents)
        self.after.append(self.control.after_step(step, latents, word_maps))
        return self.after[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_users_mask_leaves_the_outside_exactly_at_the_source(
    sampled, control, routed, tokenize, noise, dtype
):
    mask = torch.zeros(48, 48, dtype=torch.bool)  # four pixels a latent
    mask[9:30, 12:41] = True
    inside = torch.zeros(12, 12, dtype=torch.bool)
    inside[2:8, 3:11] = True
    prompts = [tokenize(p) for p in (CAT, DOG, PORCUPINE)]
    acting = Recorded(control(CAT, [Edit(DOG, mask=mask), Edit(PORCUPINE)]))
    latents = sampled(routed(dtype), prompts, noise.to(dtype), acting)
    assert torch.equal(acting.control.masks[0], inside)
    assert torch.equal(latents[1][:, ~inside], latents[0][:, ~inside])
    assert (latents[1] - latents[0]).abs().amax(0)[inside].min() > 0
    assert (latents[2] - latents[0]).abs().amax(0)[~inside].min() > 0
    for before, after in zip(acting.before, acting.after, strict=True):  # from the first step on
        assert torch.equal(after[1][:, ~inside], before[0][:, ~inside])
        assert torch.equal(after[1][:, inside], before[1][:, inside])
        assert torch.equal(after[[0, 2]], before[[0, 2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_blend_leaves_the_outside_of_its_mask_exactly_at_the_source(
    sampled, control, routed, tokenize, noise, dtype
):
    edit = Edit(DOG, blend=("cat", "dog"), blend_threshold=0.7, blend_start=0.4)
    acting = Recorded(control(CAT, [edit]))
    latents = sampled(routed(dtype), [tokenize(CAT), tokenize(DOG)], noise.to(dtype), acting)
    mask = acting.control.masks[0]
    assert 0.02 < mask.double().mean() < 0.98
    assert torch.equal(latents[1][:, ~mask], latents[0][:, ~mask])
    assert (latents[1] - latents[0]).abs().amax(0)[mask].min() > 0
    untouched = [torch.equal(*pair) for pair in zip(acting.before, acting.after, strict=True)]
    assert untouched == [True, True, False, False, False]


def test_a_users_mask_and_a_blend_meet(edited, routed, noise):
    denoiser = routed()
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[:, :7] = True
    blend = {"blend": ("cat", "dog"), "blend_threshold": 0.7}
    _, free = edited(denoiser, CAT, [Edit(DOG, **blend)], noise)
    latents, both = edited(denoiser, CAT, [Edit(DOG, mask=mask, **blend)], noise)
    assert not (both.masks[0] & ~mask).any()
    assert (both.masks[0] != mask).any()
    assert (free.masks[0] & ~mask).any()
    outside = ~both.masks[0]
    assert torch.equal(latents[1][:, outside], latents[0][:, outside])


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (Edit(DOG, cross_replace_steps=0, self_replace_steps=0), "widen cross_replace_steps"),
        (Edit(DOG, cross_replace_steps=0.1, self_replace_steps=(0.5, 0.5)), "no layer at any of 5"),
        (Edit(CAT, weights={"cat": 2}, cross_replace_steps=0), "weights"),
        (Edit(CAT, weights={"cat": 2}, cross_replace_steps={"cat": 0.1}), "weights"),
        (
            Edit(CAT, weights={"cat": 2, "red": 2}, cross_replace_steps={"cat": 0}),
            "weights",
        ),
        (Edit(DOG, mask=torch.zeros(64, 64, dtype=torch.bool)), "mask"),
        (Edit(DOG, blend=("cat",), blend_start=1), "blend_start"),
        (Edit(CAT, blend="auto"), "blend"),
    ],
)
def test_an_edit_without_effect_is_refused_before_anything_runs(edited, routed, noise, edit, named):
    denoiser = routed()
    before = denoiser.rows_forward
    with pytest.raises(EditWithoutEffectError, match=named):
        edited(denoiser, CAT, [edit], noise)
    with pytest.raises(EditWithoutEffectError, match=named):
        edited(denoiser, CAT, [Edit(DOG), edit], noise)
    assert denoiser.rows_forward == before


@pytest.mark.parametrize(
    ("edit", "word", "has"),
    [
        (Edit(CAT, weights={"dog": 2}), "dog", "'red', 'cat'"),
        (Edit(DOG, weights={"cat": 2}), "cat", "'red', 'dog'"),
        (Edit(DOG, weights={"ca": 2}), "ca", "'red', 'dog'"),
        (Edit(DOG, cross_replace_steps={"bird": 0.5}), "bird", "'on', 'the', 'mat'"),
        (Edit(DOG, blend=("bird",)), "bird", "a red cat on the mat"),
        (Edit(DOG, blend=("dog",), subtract=("sofa",)), "sofa", "a red dog on the mat"),
    ],
)
def test_an_unknown_word_is_named_beside_the_words_there_are(control, edit, word, has):
    with pytest.raises(ValueError, match=f"'{word}'.*{has}"):
        control(CAT, [edit])


def test_no_edit_at_all_is_refused(control):
    with pytest.raises(ValueError, match="at least one target"):
        control(CAT, [])


def test_what_was_touched_is_counted(edited, routed, layers, noise):
    mask = torch.ones(12, 12, dtype=torch.bool)
    edits = [
        Edit(DOG, cross_replace_steps={"default": (0.2, 0.6), "dog": (0.4, 1)}),
        Edit(DOG, cross_replace_steps=0, self_replace_steps=(0.2, 0.8)),
        Edit(DOG, self_replace_steps=0, blend="auto", blend_start=0.6, mask=mask),
    ]
    _, acting = edited(routed(), CAT, edits, noise)
    small = sum(downscale >= 2 for downscale in layers.self_downscales)
    assert 0 < small < len(layers.self_downscales)
    counts = [
        {name: (count.layers, count.steps) for name, count in acting.touched(target).items()}
        for target in range(3)
    ]
    every = len(layers.cross_downscales)
    assert counts == [
        {"cross": (every, 4), "self": (small, 2)},
        {"cross": (0, 0), "self": (small, 3)},
        {"cross": (every, 4), "self": (0, 0), "blend": (1, 2), "mask": (1, 5)},
    ]


def test_heat_maps_are_of_the_words_that_an_edit_is_about(edited, routed, noise):
    edits = [Edit(DOG), Edit(CAT, weights={"red": 2, "on the": 1.5}), Edit("a cat on the mat")]
    _, acting = edited(routed(), CAT, edits, noise)
    assert list(acting.heat_maps(0)) == ["dog"]
    assert list(acting.heat_maps(1)) == ["red", "on the"]
    assert list(acting.heat_maps(2)) == ["a", "cat", "on", "the", "mat"]
    for target in range(3):
        for heat in acting.heat_maps(target).values():
            assert heat.shape == (6, 6)
            assert heat.min() > 0
