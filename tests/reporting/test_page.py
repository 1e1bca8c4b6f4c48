"""The page: its markup by a parser, and its display in a browser without a network."""

import base64
import importlib.util
import io
import json
import re
import shutil
import time
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from colddiff.data import sources
from colddiff.images import grid, mosaic
from colddiff.reporting.page import Gallery, Picture, Table, Walk, render
from colddiff.runtime.errors import UserError

EVIL = """</title></style><script>document.title="!"</script><img src=x onerror='a()'> "&amp; §"""


class Elements(HTMLParser):
    """A parser that lists (tag, attributes) in order, and the text of each kind of element."""

    def __init__(self, html):
        super().__init__()
        self.found, self.texts, self._open = [], [], []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self._open[-1] if self._open else "", data))

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def decoded(source):
    kind, _, code = source.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(code, validate=True))))


@pytest.fixture(scope="module")
def digits():
    return sources.load("digits", "test", size=32, channels=1, limit=8)


@pytest.fixture(scope="module")
def frames(digits):
    """Return different mosaics of digits that fade in from gray."""
    weights = np.linspace(0, 1, 5)
    return [mosaic((128 + w * (digits - 128.0)).astype(np.uint8)) for w in weights]


TIMES = (20, 15, 10, 5, 0)


@pytest.fixture(scope="module")
def wide(digits):
    return grid([digits[i : i + 1] for i in range(8)], [f"number {i}" for i in range(8)])


@pytest.fixture(scope="module")
def html(frames, wide):
    columns = ("", "steps", *(f"a long measure {i}" for i in range(8)))
    rows = [[f"sampler number {i}", str(i), *["123.456"] * 8] for i in range(3)]
    sections = [
        Table("Scores", columns, rows, "of 297 digits"),
        Picture("Digits", wide, "restored"),
        Walk("The way back", TIMES, frames),
        Walk("Another", (1, 0), frames[:2], beside=(("x0", frames[4]), ("xT", frames[0]))),
    ]
    return render("A run", sections, subtitle="runs/blur_digits-" + "nospaces" * 20)


def test_a_table_has_every_cell_in_its_place(html):
    page = Elements(html)
    table = [(tag, text) for tag, text in page.texts if tag in ("th", "td")]
    assert table[:2] == [("th", "steps"), ("th", "a long measure 0")]
    assert table[9:12] == [("th", "sampler number 0"), ("td", "0"), ("td", "123.456")]
    assert len(table) == 9 + 3 * 10
    assert ("p", "of 297 digits") in page.texts


def test_pictures_are_inlined_to_the_pixel(html, frames, wide):
    images = Elements(html).of("img")
    arrays = [wide, *frames, *frames[:2], frames[4], frames[0]]
    for image, array in zip(images, arrays, strict=True):
        assert np.array_equal(decoded(image["src"]), array)
        assert (int(image["height"]), int(image["width"])) == array.shape[:2]
    assert [image["alt"] for image in images[:2]] == ["Digits", "The way back, t = 20"]
    assert {slider["value"] for slider in Elements(html).of("input")} == {"0"}  # begins at xT
    shown = [i for i, image in enumerate(images) if "hidden" not in image]
    assert shown == [0, 5, 7, 8, 9]  # the last frames of the walks, and what is beside them


def test_a_gallery_shows_files_beside_the_page(html):
    """Check links to files with signs that HTML or URLs would read, and the policy."""
    name = 'a #1?/"50%" & <b>.png'
    page = render("Files", [Gallery("Images", [(f"x/{name}", f"y/{name}", f"{name}, t = 3")])])
    [image], [link] = (Elements(page).of(tag) for tag in ("img", "a"))
    assert (unquote(image["src"]), unquote(link["href"])) == (f"x/{name}", f"y/{name}")
    assert not set('#?"&<>') & set(image["src"] + link["href"])
    assert image["alt"] == f"{name}, t = 3" and image["loading"] == "lazy"
    policies = [Elements(text).of("meta")[1]["content"] for text in (page, html)]
    assert "img-src data: 'self' file:;" in policies[0] and "img-src data:;" in policies[1]


def test_nothing_comes_from_elsewhere(html):
    sources = [v for _, a in Elements(html).found for k, v in a.items() if k in ("src", "href")]
    assert len(sources) == 11 and all(source.startswith("data:") for source in sources)
    rest = re.sub(r'base64,[^"]*', "", html)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", rest)


def test_text_is_text(digits):
    image = mosaic(digits)
    sections = [
        Table(EVIL, [EVIL, EVIL], [[EVIL, EVIL]], EVIL),
        Picture(EVIL, image, EVIL),
        Walk(EVIL, [1, 0], [image, image], EVIL, [(EVIL, image)]),
    ]
    page = Elements(render(EVIL, sections, subtitle=EVIL))
    assert sum(text == EVIL for _, text in page.texts) == 14
    assert len(page.of("script")) == 1 and len(page.of("img")) == 4
    allowed = "content name charset lang href rel id class scope tabindex role src alt width height"
    allowed += " decoding hidden type min max value aria-labelledby aria-describedby aria-label"
    found = {name for _, attributes in page.found for name in attributes}
    assert found <= {*allowed.split(), "aria-live", "data-label", "data-t", "http-equiv"}
    assert page.of("td")[0]["data-label"] == EVIL
    assert page.of("img")[0]["alt"] == EVIL and page.of("input")[0]["aria-label"] == EVIL


