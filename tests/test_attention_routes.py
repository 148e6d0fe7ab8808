from dataclasses import fields, replace

import pytest
import torch

from pivotal.attention_routes import AttentionRoutes

ROWS, LENGTH, COLUMNS, SELF, CROSS = 5, 7, 2, 3, 4


def identity(rows=ROWS, columns=COLUMNS):
    return AttentionRoutes.identity(rows, LENGTH, columns, SELF, CROSS)


def random_routes(rows, columns=COLUMNS, *, seed=0):
    """Arbitrary donors and numbers: every row may borrow from every other."""
    generator = torch.Generator().manual_seed(seed)

    def rows_of(*shape):
        return torch.randint(rows, shape, generator=generator)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return AttentionRoutes(
        self_queries=rows_of(SELF, rows),
        self_keys=rows_of(SELF, rows),
        self_values=rows_of(SELF, rows),
        donors=rows_of(rows),
        cross_gate=normal(CROSS, rows),
        mix=normal(rows, LENGTH, LENGTH),
        keep=normal(rows, LENGTH),
        words=normal(rows, LENGTH, columns),
    )


def assert_equal(first, second):
    for field in fields(AttentionRoutes):
        assert torch.equal(getattr(first, field.name), getattr(second, field.name)), field.name


def test_in_the_identity_every_row_is_its_own_donor():
    routes = identity()
    own = torch.arange(ROWS)
    for name in ("self_queries", "self_keys", "self_values"):
        assert torch.equal(getattr(routes, name), own.expand(SELF, ROWS))
    assert torch.equal(routes.donors, own)
    assert routes.cross_gate.eq(0).all()
    assert routes.mix.eq(0).all()
    assert routes.keep.eq(1).all()
    assert routes.words.eq(0).all()
    assert (routes.rows, routes.columns) == (ROWS, COLUMNS)
    assert routes.ties() == [[row] for row in range(ROWS)]


def test_identity_like_has_the_same_capacity():
    assert_equal(random_routes(3).identity_like(ROWS), identity())


def test_the_identity_changes_nothing(torch_denoiser, latents, prompts):
    unet = torch_denoiser().unet
    z, text, asked = latents(2), prompts(2).hidden_states, torch.tensor([300.0, 700.0])
    routes = AttentionRoutes.identity(2, LENGTH, 1, len(unet.self_layers), len(unet.cross_layers))
    with torch.no_grad():
        plain, no_maps = unet(z, asked, text)
        routed, maps = unet(z, asked, text, routes=routes)
    assert no_maps is None
    assert maps.eq(0).all()
    torch.testing.assert_close(routed, plain, rtol=1e-12, atol=1e-12)


def test_cat_and_select_are_inverse():
    parts = [random_routes(rows, seed=rows) for rows in (2, 1, 4)]
    joined = AttentionRoutes.cat(parts)
    assert joined.rows == 7
    start = 0
    for part in parts:
        rows = torch.arange(start, start + part.rows)
        assert_equal(joined.select(rows), part)
        start += part.rows


def test_rows_may_be_selected_in_another_order():
    routes = random_routes(5)
    order = torch.tensor([3, 0, 4, 2, 1])
    assert_equal(routes.select(order).select(order.argsort()), routes)


def test_cat_appends_empty_word_columns():
    joined = AttentionRoutes.cat([random_routes(2, columns=1), random_routes(3, columns=4)])
    assert joined.columns == 4
    assert joined.words[:2, :, 1:].eq(0).all()
    assert torch.equal(joined.words[2:], random_routes(3, columns=4).words)


def test_columns_do_not_shrink():
    with pytest.raises(ValueError, match="4 word columns do not fit into 1"):
        random_routes(2, columns=4).with_columns(1)


def test_a_row_is_not_selected_without_its_donor():
    routes = identity()
    routes.donors[3] = 1
    with pytest.raises(ValueError, match="apart from their donors"):
        routes.select(torch.tensor([3]))
    assert routes.select(torch.tensor([3, 1])).donors.tolist() == [1, 1]


@pytest.mark.parametrize("name", ["self_queries", "self_keys", "self_values", "donors"])
def test_every_kind_of_borrowing_ties(name):
    routes = identity()
    getattr(routes, name)[..., 4] = 2
    assert routes.ties() == [[0], [1], [2, 4], [3]]


def test_ties_are_connected_components_in_row_order():
    routes = identity(8)
    routes.self_queries[0, 6] = 3  # 6 - 3
    routes.self_values[2, 3] = 7  # 3 - 7, through another layer
    routes.donors[5] = 0  # 5 - 0
    routes.self_keys[1, 2] = 5  # 2 - 5 - 0
    assert routes.ties() == [[0, 2, 5], [1], [3, 6, 7], [4]]


def test_ties_agree_with_reachability():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        routes = identity(9)
        for name in ("self_keys", "donors"):
            some = torch.randint(9, (3,), generator=generator)
            getattr(routes, name)[..., some] = torch.randint(9, (3,), generator=generator)
        reach = torch.eye(9)
        for name in ("self_keys", "donors"):
            reach[torch.arange(9), getattr(routes, name).reshape(-1, 9)[0]] = 1
        reach = ((reach + reach.T).matrix_power(9) > 0).int()
        expected = sorted({tuple(row.nonzero().flatten().tolist()) for row in reach})
        assert [tuple(group) for group in routes.ties()] == expected


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("self_queries", (SELF, ROWS + 1)),
        ("self_keys", (SELF + 1, ROWS)),
        ("self_values", (ROWS,)),
        ("donors", (ROWS, 1)),
        ("cross_gate", (CROSS, ROWS - 1)),
        ("mix", (ROWS, LENGTH, LENGTH + 1)),
        ("keep", (ROWS + 1, LENGTH)),
        ("words", (ROWS, LENGTH + 1, COLUMNS)),
    ],
)
def test_wrong_shapes_are_refused(name, shape):
    with pytest.raises(ValueError, match=r"AttentionRoutes\.\w+ has shape"):
        replace(identity(), **{name: torch.zeros(shape, dtype=getattr(identity(), name).dtype)})
