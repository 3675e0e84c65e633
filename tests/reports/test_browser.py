"""Pages in a real browser: they ask for nothing, say nothing to its console, answer, and fit every screen."""

import codecs
import csv
import json
import shutil
import time

import pytest
from PIL import Image

from snrkit.experiment.run import Run
from snrkit.reports.blocks import Table
from snrkit.reports.page import page
from snrkit.reports.plots import Curves, Point, Series
from tests.reports.test_page import HOSTILE, every_kind

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with its chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
READY = 10.0  # seconds to wait for a file


class Browser:
    """One browser for all tests; every one opens its page anew."""

    def __init__(self, folder):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={folder / 'user'}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.downloads = folder / "downloads"
        self.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))

    def command(self, name, **given):
        return self.driver.execute_cdp_cmd(name, given)

    def open(self, path, width=1200, theme="light"):
        """A page at a width, after what was logged of others is forgotten."""
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.logged(), self.requests()
        self.driver.get(path.resolve().as_uri())

    def logged(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self):
        """Addresses that were asked for, but for what a page holds itself."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith("data:")]

    def ask(self, script, *given):
        return self.driver.execute_script(f"return {script}", *given)

    def find(self, query):
        return self.driver.find_element("css selector", query)

    def click(self, query):
        self.ask("arguments[0].scrollIntoView({block: 'center'})", self.find(query))
        self.find(query).click()

    def hover(self, query):
        element = self.find(query)
        self.ask("arguments[0].scrollIntoView({block: 'center'})", element)
        webdriver.ActionChains(self.driver, duration=0).move_to_element(element).perform()

    def press(self, query, *keys):
        self.ask("arguments[0].focus()", self.find(query))
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    @property
    def tip(self):
        return self.ask("document.getElementById('tip').hidden ? '' : document.getElementById('tip').innerText")

    def saved(self, name):
        """A file that the page gave, once it is whole."""
        end = time.monotonic() + READY
        while not (self.downloads / name).exists():
            assert time.monotonic() < end, [*self.downloads.glob("*")]
            time.sleep(0.02)
        return self.downloads / name


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser that is told where its driver lies, so that nothing is looked for elsewhere."""
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.driver.quit()


@pytest.fixture(scope="module")
def report(finished):
    return Run(finished / "runs/small").report(".html")


GAP = "figure[data-name='Norm gap']"


def test_pages_are_quiet_and_ask_for_nothing(browser, finished, report):
    """No line on the console, and no request but for the page itself."""
    for path in (report, Run(finished / "runs/small").comparison(".html")):
        browser.open(path)
        assert browser.logged() == []
        assert browser.requests() == [path.resolve().as_uri()]


def test_hostile_texts_run_nothing(browser, tmp_path):
    """A page that holds scripts as texts runs its own alone."""
    Image.new("L", (8, 8), 7).save(tmp_path / "a.png")
    (tmp_path / "page.html").write_text(page(HOSTILE, every_kind(HOSTILE, tmp_path / "a.png")))
    browser.open(tmp_path / "page.html")
    assert browser.ask("document.scripts.length") == 1
    assert HOSTILE in browser.ask("[...document.querySelectorAll('td')].map((cell) => cell.textContent)")
    assert browser.logged() == []


def test_a_curve_answers_to_pointer_and_keys(browser, report):
    """The box says the value and the interval of every sampler at that level; Escape and leaving close it."""
    browser.open(report)
    dot = f"{GAP} .wide g[data-name='dcw'] .dot:nth-of-type(3)"
    wanted = [
        browser.ask(f"document.querySelector(\"{GAP} .wide g[data-name='{name}'] .dot:nth-of-type(3)\").dataset.tip")
        for name in ("euler", "dcw")
    ]
    browser.hover(dot)
    assert browser.tip.splitlines()[1:] == [f"euler: {wanted[0]}", f"dcw: {wanted[1]}"]
    assert browser.tip.startswith("logsnr ")
    assert "[" in wanted[0]
    browser.hover("h1")
    assert browser.tip == ""
    arrow, escape = "\ue014", "\ue00c"
    browser.press(f"{GAP} .wide", arrow)
    first = browser.tip
    browser.press(f"{GAP} .wide", arrow)
    assert first
    assert browser.tip not in ("", first)
    assert browser.ask("document.getElementById('said').textContent").split("; ") == browser.tip.splitlines()
    browser.press(f"{GAP} .wide", escape)
    assert browser.tip == ""


