"""A report in a browser: sorting, filtering, the keyboard, small screens, the dark theme, and pages without scripts."""

from __future__ import annotations

import pytest

from costl.pipeline.cache.reader import CacheReader
from costl.report.build import report
from costl.train import train

pytestmark = pytest.mark.browser
SIZES = [(390, 844, True), (1440, 900, False)]


@pytest.fixture(scope="module")
def page(world, tmp_path_factory):
    """The report of a small run, in a folder without other files."""
    folder = tmp_path_factory.mktemp("report")
    test = CacheReader(world.cache).annotations("test")
    assert "the " in test
    copied = world.copy(folder / "world", test=test)
    train(copied.cache, overrides=["train.epochs=2"], out=folder / "run", device="cpu")
    return report(folder / "run", out=folder / "page" / "report.html", videos=copied.videos, detailed=5).path


def open_page(browser, page, *, width: int, height: int, dark: bool = False) -> None:
    browser.emulate(width=width, height=height, dark=dark)
    browser.driver.get(page.as_uri())


def shown_ious(browser) -> list[str]:
    return browser.run(
        "return [...document.querySelectorAll('.list tbody tr')].filter(r => !r.hidden).map(r => r.dataset.iou)"
    )


def press(browser, *keys: str) -> None:
    """Sends keys to the focused element."""
    browser.driver.switch_to.active_element.send_keys(*keys)


def focus(browser, selector: str) -> None:
    browser.run("document.querySelector(arguments[0]).focus()", selector)


def overflow(browser, selector: str) -> int:
    """The number of CSS pixels by which the content of an element is wider than the element."""
    return browser.run("const e = document.querySelector(arguments[0]); return e.scrollWidth - e.clientWidth", selector)


def choose(browser, name: str, value: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(browser.find(f".filters [name={name}]")).select_by_value(value)


def opacities(browser) -> list[str]:
    """The opacities of the drawn patches in the detail view."""
    script = "return [...document.querySelectorAll('dialog .heat rect')].map(r => r.getAttribute('fill-opacity'))"
    return browser.run(script)


def contrast(browser, selector: str) -> float:
    """The smallest WCAG 2 contrast between the text of the elements and its background."""
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


@pytest.mark.parametrize(("width", "height", "dark"), SIZES)
def test_the_page_fits_the_window_and_has_enough_contrast(browser, page, width, height, dark, tmp_path):
    open_page(browser, page, width=width, height=height, dark=dark)
    assert overflow(browser, "html") == 0 and browser.barriers() == []
    browser.screenshot(tmp_path / "page.png", width=width)
    browser.run("document.querySelector('.list a').click()")
    assert overflow(browser, "dialog") == 0 and overflow(browser, "html") == 0 and browser.barriers() == []
    for selector in (  # also on mixed colours, which axe-core leaves out
        "h1, h2, h3",
        "p, .quiet, small",
        "td, th, button",
        "label, summary, figcaption, .peak",
        "a",
        ".names, .values, .axis",
    ):
        assert contrast(browser, selector) >= 4.5, selector
    browser.driver.save_screenshot(str(tmp_path / "query.png"))
    assert browser.console_errors() == [] and browser.hosts() == set()


def test_the_list_is_sorted_and_filtered_by_keyboard(browser, page):
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page, width=1440, height=900)
    worst_first = shown_ious(browser)
    assert worst_first == sorted(worst_first) and len(worst_first) == 6
    focus(browser, "th[data-key=iou] button")
    press(browser, Keys.ENTER)
    assert browser.all("th[data-key=iou]")[0].get_attribute("aria-sort") == "descending"
    assert shown_ious(browser) == sorted(worst_first, reverse=True)
    focus(browser, "th[data-key=query] button")
    press(browser, Keys.SPACE)
    assert browser.all("th[data-key=iou]")[0].get_attribute("aria-sort") is None
    names = [row.text.split("\n")[0] for row in browser.all(".list tbody td:first-child")]
    assert names == sorted(names)
    focus(browser, ".filters input[name=text]")
    press(browser, "test_0001")
    count = sum("test_0001" in row.text for row in browser.all(".list tbody tr:not([hidden])"))
    assert 0 < len(shown_ious(browser)) == count < 6
    assert browser.find(".filters output").text == f"{count} of 6 shown"
    press(browser, "no such thing")
    assert shown_ious(browser) == [] and browser.find("#none").is_displayed()
    press(browser, Keys.CONTROL, "a")
    press(browser, Keys.BACKSPACE)
    choose(browser, "outcome", "miss")
    misses = [row.get_attribute("data-outcome") for row in browser.all(".list tbody tr:not([hidden])")]
    assert misses == ["miss"] * sum(float(iou) < 0.3 for iou in worst_first)
    choose(browser, "outcome", "")
    choose(browser, "moment", "long")  # no video of this world has a long moment
    assert shown_ious(browser) == []
    assert browser.console_errors() == []