OK = np.zeros((4, 6, 3), np.uint8)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (Picture("p", np.zeros((4, 6, 3))), "'p' needs pictures of uint8 .*; got float64"),
        (Picture("p", OK[..., 0]), r"got uint8 \[4, 6\]"),
        (Picture("p", OK[..., :1]), r"got uint8 \[4, 6, 1\]"),
        (Picture("p", OK[:0]), r"got uint8 \[0, 6, 3\]"),
        (Walk("w", [1, 0], [OK]), "got 1 frames, 2 times"),
        (Walk("w", [], []), "got 0 frames, 0 times"),
        (Walk("w", [0, 1], [OK, OK]), r"must decrease; got \[0, 1\]"),
        (Walk("w", [1, 1], [OK, OK]), r"must decrease; got \[1, 1\]"),
        (Walk("w", [1, 0], [OK, OK[1:]]), "must have one shape; got"),
        (Walk("w", [1, 0], [OK.astype(int)] * 2), "got int64"),
        (Table("t", ["a", "b"], [["1", "2"], ["1"]]), r"header's 2 cells; got \['1'\]"),
        (Table("t", [], [[]]), "header's 0 cells"),
        ("text", "section 0 of a page must be a Table, .*; got str"),
    ],
)
def test_what_cannot_be_shown_is_refused(section, message):
    with pytest.raises(UserError, match=message):
        render("title", [section])


