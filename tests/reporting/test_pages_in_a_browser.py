"""Every page in headless Chromium: on a screen and on a phone, light and dark."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import sync_playwright
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from augsubset import LoaderOptions, RandomOps, SubsetAugmentLoader, report
from augsubset.cli import main

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]


class Named(TensorDataset):
    classes = ("a class with a rather long name", "another", "third")


def write_report(folder):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (60, 3, 64, 64), dtype=torch.uint8, generator=generator)
    data = Named(x, torch.arange(60) ** 2 % 3)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 3))
    loader = SubsetAugmentLoader(
        DataLoader(data, 20, shuffle=True),
        model,
        RandomOps.paper(),
        every=1,
        options=LoaderOptions(start_epoch=1),
    )
    for _ in range(4):
        list(loader)
    return report(loader, folder, spectrum=2)


def write_demo(folder):
    main(["demo", "--limit", "30", "--epochs", "1", "--seeds", "1", "--out", str(folder)])
    return folder / "index.html"


def write_preview(folder):
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 256, (90, 100 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}-{'long' * 20}.png")
    main(["preview", "randaugment", str(folder), "--out", str(folder / "page.html")])
    return folder / "page.html"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    makers = {"report": write_report, "demo": write_demo, "preview": write_preview}
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in makers.items()}


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def inspect(browser, url, width, scheme, screenshot=None):
    """Open a page; return what it logged, requested, how far it overflows and its background."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    logged, requested = [], []
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(url)
    overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    if screenshot is not None:
        page.screenshot(path=screenshot, full_page=True)
    page.close()
    others = [each for each in requested if each != url and not each.startswith("data:")]
    return {"logged": logged, "requested": others, "overflow": overflow, "background": background}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["report", "demo", "preview"])
def test_a_page_fits_and_loads_without_errors(browser, pages, name, width, scheme):
    folder = os.environ.get("AUGSUBSET_SCREENSHOTS")
    shot = folder and f"{folder}/{name}-{width}-{scheme}.png"
    found = inspect(browser, pages[name].as_uri(), width, scheme, shot)
    red, green, blue = map(int, json.loads(f"[{found.pop('background')[4:-1]}]"))
    assert (min(red, green, blue) > 200) == (scheme == "light")
    assert max(red, green, blue) < 60 or scheme == "light"
    assert found == {"logged": [], "requested": [], "overflow": 0}


def test_the_report_can_show_one_class(browser, pages):
    page = browser.new_page()
    page.goto(pages["report"].as_uri())
    page.select_option("select[data-of=most]", label="another")
    shown = page.locator("#most figure:visible")
    assert 0 < shown.count() < page.locator("#most figure").count()
    assert all(each.endswith("times") or "another" in each for each in shown.all_inner_texts())
    page.close()


def test_the_check_sees_faults(browser, tmp_path):
    """The control."""
    (tmp_path / "page.html").write_text(
        '<body style="background:#fff"><img src="nowhere.png"><div style="width:2000px">wide</div>'
        "<script>console.error('a fault'); throw Error('another')</script>"
    )
    found = inspect(browser, (tmp_path / "page.html").as_uri(), 390, "light")
    assert found["overflow"] > 1000
    assert [url.rpartition("/")[2] for url in found["requested"]] == ["nowhere.png"]
    assert {"a fault", "another"} <= set(found["logged"])
