"""The report in a real browser: nothing fetched, failing or overflowing, light and dark, wide and narrow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from test_report_comparison import METHODS, make_comparison
from test_report_exports import write_exports
from test_report_page import NASTY, make_run
from test_report_protocols import measure
from understudy.report.comparison_page import page as comparison_page
from understudy.report.page import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, one of the dev requirements")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    names = [NASTY, "a class whose name is so long that it has to go over several lines", *map(str, range(8))]
    long = "control-with-a-name-of-very-many-letters-and-no-space-at-all-in-it"
    runs = [
        measure(make_run(folder / "coss", class_names=names), 0.9),
        measure(make_run(folder / long, method={"name": "coss", "weight": 0.0}), 0.5),
        make_run(folder / "moco", method={"name": "moco"}, teacher=False, knn=60.0),
    ]
    write_exports(runs[0])
    return write_report(runs, folder / "report.html")


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    long = "coss:optimizer.schedule=constant:neighbors.k=15:method.weight=balanced"
    weights, ks = ("0", "0.25", "0.5", "1", "2"), ("0", "5", "15")
    found = {
        "compare": make_comparison({**METHODS, long: [55.0, 56.0, 58.0]}),
        "curves": make_comparison({f"method.weight={w}": [60 + float(w), 61.0, 59.0] for w in weights}, "ablate"),
        "heat": make_comparison(
            {f"method.weight={w}, neighbors.k={k}": [60 + float(w) + int(k), 61.0] for w in weights for k in ks},
            "ablate",
        ),
    }
    folder = tmp_path_factory.mktemp("comparisons")
    paths = {name: folder / f"{name}.html" for name in found}
    for name, path in paths.items():
        path.write_text(comparison_page(found[name]), encoding="utf-8")
    return paths


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
@pytest.mark.parametrize("name", ["compare", "curves", "heat"])
def test_comparisons_are_drawn_without_errors_or_overflow(
    browser: Any, comparisons: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    sound(browser, comparisons[name], width, scheme)


def visit(browser: Any, page: Path, width: int, scheme: str) -> None:
    """Open the page on a screen of that width, as a phone below 600 px, and wait until the charts are drawn."""
    phone = width < 600
    screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": phone}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
    prefer(browser, scheme)
    browser.get_log("browser")  # empties it
    browser.get(page.as_uri())
    until(browser, "return document.documentElement.dataset.drawn > 0")


def prefer(browser: Any, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def until(browser: Any, script: str) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 60).until(lambda driver: driver.execute_script(script))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_drawn_without_errors_or_overflow(browser: Any, page: Path, width: int, scheme: str) -> None:
    sound(browser, page, width, scheme)


def sound(browser: Any, page: Path, width: int, scheme: str) -> None:
    """Visit a page and hold that nothing in it failed, was fetched, is empty, cut off or too wide."""
    visit(browser, page, width, scheme)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []

    # A closed part has no size; its charts are drawn when it is opened.
    browser.execute_script("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    until(browser, "return [...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))")
    empty = browser.execute_script(
        "return [...document.querySelectorAll('.plot')].filter(plot => {"
        "  const marks = plot.querySelectorAll('.scatterlayer path, .barlayer path, .heatmaplayer image');"
        "  const box = plot.getBoundingClientRect();"
        "  return !marks.length || box.width < 200 || box.height < 100 || box.right > innerWidth;"
        "}).map(plot => plot.getAttribute('aria-label'))"
    )
    assert empty == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    unseen = browser.execute_script("return [...document.images].filter(image => !image.naturalWidth).length")
    assert unseen == 0
    cut = browser.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3, h4, p, li:not(.thumbs li), dd, dt, summary, button')]"
        ".filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline')"
        ".map(e => e.outerHTML.slice(0, 200))"
    )
    assert cut == []


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast of two rgb(...) colors."""

    def luminance(color: str) -> float:
        parts = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