@pytest.fixture(scope="module")
def browser():
    """Return headless Chromium without a network: no DNS, and a closed port as proxy."""
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("selenium is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip(f"no chromedriver, or none of {', '.join(names)}, in PATH")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--force-color-profile=srgb",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SE_OFFLINE", "true")  # never downloads a browser
        patch.setenv("NO_PROXY", "localhost,127.0.0.1")
        chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
        yield chrome
        chrome.quit()


def open_page(browser, path, html, *, width=1280, dark=False):
    path.write_text(html, encoding="utf-8")
    browser.get_log("browser"), browser.get_log("performance")  # discard the logs of the last page
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(path.as_uri())


def events(browser, kind):
    """Return the browser's network events, including blocked requests."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [message["params"] for message in messages if message["method"] == f"Network.{kind}"]


def shown(browser, walk=0):
    """Return the frame and the time that a walk shows."""
    element = browser.find_elements("class name", "walk")[walk]
    frames = element.find_elements("css selector", "img[data-t]")
    (image,) = [frame for frame in frames if frame.is_displayed()]
    return image, element.find_element("tag name", "output").text


def on_screen(browser, image, frame):
    """Return whether an image is shown exactly, except for its round corners."""
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
    picture = np.asarray(Image.open(io.BytesIO(image.screenshot_as_png)).convert("RGB"))
    # The browser may shift an image that begins between two pixels by one pixel.
    rolled = [np.roll(picture, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return any(np.array_equal(p[5:-5, 5:-5], frame[5:-5, 5:-5]) for p in rolled)


def test_a_slider_walks_through_the_frames(browser, html, frames, tmp_path):
    open_page(browser, tmp_path / "page.html", html)
    slider = browser.find_element("tag name", "input")
    assert slider.aria_role == "slider" and slider.accessible_name == "The way back"

    def check(i):
        image, text = shown(browser)
        assert np.array_equal(decoded(image.get_attribute("src")), frames[i])
        assert on_screen(browser, image, frames[i])
        assert text == slider.get_attribute("aria-valuetext") == f"t = {TIMES[i]}"

    check(0)
    move = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    for i in (4, 3, 1):
        browser.execute_script(move, slider, i)
        check(i)
    slider.send_keys("\ue014")  # arrow right
    check(2)
    slider.send_keys("\ue012\ue012")  # arrow left, twice
    check(0)
    assert shown(browser, 1)[1] == "t = 1"  # the other walk does not move
    walk = browser.find_elements("class name", "walk")[1]
    beside = [figure.text for figure in walk.find_elements("tag name", "figure")]
    assert beside == ["", "x0", "xT"]
    assert len({figure.rect["y"] for figure in walk.find_elements("tag name", "figure")}) == 1
    assert browser.get_log("browser") == []


def test_play_goes_from_noise_to_image_and_stops(browser, html, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait

    open_page(browser, tmp_path / "page.html", html)
    browser.execute_script("""
        const [button, output] = document.querySelectorAll(".walk button, .walk output");
        window.seen = [];
        new MutationObserver(() => seen.push([output.value, button.textContent]))
            .observe(output, {childList: true});
    """)
    button = browser.find_element("tag name", "button")
    button.click()
    seen = [[f"t = {t}", "Play" if t == 0 else "Pause"] for t in TIMES]
    wait = WebDriverWait(browser, 20, 0.1)
    wait.until(lambda _: len(browser.execute_script("return seen")) == len(TIMES) - 1)
    assert browser.execute_script("return seen") == seen[1:]  # it began at the first
    # Play again, stop by the button, continue, stop by the slider.
    state = browser.execute_script("""
        const [button, slider, output] = document.querySelectorAll("button, input, output");
        button.click();
        button.click();
        const paused = button.textContent;
        button.click();
        slider.value = 2;
        slider.dispatchEvent(new Event("input"));
        return [paused, button.textContent, output.value];
    """)
    assert state == ["Play", "Play", "t = 10"]
    time.sleep(0.6)
    assert shown(browser)[1] == "t = 10"


@pytest.mark.parametrize("dark", (False, True), ids=("light", "dark"))
@pytest.mark.parametrize("width", (390, 700, 1280))
def test_it_fits_and_can_be_read(browser, html, wide, tmp_path, width, dark):
    open_page(browser, tmp_path / "page.html", html, width=width, dark=dark)
    root = "const r = document.documentElement; return [r.scrollWidth, window.innerWidth]"
    scroll_width, inner_width = browser.execute_script(root)
    assert inner_width == width and scroll_width <= width
    box = browser.find_element("class name", "box")
    needs, has = (int(box.get_property(name)) for name in ("scrollWidth", "clientWidth"))
    assert (needs > has) == (width == 700)  # ten columns fit on a desktop, and as lists on a phone
    names, cell = (box.find_element("css selector", f"tbody {tag}") for tag in ("th", "td"))
    label = "return getComputedStyle(arguments[0], '::before').content"
    assert browser.execute_script(label, cell) == ('"steps"' if width == 390 else "none")
    left = names.rect["x"]
    browser.execute_script("arguments[0].scrollLeft = 100", box)
    assert names.rect["x"] == left
    assert width == 390 or names.rect["width"] < box.rect["width"] / 2
    picture = browser.find_element("tag name", "img").rect
    assert picture["width"] == pytest.approx(min(wide.shape[1], box.rect["width"]))
    ratio = wide.shape[1] / wide.shape[0]
    assert picture["width"] / picture["height"] == pytest.approx(ratio, rel=0.01)
    rendering = [
        browser.find_element("css selector", name).value_of_css_property("image-rendering")
        for name in ("section > img", ".walk img")
    ]
    assert rendering == ["auto" if width < wide.shape[1] else "pixelated", "pixelated"]
    looks = browser.execute_script("""
        return [...document.querySelectorAll("body *")]
            .filter(e => e.checkVisibility() && e.innerText?.trim())
            .map(e => getComputedStyle(e))
            .map(s => [parseFloat(s.fontSize), s.color]);
    """)
    assert len(looks) > 40 and min(size for size, _ in looks) >= 14
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) < 0.1) == dark
    for color in {color for _, color in looks}:
        low, high = sorted((luminance(paper), luminance(color)))
        assert (high + 0.05) / (low + 0.05) > 4.5  # WCAG 2, level AA
    assert browser.get_log("browser") == []


def luminance(color):
    """Return the relative luminance (WCAG 2) of a CSS rgb(...)."""
    rgb = np.array([int(c) for c in re.findall(r"\d+", color)[:3]]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_the_browser_asks_for_nothing_and_runs_no_text(browser, html, digits, tmp_path):
    path = tmp_path / "page.html"
    evil = render(EVIL, [Picture(EVIL, mosaic(digits)), Table(EVIL, [EVIL], [[EVIL]])])
    for content, title in ((html, "A run"), (evil, EVIL)):
        open_page(browser, path, content)
        assert browser.title == browser.find_element("tag name", "h1").text == title
        urls = [event["request"]["url"] for event in events(browser, "requestWillBeSent")]
        assert path.as_uri() in urls
        assert all(url == path.as_uri() or url.startswith("data:") for url in urls)
        fetched = "return performance.getEntriesByType('resource').map(e => e.name)"
        assert all(url.startswith("data:") for url in browser.execute_script(fetched))
        assert browser.get_log("browser") == []


def test_the_page_forbids_what_it_does_not_hold(browser, html, tmp_path):
    """Insert HTML, as if a text had not been escaped."""
    bad = '<script>document.title = "evil"</script><img src="https://example.org/x.png">'
    open_page(browser, tmp_path / "page.html", html.replace("<main>", f"<main>{bad}"))
    assert browser.title == "A run"
    assert [event["blockedReason"] for event in events(browser, "loadingFailed")] == ["csp"]
    refused = [entry["message"] for entry in browser.get_log("browser")]
    assert len(refused) == 2 and all("Content Security Policy" in text for text in refused)


def test_without_javascript_a_walk_shows_its_end(browser, html, frames, tmp_path):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        open_page(browser, tmp_path / "page.html", html)
        image, _ = shown(browser)
        assert on_screen(browser, image, frames[-1])
        assert not browser.find_element("class name", "controls").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
