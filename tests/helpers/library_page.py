"""What a person does to the library page of `costl demo`."""

from __future__ import annotations

from pathlib import Path

from in_browser import Page


class LibraryPage(Page):
    """What a person does to the library page."""

    def __init__(self, browser, address: str, home: Path):
        super().__init__(browser)
        self.address, self.home = address, home

    def open(self, parameters: str = "", cards: int = 1) -> None:
        """Opens the page, and waits for its results."""
        self.browser.driver.get(self.address + parameters)
        self.browser.wait(lambda: len(self.names()) >= cards, f"fewer than {cards} moments")

    def names(self) -> list[str]:
        """The files of the cards that can be seen, with their folders."""
        script = "return cards().map(card => card.querySelector('.name').title)"
        return self.browser.run(script)

    def focus(self) -> int:
        """The rank of the card in focus, or -1."""
        script = "return Number((document.activeElement.closest('.card') || {dataset: {rank: -1}}).dataset.rank)"
        return self.browser.run(script)

    def text(self, selector: str) -> str:
        return self.browser.find(selector).text

    def wait_for(self, selector: str, text: str) -> None:
        self.browser.wait(lambda: text in self.text(selector), f"{selector} does not become {text!r}")

    def parameters(self) -> str:
        return self.browser.run("return location.search")

    def export(self, folder: Path, output_format: str) -> Path:
        """Exports in a format, and waits for the file."""
        behaviour = {"behavior": "allow", "downloadPath": str(folder)}
        self.browser.driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
        self.browser.run("document.querySelector('#export select').value = arguments[0]", output_format)
        self.browser.click("#export [type=submit]")
        whole = lambda: [path for path in folder.iterdir() if path.suffix != ".crdownload"]  # noqa: E731
        return self.browser.wait(whole, "nothing was downloaded")[0]