@pytest.mark.parametrize(("width", "height", "dark"), SIZES)
def test_every_query_opens_and_the_worst_of_each_kind_comes_first(browser, page, width, height, dark):
    open_page(browser, page, width=width, height=height, dark=dark)
    rows = browser.run("return [...document.querySelectorAll('.list tbody tr')].map(r => ({...r.dataset}))")
    kinds = {row["kind"] for row in rows}
    assert len(kinds) > 1 and "" not in kinds
    for kind in kinds:
        choose(browser, "kind", kind)
        assert shown_ious(browser) == sorted(row["iou"] for row in rows if row["kind"] == kind)
    choose(browser, "kind", "")
    assert len(browser.all(".list tbody a")) == len(rows) == 6
    browser.click(".list tbody a")
    opened = []
    for _ in rows:
        article = browser.find("dialog article")
        opened.append(article.get_attribute("id"))
        bars = article.find_elements("css selector", ".chart rect.guess")
        curve = article.find_elements("css selector", ".chart polyline.guess")
        assert len(bars) > 1 and len(curve) == 1 and all(shape.is_displayed() for shape in (*bars, *curve))
        assert overflow(browser, "dialog") == 0
        browser.click("dialog [name=after]")
    assert opened == [row["id"] for row in rows]
    browser.click("dialog [name=close]")
    if width > 640:  # a small screen has no such column
        browser.click("th[data-key=score] button")
        scores = browser.run("return [...document.querySelectorAll('.list tbody tr')].map(r => Number(r.dataset.score))")
        assert scores == sorted(float(row["score"]) for row in rows)
    assert browser.console_errors() == [] and browser.hosts() == set()


def test_a_detail_view_can_be_used_by_keyboard(browser, page):
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page, width=1440, height=900)
    focus(browser, ".list a")
    first = browser.driver.switch_to.active_element.text
    press(browser, Keys.ENTER)
    assert browser.find("dialog h3").text == first == browser.driver.switch_to.active_element.text
    assert opacities(browser)
    assert all(picture.is_displayed() for picture in browser.all("dialog .shot svg"))
    focus(browser, "dialog .words [data-word='0']")  # the focus alone shows the map of the word
    of_word = opacities(browser)
    press(browser, Keys.ENTER)  # Enter selects it
    focus(browser, "dialog [name=close]")
    assert opacities(browser) == of_word
    assert "no patch" in browser.find("dialog .peak").text
    focus(browser, "dialog .words [data-word='-2']")
    press(browser, Keys.ENTER)
    assert opacities(browser) == []
    focus(browser, "dialog [name=after]")
    press(browser, Keys.ENTER)
    assert browser.find("dialog h3").text != first and opacities(browser)
    press(browser, Keys.ESCAPE)
    browser.wait(lambda: not browser.run("return document.querySelector('dialog').open"), "Escape does not close")
    assert browser.run("return document.activeElement.matches('.list a')")
    assert browser.console_errors() == [] and browser.hosts() == set()


def test_the_address_of_a_query_opens_it(browser, page):
    open_page(browser, page, width=390, height=844)
    target = browser.run("return document.querySelectorAll('.list a')[1].hash")
    browser.driver.get("about:blank")
    browser.driver.get(page.as_uri() + target)
    assert f"#{browser.find('dialog article').get_attribute('id')}" == target


def test_without_scripts_all_detail_views_are_on_the_page(browser, page):
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.driver.get(page.as_uri())
    assert len(browser.all("article .shot")) > 0
    assert all(article.is_displayed() for article in browser.all("article"))
    assert not any(tool.is_displayed() for tool in browser.all(".filters, .words"))
