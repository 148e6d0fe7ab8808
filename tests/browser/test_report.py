"""The report in a real browser: the slider slides, and nothing is asked of the network."""

import json
import shutil

import numpy as np
import pytest

from pivotal.figures import Comparison, Panel, save_report

pytestmark = pytest.mark.browser
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
HOSTILE = "</script><script>document.title='owned'</script><img src=https://host.invalid/a.png>"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    red, green = (np.full((64, 96, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 255, 0]))
    path = tmp_path_factory.mktemp("report") / "report.html"
    each = Comparison(
        HOSTILE, Panel("source", red), Panel("edit", green), {"target": HOSTILE, "kind": "swap"},
        [Panel("“star”", red, ["where the word looks"])],
    )  # fmt: skip
    save_report([each, each], path, title=HOSTILE, facts={"prompt": HOSTILE}, footer="done")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    selenium = pytest.importorskip("selenium", reason="selenium is not installed")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if binary is None or chromedriver is None:
        pytest.skip("no Chromium with its driver is installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    assert selenium
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    driver.set_page_load_timeout(30)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, report):
    window = {"width": 1100, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
    browser.get(report.as_uri())
    browser.execute_script(
        "document.querySelector('.stage').scrollIntoView({block: 'center', behavior: 'instant'})"
    )
    return browser


def slider(page, number=0):
    return page.find_elements("css selector", "input[type=range]")[number]


def box_of(page):
    """Where the first slider is in the window: left, top, width and height in pixels."""
    return page.execute_script(
        "const box = document.querySelector('input').getBoundingClientRect();"
        "return [box.left, box.top, box.width, box.height]"
    )


def shown(page, number=0):
    """The share of the width, in percent, in which the first picture shows."""
    return page.execute_script(
        "const image = document.querySelectorAll('.before')[arguments[0]];"
        "const line = document.querySelectorAll('.line')[arguments[0]].getBoundingClientRect();"
        "const box = image.getBoundingClientRect();"
        "return [getComputedStyle(image).clipPath,"
        " 100 * (line.left + line.width / 2 - box.left) / box.width];",
        number,
    )


def pixel(page, share):
    """The colour on the screen at a share of the slider's width, a quarter of its height down."""
    from io import BytesIO

    from PIL import Image

    left, top, width, height = box_of(page)
    screen = Image.open(BytesIO(page.get_screenshot_as_png())).convert("RGB")
    return screen.getpixel((round(left + share * width), round(top + height / 4)))


def test_dragging_moves_the_boundary_between_the_pictures(page):
    from selenium.webdriver.common.action_chains import ActionChains

    before = shown(page)
    assert before[1] == pytest.approx(50, abs=1)
    assert pixel(page, 0.4) == (255, 0, 0)
    width = box_of(page)[2]
    drag = ActionChains(page).move_to_element(slider(page)).click_and_hold()
    drag.move_by_offset(round(-0.3 * width), 0).release().perform()
    after = shown(page)
    assert after[0] != before[0]
    assert after[1] == pytest.approx(20, abs=1.5)
    assert pixel(page, 0.4) == (0, 255, 0)
    assert pixel(page, 0.1) == (255, 0, 0)
    assert shown(page, 1)[1] == pytest.approx(50, abs=1)  # the other slider stays


def test_keys_move_it_too(page):
    from selenium.webdriver.common.keys import Keys

    slider(page).send_keys(Keys.HOME)
    assert shown(page)[1] == pytest.approx(0, abs=0.5)
    slider(page).send_keys(Keys.END)
    assert shown(page)[1] == pytest.approx(100, abs=0.5)
    slider(page).send_keys(Keys.ARROW_LEFT)
    assert shown(page)[1] == pytest.approx(99, abs=0.5)
    assert slider(page).get_attribute("aria-valuetext") == "99 percent"


def test_a_keyboard_reaches_the_slider_and_sees_that_it_has(page):
    from selenium.webdriver.common.keys import Keys

    page.find_element("tag name", "body").send_keys(Keys.TAB)
    assert page.switch_to.active_element == slider(page)
    outline = page.execute_script(
        "return getComputedStyle(document.querySelector('.stage')).outlineStyle"
    )
    assert outline == "solid"


def test_a_finger_moves_it(page):
    left, top, width, height = box_of(page)
    y = top + height / 2

    def touch(kind, share):
        points = [] if share is None else [{"x": left + share * width, "y": y}]
        page.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 0.5)
    for share in (0.6, 0.7, 0.8):
        touch("touchMove", share)
    touch("touchEnd", None)
    assert shown(page)[1] == pytest.approx(80, abs=2)


def test_nothing_is_asked_of_the_network_and_nothing_complains(browser, report):
    for kind in ("performance", "browser"):
        browser.get_log(kind)
    browser.get(report.as_uri())
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    assert report.as_uri() in asked
    assert all(url == report.as_uri() or url.startswith("data:") for url in asked)
    assert browser.get_log("browser") == []


def test_the_policy_stops_what_gets_in_all_the_same(page):
    page.execute_script(
        "const image = new Image(); image.onerror = () => { window.refused = true };"
        "image.src = 'https://host.invalid/a.png'; document.body.append(image);"
    )
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 10).until(lambda p: p.execute_script("return window.refused === true"))
    said = " ".join(entry["message"] for entry in page.get_log("browser"))
    assert "Content Security Policy" in said


def test_text_is_shown_as_text(page):
    assert page.title == HOSTILE
    assert page.find_element("tag name", "h1").text == HOSTILE
    assert len(page.find_elements("tag name", "script")) == 1


@pytest.mark.parametrize("width", [320, 390, 1100])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_window_and_can_be_read_in_both_schemes(page, width, scheme):
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    ground = colour(page, "body", "backgroundColor")
    assert (sum(ground) < 200) == (scheme == "dark")
    for selector in ("h1", "dt", "dd", "figcaption", "footer"):
        assert contrast(colour(page, selector, "color"), ground) > 4.5, selector


def colour(page, selector, name):
    text = page.execute_script(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]",
        selector,
        name,
    )
    return [int(part) for part in text.strip("rgba()").split(",")[:3]]


def contrast(one, other):
    """The ratio that WCAG 2.2 defines; 4.5 is its level AA for text."""

    def luminance(rgb):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted(
        (luminance([c / 255 for c in one]), luminance([c / 255 for c in other])), reverse=True
    )
    return (light + 0.05) / (dark + 0.05)
