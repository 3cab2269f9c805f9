"""A real TensorBoard on a real run, looked at through a real browser (Debian's chromium and chromium-driver)."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_deadkernel import DeadKernelMonitor

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        importlib.util.find_spec("selenium") is None
        or shutil.which("chromium") is None
        or shutil.which("chromedriver") is None,
        reason="needs selenium, chromium and chromium-driver",
    ),
    pytest.mark.filterwarnings("ignore::lightning_deadkernel.errors.DeadKernelWarning"),
]
PATIENCE = 60.0
"""Seconds in which a page must show its content, also on a busy machine."""
DEEP_TEXT = """
const seen = [];
(function walk(node) {
    if (node.nodeType === 3 && node.textContent.trim()) seen.push(node.textContent.trim());
    if (["STYLE", "SCRIPT"].includes(node.tagName)) return;
    if (node.shadowRoot) walk(node.shadowRoot);
    for (const child of node.childNodes) walk(child);
})(document.body);
return seen.join("\\n");
"""
"""All text of a page, also inside its web components."""
DEEP_COUNT = """
let found = 0;
(function walk(node) {
    if (node.matches && node.matches(SELECTOR)) found += 1;
    if (node.shadowRoot) walk(node.shadowRoot);
    for (const child of node.childNodes) walk(child);
})(document.body);
return found;
"""


class Net(LightningModule):
    """A small CNN of whose first layer two kernels never fire."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)
        with torch.no_grad():
            self.conv1.bias[[2, 5]] = -50.0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = torch.relu(self.conv1(batch[0]))
        return nn.functional.cross_entropy(self.head(torch.relu(self.conv2(x)).mean((2, 3))), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs with the monitor."""
    folder = tmp_path_factory.mktemp("logs")
    torch.manual_seed(0)
    data = DataLoader(TensorDataset(torch.randn(64, 1, 10, 10), torch.randint(3, (64,))), batch_size=16)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="net"),
        callbacks=[DeadKernelMonitor(min_steps=1)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(Net(), data)
    return folder


@pytest.fixture(scope="module")
def board(logs: Path) -> Iterator[str]:
    """The address of a TensorBoard on the run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--port", str(port)]
    server = subprocess.Popen([*command, "--load_fast=false"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://localhost:{port}"

    def is_loaded() -> bool:
        try:
            with urllib.request.urlopen(f"{address}/data/plugin/scalars/tags", timeout=10) as answer:
                return bool(json.load(answer))
        except OSError:
            return False

    try:
        assert wait_for(is_loaded), "TensorBoard did not start"
        yield address
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-dev-shm-usage",
        "window-size=1400,1000",
        f"user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_page_load_timeout(PATIENCE)
    yield driver
    driver.quit()


def wait_for(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.3)
    return met


def page_shows(browser: Any, address: str, *wanted: str) -> str:
    """Opens a page, waits until it shows all wanted texts, and gives its text."""
    browser.get("about:blank")
    browser.get(address)
    wait_for(lambda: all(text in browser.execute_script(DEEP_TEXT) for text in wanted))
    text: str = browser.execute_script(DEEP_TEXT)
    assert [one for one in wanted if one not in text] == []
    return text


def count(browser: Any, selector: str) -> int:
    found: int = browser.execute_script(DEEP_COUNT.replace("SELECTOR", json.dumps(selector)))
    return found


def test_the_scalars_tab_shows_the_summary_first_and_a_section_per_statistic(browser: Any, board: str) -> None:
    text = page_shows(browser, f"{board}/#scalars", "deadkernel/dead_fraction", "deadkernel.dead_fraction")
    sections = [line for line in text.splitlines() if line.startswith("deadkernel") and "/" not in line]
    assert sections[0] == "deadkernel"
    assert len(sections) > 5
    assert wait_for(lambda: count(browser, "vz-line-chart2") > 0)


def test_the_custom_scalars_tab_charts_the_network_and_then_all_layers_of_each_statistic(
    browser: Any, board: str
) -> None:
    text = page_shows(
        browser, f"{board}/#custom_scalars", "deadkernel: the network", "deadkernel: layer by layer", "gradient ratio"
    )
    assert text.index("deadkernel: the network") < text.index("deadkernel: layer by layer")
    assert "deadkernel.gradient_ratio/conv2" in text


def test_the_images_tab_shows_the_overview_and_the_pictures(browser: Any, board: str) -> None:
    names = ("deadkernel/overview", "deadkernel.figures/kernel_map", "deadkernel.figures/gradient_flow")
    page_shows(browser, f"{board}/#images", *names)
    assert wait_for(lambda: count(browser, "img") > 0)


def test_the_histograms_tab_shows_what_was_counted(browser: Any, board: str) -> None:
    page_shows(
        browser, f"{board}/#histograms", "deadkernel.histograms.firing_rate/conv1", "deadkernel.histograms.weights"
    )
    assert wait_for(lambda: count(browser, "vz-histogram-timeseries") > 0)


def test_the_text_tab_shows_the_report_as_headings_and_not_as_marks(browser: Any, board: str) -> None:
    text = page_shows(browser, f"{board}/#text", "deadkernel/report", "2 of 8 kernels are dead")
    assert wait_for(lambda: count(browser, "h1, h2, h3") > 2)
    assert "## " not in text
    tallest = DEEP_COUNT.replace("found += 1", "found = Math.max(found, node.offsetHeight)")
    heading = browser.execute_script(tallest.replace("SELECTOR", json.dumps("th")))
    assert 0 < heading < 45, "a word of the table is broken"
