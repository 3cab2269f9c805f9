"""The page: complete, harmless whatever a layer is called, and as seen by a real browser."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from helpers.example_reports import MALICIOUS, healthy_report, malicious_report, sick_report
from helpers.reports import codes, history
from lightning_deadkernel.report.describe import describe, kernels_in_words
from lightning_deadkernel.report.document import Document, KernelMap, Section, Strip, printable
from lightning_deadkernel.report.html import Outline, outline, to_html, to_notebook
from lightning_deadkernel.report.records import LayerReport
from lightning_deadkernel.report.report import Report
from lightning_deadkernel.report.states import COLOURS

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63f8cfc0f01f000500"
    "01ff56c72f0d0000000049454e44ae426082"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Elements, attributes and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def layer(channels: int, marks: dict[str, tuple[int, ...]]) -> LayerReport:
    return LayerReport(
        name="wide", kind="Linear", channels=channels, depth=0, activation="relu", codes=codes(channels, marks)
    )


def drawn_map(report: Report) -> KernelMap:
    (kernels,) = [
        block
        for section in describe(report).blocks
        if isinstance(section, Section)
        for block in section.blocks
        if isinstance(block, KernelMap)
    ]
    return kernels


def cells(drawn: Outline) -> dict[int, int]:
    """Channel -> its entry in the legend, read back from the outlines."""
    read = {}
    for entry, path in drawn.paths:
        for x, y, width, back in re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", path):
            assert width == back
            for place in range(int(x), int(x) + int(width)):
                read[int(y) * drawn.columns + place] = entry
    return read


def page_of(report: Report, pictures: dict[str, bytes] | None = None) -> Page:
    return Page(to_html(describe(report, pictures)))


def test_the_verdict_comes_first_then_findings_map_table_and_what_was_not_watched() -> None:
    text = page_of(sick_report()).text
    parts = ("In all: 4 problems", "Story", "all active", "zero activations", "requires_grad", "Optimizer: Adam (lr")
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_the_page_needs_no_network_and_its_script_is_the_one_its_policy_names() -> None:
    html = to_html(describe(sick_report(), {"Gradient flow": PIXEL}))
    page = Page(html)
    assert not {"link", "iframe", "object", "embed", "form"} & set(page.tags)
    assert [value[:22] for key, value in page.attributes if key == "src" and value] == ["data:image/png;base64,"]
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    assert "url(http" not in html
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in html


def test_a_malicious_report_has_the_elements_of_a_harmless_one() -> None:
    page = page_of(malicious_report(), {MALICIOUS: PIXEL})
    assert set(page.tags) <= set(page_of(sick_report(), {"": PIXEL}).tags)
    assert page.tags.count("script") == 1
    assert page.text.count("<script>alert(1)</script>") >= 12
    assert {value for key, value in page.attributes if key == "alt"} == {printable(MALICIOUS)}


def test_all_findings_notes_and_unwatched_layers_are_on_the_page() -> None:
    report = sick_report()
    text = page_of(report).text
    told = {finding.title for problem in report.problems for finding in problem.findings}
    for finding in report.findings:
        assert finding.title in text
        assert finding.cause.split(": ", 1)[1][1:] in text
        assert finding.advice.rstrip(".") in text
        assert finding.reference in text
    assert 0 < len(told) < len({finding.title for finding in report.findings})
    assert "requires_grad=False" in text
    assert report.notes[0] in text
    assert "save 1,394 parameters" in text


def test_the_contents_lead_to_every_section() -> None:
    html = to_html(describe(sick_report()))
    contents = re.findall(r'<a href="#([^"]*)">([^<]*)</a>', html)
    sections = re.findall(r'<section id="([^"]*)">\s*<h2>([^<]*)</h2>', html)
    assert contents == sections
    assert [title for _, title in contents][:3] == ["Problems", "Every kernel", "Layers"]


def test_of_many_findings_the_first_are_shown_and_the_others_folded() -> None:
    report = sick_report()
    many = replace(report, findings=report.findings[1:2] * 40, problems=())
    html = to_html(describe(many))
    assert "and 28 more" in html
    assert html.count('<details class="finding') == 40
    assert html.count('<details class="finding warning" data-kind="dead_channels" open>') == 1


def test_a_healthy_page_has_its_verdict_and_no_findings() -> None:
    page = page_of(healthy_report())
    assert "Nothing found: 42 kernels in 2 layers watched over 12,000 samples." in page.text
    assert "Findings" not in page.text
    assert "details" not in page.tags


def test_the_legend_explains_what_is_shown_and_no_more() -> None:
    legend = re.search(r'<ul class="legend"[^>]*>(.*?)</ul>', to_html(describe(sick_report())), flags=re.DOTALL)
    assert legend is not None
    names = ["active", "dead", "zero-gradient", "rare", "zero kernel"]
    assert re.findall(r"<b>([^<]*)</b>", legend.group(1)) == names
    assert {entry.name: entry.colour for entry in drawn_map(sick_report()).legend} == {
        name: COLOURS[name] for name in names[:-1]
    }


@pytest.mark.parametrize("channels", [1, 63, 64, 65, 256, 257, 1024, 1025, 5000])
def test_each_channel_has_one_cell_of_its_own_state(channels: int) -> None:
    dead, starved = tuple(range(0, channels, 3)), tuple(range(1, channels, 7))
    shown = layer(channels, {"dead": dead, "starved": tuple(c for c in starved if c % 3)})
    kernels = drawn_map(replace(healthy_report(), layers=(shown,)))
    drawn = outline(kernels.strips[0])
    names = [entry.name for entry in kernels.legend]
    assert {c: names[entry] for c, entry in cells(drawn).items()} == dict(enumerate(shown.states))
    assert drawn.columns * drawn.cell <= 640
    assert drawn.rows * drawn.columns >= channels > (drawn.rows - 1) * drawn.columns


def test_zero_kernels_have_a_dot_at_their_cell() -> None:
    drawn = outline(Strip("wide", bytes(100), (0, 66), ""))
    assert drawn.marks.count("z") == 2
    assert "M2.3 1.5" in drawn.marks
    assert outline(Strip("wide", bytes(5000), (0, 66), "")).marks == ""


def test_a_strip_is_also_said_in_words() -> None:
    words = kernels_in_words(sick_report().layers[0])
    assert words == "16 kernels: 2 dead (3, 11; certified: 11), 2 zero kernels (3, 11), 2 dormant (3, 11), 1 rare (7)"
    assert kernels_in_words(healthy_report().layers[0]) == "32 kernels, all active"
    assert kernels_in_words(layer(3, {"frozen": (1,)})) == "3 kernels: 1 frozen (1)"


def test_a_layer_without_channels_and_a_report_without_layers_do_no_harm() -> None:
    assert "Every kernel" not in page_of(replace(healthy_report(), layers=())).text
    assert "all active" in page_of(replace(healthy_report(), layers=(layer(0, {}), layer(2, {})))).text


def test_saving_as_html_writes_the_page_with_its_pictures(tmp_path: Path) -> None:
    sick_report().save(tmp_path / "report.html", {"Gradient flow": PIXEL})
    expected = to_html(describe(sick_report(), {"Gradient flow": PIXEL}))
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == expected


def test_a_notebook_shows_what_the_page_shows_without_frame_and_script() -> None:
    fragment = Page(to_notebook(describe(sick_report())))
    assert not {"html", "head", "body", "script"} & set(fragment.tags)
    assert sick_report()._repr_html_() == to_notebook(describe(sick_report()))
    for finding in sick_report().findings:
        assert finding.advice.rstrip(".") in fragment.text
    assert "features.3" in fragment.text
    rules = re.sub(r"@media[^{]*\{|/\*.*?\*/", "", to_notebook(Document("", "", ()))).split("<style>")[1]
    for rule in re.findall(r"([^{}<]+)\{", rules.split("</style>")[0]):
        assert all(part.strip().startswith(".deadkernel") for part in rule.split(",")), "a rule for all of the notebook"


def browse(path: Path, profile: Path, *options: str) -> str:
    assert CHROMIUM is not None
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    )
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={profile}", *options, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
@pytest.mark.parametrize("hostile", [False, True], ids=["sick", "malicious"])
def test_a_browser_shows_the_findings_and_makes_no_element_of_a_name(hostile: bool, tmp_path: Path) -> None:
    report: Report = malicious_report() if hostile else sick_report()
    path = tmp_path / "report.html"
    report.save(path, {"Gradient flow": PIXEL})
    dom = browse(path, tmp_path / "profile", "--dump-dom")
    page = Page(dom)
    assert page.tags.count("script") == 1
    details = len(report.problems) + len(report.findings)
    details -= sum(len(problem.findings) for problem in report.problems if len(problem.findings) == 1)
    assert page.tags.count("details") == details + 1
    assert page.tags.count("html") == page.tags.count("main") == page.tags.count("img") == 1
    for finding in report.findings:
        assert finding.layer is not None
        assert printable(finding.advice).rstrip(".") in page.text
        assert printable(finding.layer) in page.text


@pytest.fixture
def driver() -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver")
    driver_path = shutil.which("chromedriver")
    if CHROMIUM is None or driver_path is None:
        pytest.skip("no chromium and chromedriver on PATH")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,2000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(driver_path))
    yield driver
    driver.quit()


BEHIND_THE_NAME = """
const name = [...document.querySelectorAll(".finding code")].find(code => code.textContent.includes("שלום"));
const range = document.createRange();
range.selectNodeContents(name.nextSibling);
return range.getClientRects()[0].left - name.getBoundingClientRect().right;
"""


@pytest.mark.browser
def test_a_name_from_right_to_left_turns_over_nothing_else_and_on_paper_every_finding_is_open(
    tmp_path: Path, driver: Any
) -> None:
    dead, *others = sorted(sick_report().findings, key=lambda finding: finding.kind)
    named = replace(dead, layer="net.שלום")  # a number follows
    replace(sick_report(), problems=(), findings=(named, *others)).save(tmp_path / "x.html")
    driver.get((tmp_path / "x.html").as_uri())
    assert driver.execute_script(BEHIND_THE_NAME) >= -1
    shown = "return [...document.querySelectorAll('.finding dl')].filter(dl => dl.checkVisibility()).length"
    assert driver.execute_script(shown) < len(others)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert driver.execute_script(shown) == len(others) + 1


@pytest.mark.browser
def test_a_click_sorts_the_layers_and_the_pointer_tells_of_a_kernel(tmp_path: Path, driver: Any) -> None:
    from selenium import webdriver as selenium

    path = tmp_path / "report.html"
    report = sick_report()
    first = report.layers[0]
    assert first.values is not None
    told = replace(first.values, sample_rate=[0.25] * 3 + [0.0] + [0.5] * 12, since=[1] * 3 + [2] + [1] * 12)
    first = replace(first, values=told, rated_samples=688)
    replace(report, layers=(first, *report.layers[1:])).save(path)
    driver.get(path.as_uri())

    def layers() -> list[str]:
        return [cell.text for cell in driver.find_elements("css selector", "tbody td:first-child")]

    dead = next(b for b in driver.find_elements("css selector", "th button") if b.text == "dead")
    assert layers() == ["features.0", "features.3", "attention.mix", "head"]
    dead.click()
    assert layers()[:2] == ["features.3", "features.0"]
    dead.click()
    assert layers()[:2] == ["features.0", "features.3"]
    strip = driver.find_element("css selector", ".strip")
    svg = strip.find_element("css selector", "svg")
    before = strip.find_element("css selector", ".soft").text
    cell = svg.size["width"] / 16
    place = round(-svg.size["width"] / 2 + 3.5 * cell)
    selenium.ActionChains(driver).move_to_element_with_offset(svg, place, 0).perform()
    told = strip.find_element("css selector", ".soft").text
    seen = "since window 2, fires 0%, fires on 0 of 688 samples"
    assert told == f"kernel 3: dead, {seen}, norm 1.0e-12, gradient 0, certified no"
    selenium.ActionChains(driver).move_to_element(dead).perform()
    assert strip.find_element("css selector", ".soft").text == before
    assert driver.get_log("browser") == []


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_browser_paints_the_states_in_their_colours(tmp_path: Path) -> None:
    plt = pytest.importorskip("matplotlib.pyplot", reason="matplotlib reads the picture")
    path, picture = tmp_path / "report.html", tmp_path / "page.png"
    shown = replace(healthy_report(), layers=(layer(64, {"dead": tuple(range(32))}),))
    shown.save(path)
    browse(path, tmp_path / "profile", "--window-size=1100,900", "--hide-scrollbars", f"--screenshot={picture}")
    pixels = (plt.imread(picture)[..., :3] * 255).round().astype(int)
    painted = {}
    for word in ("dead", "active", "starved"):
        red, green, blue = (int(COLOURS[word][start : start + 2], 16) for start in (1, 3, 5))
        painted[word] = int((abs(pixels - [red, green, blue]).max(-1) <= 2).sum())
    assert painted["dead"] > 32 * 30
    assert painted["active"] > 32 * 30
    assert painted["starved"] == 0


# -- pictures ----------------------------------------------------------------------------------------------------------

DEEP = [("stem", "Conv2d", 16, "relu")] + [
    (f"stages.{place // 36}.{place % 36 // 2}.conv{place % 2 + 1}", "Conv2d", 16, "relu") for place in range(143)
]


def page_of_a_deep_network_that_went_wrong(path: Path) -> Report:
    """144 layers, in all but a few of which most kernels have died; all pictures are there."""
    figures = pytest.importorskip("lightning_deadkernel.figures")
    reports = history(DEEP, 5, dies={name: dict.fromkeys(range(10), 2) for name, *_ in DEEP[5:]})
    pictures = figures.draw_all(reports).for_page()
    assert len(pictures) > 6
    reports[-1].save(path, pictures)
    return reports[-1]


def test_pictures_are_parts_of_the_page_in_its_ink(tmp_path: Path) -> None:
    page_of_a_deep_network_that_went_wrong(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count('<span class="picture"><svg') == text.count('<span class="picture">') > 6
    assert "First feature maps" in text
    assert text.index("First layer kernels") < text.index("First feature maps") < text.index("Kernel map")
    pictures = text[text.index('<span class="picture">') : text.index("Every kernel</h2>")]
    for fixed in ("stroke: #000000", "fill: #ffffff", "<style", "<metadata", "#5a6670"):
        assert fixed not in pictures
    assert "<text" in pictures


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_the_page_of_a_deep_network_that_went_wrong_is_short_and_small(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report = page_of_a_deep_network_that_went_wrong(path)
    assert len(report.findings) > 100
    assert path.stat().st_size < 2_000_000
    picture = tmp_path / "page.png"
    browse(path, tmp_path / "profile", "--window-size=1280,5000", "--hide-scrollbars", f"--screenshot={picture}")
    plt = pytest.importorskip("matplotlib.pyplot", reason="matplotlib reads the picture")
    pixels = plt.imread(picture)[..., :3]
    assert pixels.shape[:2] == (5000, 1280)
    assert (pixels[-40:] == pixels[-1, 0]).all(), "something is drawn where the page should have ended"
    assert not (pixels[1000:2000] == pixels[-1, 0]).all()


@pytest.mark.browser
def test_the_page_fits_a_desktop_and_a_phone_and_can_be_read_in_the_light_and_in_the_dark(tmp_path: Path) -> None:
    selenium = pytest.importorskip("selenium.webdriver")
    driver_path = shutil.which("chromedriver")
    if CHROMIUM is None or driver_path is None:
        pytest.skip("no chromium and chromedriver on PATH")
    path = tmp_path / "report.html"
    page_of_a_deep_network_that_went_wrong(path)
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(driver_path))
    inks = """
        const of = (selector) => getComputedStyle(document.querySelector(selector));
        return [of("body").backgroundColor, of("h1").color, of(".picture svg text").fill]
    """
    try:
        for scheme in ("light", "dark"):
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            for width in (1280, 390):
                size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
                driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                driver.get(path.as_uri())
                assert driver.execute_script("return document.documentElement.scrollWidth") <= width
            paper, *texts = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in driver.execute_script(inks))
            assert all(abs(paper - text) > 500 for text in texts), "hard to read"
            assert (paper > 380) == (scheme == "light")
    finally:
        driver.quit()