def colors(browser: Any) -> dict[str, list[str]]:
    """Colors of the page, of texts on it, in charts, and of marks in charts."""
    found: dict[str, list[str]] = browser.execute_script(
        "const all = (query, key) =>"
        "  [...new Set([...document.querySelectorAll(query)].map(e => getComputedStyle(e)[key]))];"
        "return {page: all('body', 'backgroundColor'),"
        "        text: all('p, td, th, dt, dd, a, summary, .star', 'color')"
        "          .concat(all('.plot text:not(.bartext-inside)', 'fill')),"
        "        inside: all('.plot .bartext-inside', 'fill'), bars: all('.overview .barlayer .point path', 'fill'),"
        "        marks: all('.scatterlayer .js-line', 'stroke')"
        "          .concat(all('.map .point', 'fill'), all('.thumbs li', 'borderTopColor'))}"
    )
    return found


def test_light_and_dark_can_be_read_and_charts_follow(browser: Any, page: Path) -> None:
    visit(browser, page, 1280, "light")
    light = colors(browser)
    prefer(browser, "dark")  # while the page is open
    text = "document.querySelector('.plot text:not(.bartext-inside)')"
    until(browser, f"return getComputedStyle({text}).fill == 'rgb(232, 234, 237)'")
    dark = colors(browser)
    visit(browser, page, 1280, "dark")  # from the start
    assert sorted(colors(browser)["marks"]) == sorted(dark["marks"])
    assert light["page"] == ["rgb(255, 255, 255)"]
    assert dark["page"] == ["rgb(20, 23, 26)"]
    for found in (light, dark):
        (background,) = found["page"]
        assert min(contrast(color, background) for color in found["text"]) >= 4.5
        assert min(contrast(color, background) for color in found["marks"]) >= 3
        assert min(contrast(one, other) for one in found["inside"] for other in found["bars"]) >= 4.5
    assert not set(light["marks"]) & set(dark["marks"])


def test_maps_answer_the_pointer_and_the_keyboard(browser: Any, page: Path) -> None:
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By

    visit(browser, page, 1280, "light")
    point = browser.find_elements(By.CSS_SELECTOR, ".map .point")[7]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", point)
    ActionChains(browser).move_to_element(point).perform()
    until(browser, "return document.querySelectorAll('.map .hovertext').length == 2")  # found again in the other map
    told = browser.find_element(By.CSS_SELECTOR, ".peek-text").text
    assert "digits/" in told
    assert browser.find_element(By.CSS_SELECTOR, ".peek-image.on").is_displayed()

    button = browser.find_element(By.CSS_SELECTOR, "button[data-group='1']")
    before = len(browser.find_elements(By.CSS_SELECTOR, ".map .point"))
    button.send_keys(Keys.ENTER)
    until(browser, f"return document.querySelectorAll('.map .point').length < {before}")
    assert button.get_attribute("aria-pressed") == "false"
    button.send_keys(Keys.SPACE)
    until(browser, f"return document.querySelectorAll('.map .point').length == {before}")


def test_another_map_is_one_button_away(browser: Any, page: Path) -> None:
    from selenium.webdriver import Keys
    from selenium.webdriver.common.by import By

    visit(browser, page, 1280, "light")
    places = "return [...document.querySelectorAll('.map')].map(map => map._fullData.flatMap(trace => [...trace.x]))"
    first = browser.execute_script(places)
    other, back = (browser.find_element(By.CSS_SELECTOR, f"button[data-layout='{n}']") for n in ("PaCMAP", "t-SNE"))
    other.send_keys(Keys.ENTER)
    until(browser, "return document.querySelector(\"button[data-layout='PaCMAP']\").ariaPressed == 'true'")
    assert back.get_attribute("aria-pressed") == "false"
    second = browser.execute_script(places)
    assert [len(points) for points in second] == [len(points) for points in first] == [120, 120]
    assert all(one != two for one, two in zip(first, second, strict=True))
    # Every point is inside the frame, though the new map is of another size.
    inside = browser.execute_script(
        "return [...document.querySelectorAll('.map')].every(map => map._fullData.every(trace => trace.x.every(x =>"
        "  x >= Math.min(...map._fullLayout.xaxis.range) && x <= Math.max(...map._fullLayout.xaxis.range))))"
    )
    assert inside
    back.send_keys(Keys.ENTER)
    until(browser, "return document.querySelector(\"button[data-layout='t-SNE']\").ariaPressed == 'true'")
    again = browser.execute_script(places)
    assert all(one == pytest.approx(two, abs=0.006) for one, two in zip(first, again, strict=True))
