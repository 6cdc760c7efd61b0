"""The viewer in Chromium without a graphics card: bytes, time to the first picture, frames per second while moving.

20 generated women are shown in a page of the default size. Then one woman with four images of 3328 x 2560 pixels of
12 bits is shown at full size, in a window of 1920 x 1080 pixels.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))  # for the package of the tests
from rsna_nb import metadata, synthetic, viewer
from tests.browser import CHROMIUM, Browser

READY = "document.querySelector('#hanging')?.getAttribute('aria-busy') === 'false'"
FRAMES = 120
# In milliseconds: the first frame of a zoom, for which a level of more pixels may be windowed; frames of the screen,
# each after a change; and the time that drawing takes of them.
MOVING = """(async () => {{
  const frames = [], drawing = [];
  view.zoom = {zoom};
  const started = await new Promise(requestAnimationFrame);
  drawAll();
  let last = await new Promise(requestAnimationFrame);
  const first = last - started;
  for (let i = 0; i < {frames}; i++) {{
    {change}
    cancelAnimationFrame(frame);
    const before = performance.now();
    drawAll();
    tiles.forEach(({{canvas}}) => canvas.getContext("2d").getImageData(0, 0, 1, 1));
    drawing.push(performance.now() - before);
    const now = await new Promise(requestAnimationFrame);
    frames.push(now - last);
    last = now;
  }}
  return [first, frames, drawing];
}})()"""


def large_images(folder: Path) -> pd.DataFrame:
    """Four images of one woman: a bright half disc of noisy tissue, as large as the files of RSNA's second site."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:3328, :2560]
    inside = ((y - 1664) / 1400) ** 2 + (x / 1600) ** 2 < 1
    rows = []
    for number, (side, view) in enumerate((side, view) for side in "RL" for view in ("CC", "MLO")):
        pixels = np.where(inside, rng.normal(1800, 120, inside.shape), 0).astype(np.uint16)
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), pixels if side == "L" else pixels[:, ::-1])
        rows.append({"path": str(path), "patient_id": "1", "laterality": side, "view": view})
    return pd.DataFrame(rows)


def shown(images: pd.DataFrame, folder: Path, megabytes: float) -> Path:
    """Write the page of some images and print its size and time."""
    started = time.perf_counter()
    page = viewer.show(images, megabytes=megabytes)
    print(f"{page!r}, written in {time.perf_counter() - started:.0f} s")
    return page.save(folder / f"{megabytes}.html")


def first_pictures(browser: Browser, page: Path) -> None:
    """Print when the first picture and all of the first woman's are on the screen after the page was opened."""
    browser.open(page)
    browser.wait_for(READY)
    times = browser.value("performance.getEntriesByName('picture').map(each => each.startTime)")
    print(
        f"  first picture after {times[0] / 1000:.2f} s, all {len(times)} of the woman after {times[-1] / 1000:.2f} s"
    )


def frames(browser: Browser, name: str, zoom: float, change: str) -> None:
    """Print frames per second, and milliseconds that drawing takes."""
    first, intervals, drawing = browser.value(MOVING.format(zoom=zoom, frames=FRAMES, change=change))
    print(
        f"  {name}, zoom {zoom:g}: {1000 / statistics.mean(intervals):.0f} frames a second, drawing four pictures "
        f"takes {statistics.median(drawing):.1f} ms (median), {max(drawing):.1f} ms (longest); longest frame "
        f"{max(intervals):.0f} ms, the first one after zooming {first:.0f} ms"
    )


def main() -> None:
    if not CHROMIUM:
        print("no Chromium")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generated = synthetic.generate(folder / "data", 20, 0.4, seed=5, scale=0.5, test_patients=2)
        pages = shown(metadata.load_metadata(generated), folder, 25), shown(large_images(folder), folder, 1000)
        with Browser(folder / "profile", (1920, 1080)) as browser:
            first_pictures(browser, pages[0])
            first_pictures(browser, pages[1])
            for zoom in (1, 4, 12):
                frames(browser, "moving", zoom, "move(tiles[0], 0.003 * Math.sin(i / 10), 0.003);")
            for zoom in (1, 4):
                frames(browser, "window", zoom, "view.dragging = true; changeWindow(0.002, 0.002);")


if __name__ == "__main__":
    main()