def test_a_legend_hides_a_sampler_everywhere(browser, report):
    """Its curves vanish from every figure, the box no longer names it, and it comes back."""
    browser.open(report)
    button = f"{GAP} .legend button:nth-of-type(2)"
    shown = "[...document.querySelectorAll('.wide g[data-series=\"1\"]')].filter(g => g.getClientRects().length).length"
    everywhere = browser.ask(shown)
    assert everywhere >= 8  # shifts, score and bands
    browser.click(button)
    assert browser.ask(shown) == 0
    assert browser.ask(f'document.querySelector("{button}").ariaPressed') == "false"
    browser.hover(f"{GAP} .wide g[data-name='euler'] .dot:nth-of-type(3)")
    assert "euler: " in browser.tip
    assert "dcw" not in browser.tip
    browser.click(button)
    assert browser.ask(shown) == everywhere


def test_the_flip_flips(browser, report):
    """By choice, by arrow keys and by a click on the picture, always in the same place."""
    browser.open(report)
    shown = "[...document.querySelectorAll('.flip img')].map(i => i.getClientRects().length)"
    place = "(({left, width, height}) => [left, width, height])(arguments[0].getBoundingClientRect())"
    assert browser.ask(shown) == [1, 0]
    before = browser.ask(place, browser.find(".flip img.on"))
    browser.click(".flip label:nth-of-type(2) input")
    assert browser.ask(shown) == [0, 1]
    assert browser.ask(place, browser.find(".flip img.on")) == before
    browser.press(".flip label:nth-of-type(2) input", "\ue012")
    assert browser.ask(shown) == [1, 0]
    browser.click(".flip img.on")
    assert browser.ask(shown) == [0, 1]
    assert browser.ask("document.querySelector('.flip label:nth-of-type(2) input').checked")


def test_tables_sort_by_their_headers(browser, report):
    """Numbers by size, up and then down, with what is absent last; the header says so to those who do not see it."""
    browser.open(report)
    table = ".table[data-name='Samplers'] table"
    column = "[...document.querySelectorAll(`${arguments[0]} tbody tr`)].map(r => parseFloat(r.cells[5].textContent))"
    values = browser.ask(column, table)
    assert len(set(values)) == 2
    for turn, wanted in (("ascending", sorted(values)), ("descending", sorted(values, reverse=True))):
        browser.click(f"{table} thead th:nth-of-type(6) button")
        assert browser.ask(column, table) == wanted
        assert browser.ask("document.querySelector(`${arguments[0]} thead th:nth-of-type(6)`).ariaSort", table) == turn
    assert browser.ask("document.querySelectorAll(`${arguments[0]} th[aria-sort]`).length", table) == 1


