"""Makes the screenshots of the docs, and executes their notebook: what a reader sees is what the programs show.

    python docs/screenshots.py            (all of it: about ten minutes on two cores)
    python docs/screenshots.py notebook   (the notebook alone)
    python docs/screenshots.py silent_maps deep

Of each run there are four: the console, the report's page, TensorBoard's images and a notebook's cell, all as they are
first seen. Needs the extras ``demo`` and ``test``, nbconvert, and Debian's chromium, chromium-driver and
dataset-fashion-mnist.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
SCREENS = DOCS / "screens"
CONFIGS = ("zero_kernels", "frozen_weights", "silent_maps", "vanishing_sigmoid", "sparse_weights")
DEEP = "deep"
"""A network of 144 layers that went wrong."""
COLUMNS = 100
COLOUR = r"(?:\x1b\[[0-9;]*m)*"
PATIENCE = 60.0
"""Seconds in which a page must show its content."""


def main(names: list[str]) -> None:
    """Makes what is named, or all."""
    wanted = names or ["notebook", *CONFIGS, DEEP]
    if "notebook" in wanted:
        execute_notebook(DOCS / "notebook.ipynb")
    for name in wanted:
        if name != "notebook":
            with tempfile.TemporaryDirectory() as folder:
                picture_run(name, Path(folder))


def picture_run(name: str, folder: Path) -> None:
    """Trains, and takes the four pictures of what came of it."""
    text = train(name, folder)
    (report,) = folder.glob("**/report.json")
    with chrome(folder / "profile") as browser:
        console_picture(text, browser, folder, SCREENS / f"{name}_console.webp")
        page_picture(report.with_suffix(".html").as_uri(), browser, SCREENS / f"{name}_page.webp", 1200, 1000)
        notebook_picture(report, browser, folder, SCREENS / f"{name}_notebook.webp")
        board_picture(folder, browser, SCREENS / f"{name}_tensorboard.webp")


def train(name: str, folder: Path) -> str:
    """Runs a training as a user would; gives what a terminal shows of it at the end, with its colours."""
    if name == DEEP:
        command = [sys.executable, __file__, "--train-deep", str(folder)]
    else:
        command = [sys.executable, "-m", "lightning_deadkernel", "fit", "--config", f"configs/{name}.yaml"]
        command += ["--trainer.logger.init_args.save_dir", str(folder)]
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    shown = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    start = [found.start() for found in re.finditer(rf"{COLOUR}lightning-deadkernel{COLOUR}: window", shown)][-1]
    return shown[start:].replace(str(folder), "runs")


def train_deep(folder: str) -> None:
    """Twelve blocks of twelve convolutions each without a norm, whose learning rate is too high after a while."""
    import lightning as L
    import torch
    from lightning.pytorch.loggers import TensorBoardLogger
    from torch import nn

    from lightning_deadkernel import DeadKernelMonitor
    from lightning_deadkernel.demo import DigitsDataModule
    from lightning_deadkernel.demo.models import ImageClassifier

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.relu(images + 0.2 * self.conv2(torch.relu(self.conv1(images))))

    class Deep(ImageClassifier):
        def __init__(self) -> None:
            super().__init__(optimizer="adam", lr=0.01)
            self.stem = nn.Conv2d(1, 16, 3, padding=1)
            stages = [nn.Sequential(*(Block(16) for _ in range(18 - (stage == 3)))) for stage in range(4)]
            self.stages, self.head = nn.ModuleList(stages), nn.Linear(16, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            images = torch.relu(self.stem(images))
            for stage in self.stages:
                images = stage(images)
            return self.head(images.mean((2, 3)))

    L.seed_everything(0)
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[DeadKernelMonitor()],
        logger=TensorBoardLogger(folder, name=DEEP),
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Deep(), DigitsDataModule())


def execute_notebook(path: Path) -> None:
    """Executes it in place."""
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    nbformat.write(notebook, path)


# -- pictures ----------------------------------------------------------------------------------------------------------


def console_picture(text: str, browser: Any, folder: Path, target: Path) -> None:
    """What stands on the terminal at the end."""
    from rich.console import Console
    from rich.terminal_theme import MONOKAI
    from rich.text import Text

    with (folder / "console.txt").open("w") as file:
        console = Console(width=COLUMNS, record=True, file=file, force_terminal=True)
        console.print(Text.from_ansi(text.rstrip()))
    page = folder / "console.html"
    page.write_text(console.export_html(inline_styles=True, theme=MONOKAI, code_format=TERMINAL), encoding="utf-8")
    browser.get(page.as_uri())
    box = browser.execute_script("return document.body.getBoundingClientRect()")
    page_picture(page.as_uri(), browser, target, round(box["width"]), round(box["height"]))


def page_picture(address: str, browser: Any, target: Path, width: int, height: int) -> None:
    """The first so many pixels of a page."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )
    if browser.current_url != address:
        browser.get(address)
    keep(browser, target)


