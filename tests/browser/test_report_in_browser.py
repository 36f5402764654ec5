"""A report as somebody opens it by a double click: sorted, filtered, read by keyboard, on a phone and in the dark."""

from __future__ import annotations

import pytest

from costl.pipeline.cache.reader import CacheReader
from costl.report.build import report
from costl.train import train

pytestmark = pytest.mark.browser
SIZES = [(390, 844), (1440, 900)]


@pytest.fixture(scope="module")
def page(world, tmp_path_factory):
    """The report of a small run, with a query that would be a script if anything let it, and its file alone in a folder."""
    folder = tmp_path_factory.mktemp("report")
    test = CacheReader(world.cache).annotations("test")
    assert "the " in test
    hostile = world.copy(folder / "world", test=test)
    train(hostile.cache, overrides=["train.epochs=2"], out=folder / "run", device="cpu")
    return report(folder / "run", out=folder / "page" / "report.html", videos=hostile.videos, detailed=5).path


def look(browser, page, *, width: int, height: int, dark: bool = False) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.driver.get(page.as_uri())


def shown(browser) -> list[str]:
    return browser.run(
        "return [...document.querySelectorAll('.list tbody tr')].filter(r => !r.hidden).map(r => r.dataset.iou)"
    )


def press(browser, *keys: str) -> None:
    browser.driver.switch_to.active_element.send_keys(*keys)


def focus(browser, selector: str) -> None:
    browser.run("document.querySelector(arguments[0]).focus()", selector)


def overflow(browser, selector: str) -> int:
    """CSS pixels by which the content of an element is wider than itself."""
    return browser.run("const e = document.querySelector(arguments[0]); return e.scrollWidth - e.clientWidth", selector)


def choose(browser, name: str, value: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(browser.find(f".filters [name={name}]")).select_by_value(value)


def heat(browser) -> int:
    return len(browser.all("dialog .heat rect"))


def contrast(browser, selector: str) -> float:
    """The least WCAG 2 contrast of the elements' text with the colour behind it."""
    return browser.run(
        """
        const rgb = text => text.match(/[\\d.]+/g).map((v, i) => Number(v) * (text.startsWith('color') && i < 3 ? 255 : 1));
        const light = c => { const [r, g, b] = c.slice(0, 3).map(v => v / 255)
          .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
          if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
        return Math.min(...[...document.querySelectorAll(arguments[0])].filter(e => e.textContent.trim()).map(e => {
          const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
          return (a + 0.05) / (b + 0.05); }));
        """,
        selector,
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_it_fits_the_window_and_can_be_read(browser, page, width, height, dark, tmp_path):
    look(browser, page, width=width, height=height, dark=dark)
    assert overflow(browser, "html") == 0
    browser.screenshot(tmp_path / "page.png", width=width)
    browser.run("document.querySelector('.list a').click()")
    assert overflow(browser, "dialog") == 0 and overflow(browser, "html") == 0
    for text in (
        "h1, h2, h3",
        "p, .quiet, small",
        "td, th, button",
        "label, summary, figcaption, .said",
        "a",
        ".names, .values, .axis",
    ):
        assert contrast(browser, text) >= 4.5, text
    browser.driver.save_screenshot(str(tmp_path / "query.png"))
    assert browser.complaints() == [] and browser.hosts() == set()


def test_the_list_is_sorted_and_filtered_by_keyboard(browser, page):
    from selenium.webdriver.common.keys import Keys

    look(browser, page, width=1440, height=900)
    worst_first = shown(browser)
    assert worst_first == sorted(worst_first) and len(worst_first) == 6
    focus(browser, "th[data-key=iou] button")
    press(browser, Keys.ENTER)
    assert browser.all("th[data-key=iou]")[0].get_attribute("aria-sort") == "descending"
    assert shown(browser) == sorted(worst_first, reverse=True)
    focus(browser, "th[data-key=query] button")
    press(browser, Keys.SPACE)
    assert browser.all("th[data-key=iou]")[0].get_attribute("aria-sort") is None
    names = [row.text.split("\n")[0] for row in browser.all(".list tbody td:first-child")]
    assert names == sorted(names)
    focus(browser, ".filters input[name=text]")
    press(browser, "test_0001")
    count = sum("test_0001" in row.text for row in browser.all(".list tbody tr:not([hidden])"))
    assert 0 < len(shown(browser)) == count < 6
    assert browser.find(".filters output").text == f"{count} of 6 shown"
    press(browser, "no such thing")
    assert shown(browser) == [] and browser.find("#none").is_displayed()
    press(browser, Keys.CONTROL, "a")
    press(browser, Keys.BACKSPACE)
    choose(browser, "outcome", "miss")
    misses = [row.get_attribute("data-outcome") for row in browser.all(".list tbody tr:not([hidden])")]
    assert misses == ["miss"] * sum(float(iou) < 0.3 for iou in worst_first)
    choose(browser, "outcome", "")
    choose(browser, "moment", "long")  # no video of this world is long enough
    assert shown(browser) == []
    assert browser.complaints() == []


def test_a_query_is_opened_looked_at_and_closed_by_keyboard(browser, page):
    from selenium.webdriver.common.keys import Keys

    look(browser, page, width=1440, height=900)
    focus(browser, ".list a")
    first = browser.driver.switch_to.active_element.text
    press(browser, Keys.ENTER)
    assert browser.find("dialog h3").text == first == browser.driver.switch_to.active_element.text
    whole = heat(browser)
    assert whole > 0
    assert all(picture.is_displayed() for picture in browser.all("dialog .shot svg"))
    focus(browser, "dialog .words [data-word='0']")  # to look is enough ...
    of_word = browser.run(
        "return [...document.querySelectorAll('dialog .heat rect')].map(r => r.getAttribute('fill-opacity')).join()"
    )
    press(browser, Keys.ENTER)  # ... and Enter keeps it
    focus(browser, "dialog [name=close]")
    assert (
        browser.run(
            "return [...document.querySelectorAll('dialog .heat rect')].map(r => r.getAttribute('fill-opacity')).join()"
        )
        == of_word
    )
    assert "found nothing" in browser.find("dialog .said").text
    focus(browser, "dialog .words [data-word='-2']")
    press(browser, Keys.ENTER)
    assert heat(browser) == 0
    focus(browser, "dialog [name=after]")
    press(browser, Keys.ENTER)
    assert browser.find("dialog h3").text != first and heat(browser) > 0
    press(browser, Keys.ESCAPE)
    browser.wait(lambda: not browser.run("return document.querySelector('dialog').open"), "Escape does not close")
    assert browser.run("return document.activeElement.matches('.list a')")
    assert browser.complaints() == [] and browser.hosts() == set()


def test_the_address_of_a_query_opens_it(browser, page):
    look(browser, page, width=390, height=844)
    target = browser.run("return document.querySelectorAll('.list a')[1].hash")
    browser.driver.get("about:blank")
    browser.driver.get(page.as_uri() + target)
    assert f"#{browser.find('dialog article').get_attribute('id')}" == target


def test_without_its_script_everything_is_still_on_the_page(browser, page):
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.driver.get(page.as_uri())
    assert len(browser.all("article .shot")) > 0
    assert all(article.is_displayed() for article in browser.all("article"))
    assert not any(tool.is_displayed() for tool in browser.all(".filters, .words"))
