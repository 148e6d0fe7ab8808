"""`pivotal demo`'s figures, without its minutes of work."""

import io

from rich.console import Console

from pivotal.cli.demo import shown_table
from pivotal.demo import GUIDANCE, figures_of, subjects, title_of


def test_the_demos_table_fits_80_columns_uncut():
    runs = [
        {
            "picture": subject.label,
            "title": title_of(method, guidance),
            "vae_psnr": 33.2,
            "psnr": 17.4,
            "dominant_error": "autoencoder",
            "seconds": {"invert": 700.1, "reconstruct": 99.1},
            "unet_rows": 1150,
        }
        for subject in subjects()
        for method, guidance in (("ddim", 1.0), ("ddim", GUIDANCE), ("null-text", GUIDANCE))
    ]
    out = io.StringIO()
    Console(file=out, width=80).print(shown_table(figures_of(runs)))
    lines = [line for line in out.getvalue().splitlines() if "33.2" in line]
    assert len(lines) == len(runs)
    for run, line in zip(runs, lines, strict=True):
        assert all(text in line for text in (run["picture"], run["title"], "autoencoder", "799.2"))
    assert "…" not in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 80