def notebook_picture(report: Path, browser: Any, folder: Path, target: Path) -> None:
    """A notebook whose cells show the report."""
    import nbclient
    from nbconvert import HTMLExporter
    from nbformat.v4 import new_code_cell, new_notebook

    cells = [
        f'from lightning_deadkernel import Report\n\nreport = Report.load("{report.name}")\nprint(report)',
        "report",
    ]
    notebook = new_notebook(cells=[new_code_cell(source) for source in cells])
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(report.parent)}}).execute()
    page = folder / "notebook.html"
    page.write_text(HTMLExporter(template_name="lab").from_notebook_node(notebook)[0])
    page_picture(page.as_uri(), browser, target, 1100, 1000)


def board_picture(folder: Path, browser: Any, target: Path) -> None:
    """TensorBoard's images tab with the overview in its full size."""
    with board(folder) as address:
        set_size(browser, 1600, 1150)
        browser.get(f"{address}/#images")
        wait_for(lambda: browser.execute_script(f"return ({DEEP_FIND})('img').length") > 0)
        full_size = "(box) => /actual image size/.test(box.textContent) && box.click()"
        browser.execute_script(f"({DEEP_FIND})('paper-checkbox').forEach({full_size})")
        time.sleep(3)
        keep(browser, target)


DEEP_FIND = """(selector) => {
  const found = [];
  (function walk(node) {
    if (node.matches && node.matches(selector)) found.push(node);
    if (node.shadowRoot) walk(node.shadowRoot);
    for (const child of node.childNodes) walk(child);
  })(document.body);
  return found;
}"""
"""Elements, also inside of web components."""


def set_size(browser: Any, width: int, height: int) -> None:
    """Of what is shown, in pixels."""
    sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)


def keep(browser: Any, target: Path) -> None:
    """What the browser shows, in a small file."""
    import io

    from PIL import Image

    target.parent.mkdir(exist_ok=True)
    Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB").save(target, quality=80, method=6)


TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; width: max-content; background: {background} }}
pre {{ margin: 0; padding: 14px 18px; color: {foreground}; font: 14px/1.35 "DejaVu Sans Mono", monospace }}
</style><body><pre>{code}</pre>
"""

# -- programs ----------------------------------------------------------------------------------------------------------


@contextmanager
def chrome(profile: Path) -> Iterator[Any]:
    """A browser without a window."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    flags = "headless no-sandbox disable-gpu hide-scrollbars no-first-run disable-background-networking disable-sync"
    for flag in (*flags.split(), "disable-component-update", "disable-dev-shm-usage", f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def board(folder: Path) -> Iterator[str]:
    """The address of a TensorBoard on a folder."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    server = subprocess.Popen([*command, "--load_fast=false"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: socket.socket().connect_ex(("localhost", port)) == 0)
        time.sleep(3)  # until it has read the events
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait()


def wait_for(condition: Any) -> None:
    """Raises TimeoutError where it is not met in time."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("a program did not show what it should")
        time.sleep(0.3)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train-deep"]:
        train_deep(sys.argv[2])
    else:
        main(sys.argv[1:])
