"""A headless Chromium that reaches one host alone, and the pages of a node as a person sees them in it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from selenium.common.exceptions import TimeoutException
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support import expected_conditions as seen
from selenium.webdriver.support.wait import WebDriverWait

PAGE_S = 30
"""For a page on a busy machine."""

# Debian's own: named, so that Selenium looks for no other and downloads none.
CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"

_LINES = """
const lines = {};
for (const card of document.querySelectorAll("tf-scalar-card")) {
  const drawn = [...card.querySelectorAll("path.line")].filter(line => line.getClientRects().length);
  lines[card.tag] = drawn.map(line => line.getAttribute("d"));
}
return lines;
"""

_CELLS = """
const cells = Jupyter.notebook.get_cells().filter(cell => cell.cell_type === "code");
return cells.map(cell => ({
  number: cell.input_prompt_number,
  text: cell.element.find(".output_text, .output_stdout").text(),
  pictures: cell.element.find(".output_png img").length,
  error: cell.element.find(".output_error").text(),
}));
"""


@contextmanager
def browser(host: str) -> Iterator[Chrome]:
    """A browser for which no other host than ``host`` exists."""
    with tempfile.TemporaryDirectory(prefix="kiln-browser-") as profile:
        options = Options()
        options.binary_location = CHROMIUM
        # A notebook that was not saved asks before it is left.
        options.unhandled_prompt_behavior = "accept"
        for argument in (
            "--headless=new",
            # Chromium refuses to run as root in its sandbox; the pages are the node's own.
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--window-size=1400,1000",
            f"--user-data-dir={profile}",
            f"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE {host}",
        ):
            options.add_argument(argument)
        driver = Chrome(options=options, service=Service(DRIVER))
        try:
            driver.set_page_load_timeout(PAGE_S)
            yield driver
        finally:
            driver.quit()


# TensorBoard


def chart(driver: Chrome, tag: str, seconds: float = PAGE_S) -> list[tuple[float, float]]:
    """The points (x right, y down, in pixels) of the line that the scalar dashboard draws for ``tag``; or none."""
    try:
        lines: dict[str, list[str]] = WebDriverWait(driver, seconds).until(
            lambda _: (found := driver.execute_script(_LINES)) and found.get(tag) and all(found[tag]) and found
        )
    except TimeoutException:
        return []
    # The line of the values themselves has a smoothed one above it with as many points.
    points = re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", lines[tag][-1])
    return [(float(x), float(y)) for x, y in points]


# Jupyter


@dataclass(frozen=True)
class Cell:
    """What a code cell shows."""

    number: int | None
    """In the order of running; none before."""
    text: str
    pictures: int
    error: str


def log_in(driver: Chrome, address: str, token: str) -> str:
    """Types a token into Jupyter's login page; what the page objects, empty when the folder is shown."""
    driver.get(f"{address}/login")
    wait = WebDriverWait(driver, PAGE_S)
    field = wait.until(seen.element_to_be_clickable((By.ID, "password_input")))
    field.send_keys(token)
    driver.find_element(By.ID, "login_submit").click()
    wait.until(
        seen.any_of(seen.title_is("Home"), seen.presence_of_element_located((By.CSS_SELECTOR, ".message.error")))
    )
    objections = driver.find_elements(By.CSS_SELECTOR, ".message.error")
    return " ".join(each.text for each in objections)


def open_notebook(driver: Chrome, name: str) -> None:
    """Clicks a notebook in the folder, and waits until its kernel is ready."""
    wait = WebDriverWait(driver, PAGE_S)
    before = set(driver.window_handles)
    wait.until(seen.element_to_be_clickable((By.LINK_TEXT, name))).click()
    wait.until(seen.new_window_is_opened(before))
    (window,) = set(driver.window_handles) - before
    driver.switch_to.window(window)
    kernel = "Jupyter.notebook.kernel"
    ready = f"return window.Jupyter && Jupyter.notebook && {kernel} && {kernel}.info_reply.status"
    wait.until(lambda _: driver.execute_script(ready) == "ok")


def run_all(driver: Chrome, seconds: float) -> list[Cell]:
    """Chooses Cell > Run All, and waits until every code cell has run or one shows an error."""
    driver.find_element(By.LINK_TEXT, "Cell").click()
    WebDriverWait(driver, PAGE_S).until(seen.element_to_be_clickable((By.ID, "run_all_cells"))).click()
    WebDriverWait(driver, seconds, poll_frequency=1).until(
        # A cell gets its number and its output on different ways: all is there when the kernel says that it rests.
        lambda _: (
            not driver.execute_script("return Jupyter.notebook.kernel_busy")
            and (all(cell.number for cell in cells(driver)) or any(cell.error for cell in cells(driver)))
        )
    )
    return cells(driver)


def cells(driver: Chrome) -> list[Cell]:
    """The open notebook's code cells; a number stands when the kernel has answered."""
    found = driver.execute_script(_CELLS)
    return [Cell(**{**each, "number": each["number"] if isinstance(each["number"], int) else None}) for each in found]