@pytest.mark.parametrize("width", [390, 820, 1440])
def test_nothing_is_wider_than_the_screen(browser, finished, report, width):
    """With every section unfolded; what is wide scrolls in a box of its own."""
    for path in (report, Run(finished / "runs/small").comparison(".html")):
        browser.open(path, width)
        browser.ask("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        assert browser.ask("document.documentElement.scrollWidth") <= width
        assert browser.ask(
            "[...document.querySelectorAll('.scroll')].some((box) => box.scrollWidth > box.clientWidth)"
        ) or (width > 390)


CONTRAST = """
(() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => part / 255)
      .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const between = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const behind = (node) => {
    const colour = getComputedStyle(node).backgroundColor;
    return colour === "rgba(0, 0, 0, 0)" && node.parentElement ? behind(node.parentElement) : colour;
  };
  const worst = (query, what) => Math.min(...[...document.querySelectorAll(query)]
    .filter((node) => node.getClientRects().length).map((node) => between(getComputedStyle(node)[what], behind(node))));
  return [worst("p, a, button, th, td, figcaption, summary, label, h1, h2, h3", "color"),
    worst("svg text", "fill"), worst("svg .line", "stroke"), worst("#term-null", "color")];
})()
"""


def test_light_is_light_dark_is_dark_and_both_can_be_read(browser, report):
    """By the system's wish and by the button; texts have the contrast 4.5 of WCAG's AA, and lines its 3."""
    paper = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    for theme, other in (("light", "dark"), ("dark", "light")):
        browser.open(report, theme=theme)
        browser.ask("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        for now in (theme, other):
            assert (max(browser.ask(paper)) < 60) == (now == "dark")
            assert (min(browser.ask(paper)) > 200) == (now == "light")
            assert browser.ask("document.querySelector('.theme').ariaPressed") == str(now == "dark").lower()
            text, axes, lines, meaning = browser.ask(CONTRAST.strip())
            assert min(text, axes, meaning) >= 4.5
            assert lines >= 3
            browser.click(".theme")


def test_names_are_explained_on_focus(browser, report):
    """The box says what the glossary says, and the focus can be seen."""
    browser.open(report)
    browser.press("p.verdict .term[aria-describedby='term-nats'], .term[aria-describedby='term-nats']", "")
    assert browser.tip == browser.ask("document.getElementById('term-nats').textContent")
    browser.press("body", "\ue004")
    assert browser.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_figures_and_tables_can_be_taken_along(browser, tmp_path):
    """CSV and LaTeX hold the cells, SVG stands alone with its legend and colours, PNG is a picture of it."""
    odd = 'a, "b"_50% & c'
    series = (
        Series(odd, (Point(0, 1, 0, 2), Point(1, 2, 1, 3))),
        Series("other", (Point(0, 2, 1, 3), Point(1, 1, 0, 2))),
    )
    (tmp_path / "page.html").write_text(page("t", [Curves("Some figure", "c", "x, nats", "y", series)]))
    browser.open(tmp_path / "page.html")
    browser.click(".legend button:nth-of-type(2)")
    for kind in ("svg", "png"):
        browser.click(f"[data-figure={kind}]")
    browser.click(".numbers summary")
    for kind in ("csv", "tex"):
        browser.click(f"[data-table={kind}]")
    rows = list(csv.reader(browser.saved("Some-figure.csv").read_text("utf-8-sig").splitlines()))
    assert rows[:2] == [["sampler", "x, nats", "y", "low", "high"], [odd, "0", "1", "0", "2"]]
    latex = browser.saved("Some-figure.tex").read_text()
    assert 'a, "b"\\_50\\% \\& c & 0 & 1 & 0 & 2 \\\\' in latex
    svg = browser.saved("Some-figure.svg").read_text()
    assert svg.count("<path") > 10
    assert "var(" not in svg
    assert "class=" not in svg
    assert "data-" not in svg
    assert "rgb(10, 95, 180)" in svg
    assert "&amp; c" in svg
    assert "other" not in svg  # which the legend has hidden
    with Image.open(browser.saved("Some-figure.png")) as found:
        assert found.width == 3 * 640
        assert (10, 95, 180) in {colour[:3] for _, colour in found.convert("RGB").getcolors(2**24)}
    assert browser.logged() == []


def test_a_csv_is_text_and_numbers_to_a_spreadsheet(browser, tmp_path):
    """No cell is a formula, whatever a configuration holds; numbers stay numbers; what no code page has is read."""
    formulas = ['=HYPERLINK("http://x","y")', "+1+cmd|' /C calc'!A0", "-1+2", "@SUM(A1)", "-a"]
    plain = ["-0.1", "+1e-3", "-1,234.5", "+0.03 [-0.10, +0.17]", "-2%", "-", "FD∞", "a=b"]
    rows = [(text, "0") for text in (*formulas, *plain)]
    (tmp_path / "page.html").write_text(page("t", [Table(("what", "n"), rows, "Cells")]))
    browser.open(tmp_path / "page.html")
    browser.click("[data-table=csv]")
    content = browser.saved("Cells.csv").read_bytes()
    assert content.startswith(codecs.BOM_UTF8)
    found = [row[0] for row in csv.reader(content.decode("utf-8-sig").splitlines())]
    assert found == ["what", *(f"'{text}" for text in formulas), *plain]
