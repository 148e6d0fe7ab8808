"""A report that asks for nothing, shows everything, and lets no text become markup."""

import base64
import hashlib
import os
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pivotal.errors import OutputError
from pivotal.figures import Comparison, Panel, html_report, save_report

HOSTILE = [
    "</script><script>document.title='owned'</script>",
    '"><img src=x onerror=alert(1)>',
    "'; alert(1); //",
    "<!-- ",
    "]]> &amp; &#60;b&#62;",
    "</style><style>*{display:none}",
    "日本 café 🐈 \u202e reversed",
]


def block(colour=(200, 30, 40), height=8, width=8):
    return np.full((height, width, 3), colour, np.uint8)


def comparison(text="plain", **more):
    return Comparison(
        text, Panel(text, block(), [text]), Panel(text, block((0, 200, 0)), [text]), **more
    )


def page(text="plain"):
    panel = Panel(text, block((0, 0, 200)), [text], accent=True)
    return html_report(
        [comparison(text, facts={text: text}, panels=[panel])],
        title=text, facts={text: text}, panels=[panel], footer=text,
    )  # fmt: skip


class Parsed(HTMLParser):
    """Elements with their attributes, and the text outside style and script."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.code, self._within = [], [], {}, ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._within = tag

    def handle_endtag(self, tag):
        self._within = ""

    def handle_data(self, data):
        if self._within in ("style", "script"):
            self.code[self._within] = data
        else:
            self.texts.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_never_becomes_markup(text):
    plain, hostile = Parsed(page()), Parsed(page(text))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
    assert [sorted(a) for _, a in hostile.elements] == [sorted(a) for _, a in plain.elements]
    assert hostile.code == plain.code
    assert "".join(hostile.texts).count(text) == "".join(plain.texts).count("plain")
    assert text in {attributes["alt"] for attributes in hostile.named("img")}


def test_what_no_page_can_hold_is_marked():
    html = page("a\udcffb\x00c\x1b")
    assert "a\ufffdb\ufffdc\ufffd" in html
    html.encode("utf-8")


def test_the_page_refers_to_nothing_outside_itself():
    parsed = Parsed(page())
    for _, attributes in parsed.elements:
        for name in ("src", "href", "action", "srcset", "poster", "data"):
            assert attributes.get(name, "data:,").startswith("data:")
    for code in parsed.code.values():
        assert not re.search(r"https?:|//\w|@import|url\(|fetch|XMLHttp|import\s*\(", code)


def test_the_policy_allows_the_pages_own_style_and_script_alone():
    parsed = Parsed(page())
    [policy] = [m["content"] for m in parsed.named("meta") if "http-equiv" in m]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag, code in parsed.code.items():
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_pictures_are_embedded_exactly():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    html = html_report(
        [Comparison("c", Panel("a", pixels), Panel("b", pixels[:, ::-1].copy()))], title="t"
    )
    found = [
        np.array(Image.open(BytesIO(base64.b64decode(image["src"].partition("base64,")[2]))))
        for image in Parsed(html).named("img")
    ]
    assert np.array_equal(found[0], pixels)
    assert np.array_equal(found[1], pixels[:, ::-1])


def test_a_page_says_its_language_and_names_every_picture_and_slider():
    parsed = Parsed(page("blue"))
    assert parsed.named("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in parsed.named("img"))
    assert all("blue" in slider["aria-label"] for slider in parsed.named("input"))


def test_the_same_report_is_the_same_page_on_disk_whole_or_not_at_all(tmp_path):
    path = tmp_path / "report.html"
    save_report([comparison()], path, title="t")
    first = path.read_bytes()
    save_report([comparison()], path, title="t")
    assert path.read_bytes() == first
    with pytest.raises(OutputError, match=r"a\.html' can't be written"):
        save_report([comparison()], tmp_path / "nowhere" / "a.html", title="t")
    with pytest.raises(ValueError, match=r"'a\.pdf' is none"):
        save_report([comparison()], "a.pdf", title="t")
    assert os.listdir(tmp_path) == ["report.html"]


def test_an_impossible_report_is_refused_by_name():
    with pytest.raises(ValueError, match="without a comparison"):
        html_report([], title="t")
    with pytest.raises(ValueError, match="before is 8 x 8, after is 4 x 8"):
        Comparison("c", Panel("a", block()), Panel("b", block(height=4)))
    with pytest.raises(ValueError, match="pixels are float64"):
        Comparison("c", Panel("a", block() / 255), Panel("b", block()))
    with pytest.raises(ValueError, match="pixels are float64"):
        html_report([comparison()], title="t", panels=[Panel("a", block() / 255)])
