"""The viewer: what its page contains, and what Chromium makes of it with keys and mouse."""

import base64
import json
import re
import socket
import subprocess
import sys
import zlib
from html import unescape
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import requests
from nbformat.v4 import new_code_cell, new_notebook, new_output

from rsna_nb import dicom, metadata, viewer
from rsna_nb.notebook import UnavailableError
from rsna_nb.viewer.pictures import Task, embedded, packed
from rsna_nb.viewer.women import women_of
from tests.browser import CHROMIUM, Browser
from tests.conftest import REAL_DIR, needs_real_files, write_dicom

HOSTILE = "</script><img src=x onerror=alert(1)>&amp;\"'$data"
LARGE = float("inf")  # bytes: no picture is reduced


def unpacked(text: str, rows: int, columns: int) -> np.ndarray:
    """The values that viewer.js reads: the reverse of `packed`, written a second time."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(2, rows, columns)
    folded = planes[0].astype(np.int64) << 8 | planes[1]
    left = np.where(folded % 2, -(folded // 2) - 1, folded // 2)
    return (np.cumsum(left, axis=1) % 65536).astype(np.uint16)


def pixels_of(picture: dict) -> np.ndarray:
    return unpacked(picture["pixels"], picture["rows"], picture["columns"])


def data_of(page: str) -> dict:
    """What the page's JavaScript knows."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


@pytest.fixture
def images(tmp_path, breast) -> pd.DataFrame:
    """Four files of a woman, in the order L MLO, R MLO, L CC, R CC; the right ones are stored like left ones."""
    rows = []
    for view in ("MLO", "CC"):
        for side in "LR":
            path = write_dicom(tmp_path / f"{side}{view}.dcm", breast, WindowCenter=2000, WindowWidth=2000)
            rows.append(
                {"path": str(path), "patient_id": "7", "image_id": side + view, "laterality": side, "view": view}
            )
    return pd.DataFrame(rows)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 33)])
def test_packing_keeps_every_bit_of_16(shape):
    values = np.random.default_rng(0).integers(0, 65536, shape, dtype=np.uint16)
    values[0, 0], values[-1, -1] = 65535, 0
    np.testing.assert_array_equal(unpacked(packed(values), *shape), values)


@pytest.mark.parametrize(("bits", "kind"), [(8, np.uint8), (12, np.uint16), (16, np.uint16), (12, np.int16)])
def test_a_picture_has_the_stored_values_of_its_file(tmp_path, breast, bits, kind):
    stored = (breast.astype(np.int64) * 2**bits // 4096 - (2048 if kind == np.int16 else 0)).astype(kind)
    path = write_dicom(tmp_path / "x.dcm", stored, BitsStored=bits, HighBit=bits - 1)
    picture = embedded(Task(str(path), "L", LARGE))
    np.testing.assert_array_equal(pixels_of(picture).astype(int) + picture["smallest"], stored)
    assert not picture["mirrored"]


WINDOWS = {
    "a window": {"WindowCenter": 2000, "WindowWidth": 1500},
    "a sigmoid": {"WindowCenter": 2000, "WindowWidth": 1500, "VOILUTFunction": "SIGMOID"},
    "MONOCHROME1": {"WindowCenter": 2000, "WindowWidth": 1500, "PhotometricInterpretation": "MONOCHROME1"},
    "a slope below 0": {"WindowCenter": -2000, "WindowWidth": 1500, "RescaleSlope": -1, "RescaleIntercept": 0}
    | {"PhotometricInterpretation": "MONOCHROME1"},
    "padding": {"WindowCenter": 2000, "WindowWidth": 4000, "PixelPaddingValue": 5},
}


def as_shown(whole: dicom.WholePicture) -> np.ndarray:
    """The brightness of a picture in 0-1, as viewer.js computes it."""
    display = whole.display
    share = np.clip((whole.stored - np.float32(display.low)) / np.float32(display.high - display.low), 0, 1)
    if display.curve is not None:
        share = np.interp(share, np.linspace(0, 1, len(display.curve)), display.curve)
    bright = 1 - share if display.falling else share
    if display.padding:
        bright[(whole.stored >= display.padding[0]) & (whole.stored <= display.padding[1])] = 0
    return bright


@pytest.mark.parametrize("attributes", WINDOWS.values(), ids=WINDOWS)
def test_a_picture_looks_at_first_as_the_reader_makes_it(tmp_path, breast, attributes):
    inverted = attributes.get("PhotometricInterpretation") == "MONOCHROME1" and "RescaleSlope" not in attributes
    path = write_dicom(tmp_path / "x.dcm", 4095 - breast if inverted else breast, **attributes)
    whole = dicom.read_whole(path)
    expected = dicom.reading_steps(str(path), (400, 300))[2].picture
    np.testing.assert_allclose(as_shown(whole), expected, atol=1 / 512)
    assert as_shown(whole)[0, -1] < 0.1
    assert expected[150:250, :100].mean() > 0.2


def test_a_picture_without_a_breast_is_shown_all_the_same(tmp_path):
    pixels = np.zeros((300, 200), np.uint16)
    pixels[100:110, 100:110] = 3000
    picture = embedded(Task(str(write_dicom(tmp_path / "x.dcm", pixels)), "L", LARGE))
    assert picture["notes"][-1].startswith("no breast found")
    assert (picture["low"], picture["high"], picture["mirrored"]) == (0, 3000, False)


@needs_real_files
def test_real_files_look_as_the_reader_makes_them_and_none_is_mirrored():
    for row in metadata.load_metadata(REAL_DIR).itertuples():
        expected = dicom.reading_steps(row.path, (256, 256))[2].picture
        whole = dicom.read_whole(row.path, 0.98 * expected.size)  # sides are rounded up at each level
        np.testing.assert_allclose(as_shown(whole), expected, atol=1 / 512)
        assert whole.chest_wall == {"R": "right", "L": "left"}[row.laterality]


def test_breasts_are_hung_back_to_back_with_cc_above_mlo(images):
    woman, picture = women_of(images)[0], embedded(Task(images["path"][1], "R", LARGE))
    assert woman["exams"] == [{"name": "", "rows": [[3, 2], [1, 0]]}]
    assert picture["mirrored"]
    stored = dicom.read_whole(images["path"][1]).stored
    np.testing.assert_array_equal(pixels_of(picture), stored[:, ::-1])


def test_repeated_views_other_views_and_missing_ones_get_lines_of_their_own(images):
    df = pd.concat([images, images.iloc[[3]], images.iloc[[2]].assign(view="AT")], ignore_index=True)
    df = df[df["image_id"] != "LMLO"].reset_index(drop=True)
    (exam,) = women_of(df)[0]["exams"]
    assert exam["rows"] == [[2, 1], [3, None], [0, None], [None, 4]]


def test_views_in_lower_case_are_hung_like_others(images):
    df = images.assign(view=images["view"].str.lower())
    assert women_of(df)[0]["exams"][0]["rows"] == [[3, 2], [1, 0]]
    df = pd.concat([df, images.iloc[[3]]], ignore_index=True)
    assert women_of(df)[0]["exams"][0]["rows"] == [[3, 2], [4, None], [1, 0]]


def test_examinations_of_embed_stand_by_date_and_not_by_accession_number(images):
    first, second = (images.assign(acc_anon=number, study_date_anon=date)
                     for number, date in ((9, "2014-03-01"), (2, "2016-05-01")))  # fmt: skip
    exams = women_of(pd.concat([second, first], ignore_index=True))[0]["exams"]
    assert [exam["name"] for exam in exams] == ["2014-03-01", "2016-05-01"]


def test_examinations_stand_from_early_to_late(images):
    dates = [20210102.0, 20210101.0]  # numbers with a fraction, as pandas reads a column with an empty cell
    df = pd.concat([images.assign(date=date) for date in dates], ignore_index=True)
    assert women_of(df)[0]["exams"] == [
        {"name": "20210101", "rows": [[7, 6], [5, 4]]},
        {"name": "20210102", "rows": [[3, 2], [1, 0]]},
    ]


def test_lesions_and_maps_lie_on_the_same_tissue_after_mirroring(images):
    boxes = [np.array([[30.0, 100, 60, 200]])] * 4
    heat_map = np.zeros((40, 30), np.float32)
    heat_map[10:20, 3:6] = 1
    shown = viewer.show(images.assign(boxes=boxes), maps=dict.fromkeys(images["path"], heat_map))
    left, right = data_of(shown.page)["pictures"][:2]
    assert left["boxes"] == [[0.1, 0.25, 0.2, 0.5]]
    assert right["boxes"] == [[0.8, 0.25, 0.9, 0.5]]
    text = re.search('id="map-1">(.*?)<', shown.page)[1]
    np.testing.assert_array_equal(unpacked(text, *right["mapShape"]), np.round(255 * heat_map[:, ::-1]))


def test_pictures_are_reduced_until_the_page_has_its_size(images):
    shown = viewer.show(images, megabytes=0.1)
    pictures = data_of(shown.page)["pictures"]
    assert all(50 < picture["rows"] < 400 for picture in pictures)
    assert sum(len(text) for text in re.findall('id="pixels-.">(.*?)<', shown.page)) <= 100_000
    assert {(picture["fileRows"], picture["fileColumns"]) for picture in pictures} == {(400, 300)}


def test_texts_of_the_data_cannot_become_html(images):
    shown = viewer.show(images.assign(patient_id=HOSTILE, view=HOSTILE), {HOSTILE: [HOSTILE]})
    assert "<img" not in shown.page
    assert data_of(shown.page)["women"][0]["id"] == HOSTILE
    frame = re.fullmatch(r'<iframe [^<>]*? srcdoc="([^"]*)">[^<>]*</iframe>', shown._repr_html_())
    assert unescape(frame[1]) == shown.page


def test_a_file_that_cannot_be_read_has_its_reason_and_no_text_of_its_own(images, breast):
    Path(images["path"][0]).write_text("no DICOM")
    write_dicom(Path(images["path"][1]), breast, PhotometricInterpretation="DOE JANE")
    write_dicom(Path(images["path"][2]), np.full((400, 300), 7, np.uint16))
    pictures = data_of(viewer.show(images).page)["pictures"]
    assert pictures[0]["error"] == "not a DICOM, PNG, JPEG, TIFF or PGM file"
    assert pictures[1]["error"] == "not a greyscale image"
    assert pictures[2]["notes"] == ["every pixel has the same value, 7"]
    assert "DOE" not in json.dumps(pictures)


WRONG = {
    "no column": (lambda df: {"images": df.drop(columns="view")}, "lacks the columns view"),
    "no side": (lambda df: {"images": df.assign(laterality="B")}, "neither in 4 rows, first of .*LMLO.dcm"),
    "an unknown woman": (lambda df: {"images": df, "lists": {"misses": ["8"]}}, "list 'misses': 1 women .*first 8"),
    "an unknown map": (lambda df: {"images": df, "maps": {"x.dcm": np.zeros((2, 2))}}, "1 maps .*first x.dcm"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_the_table_is_an_error_that_names_it(images, arguments, message):
    with pytest.raises(ValueError, match=message):
        viewer.show(**arguments(images))


def test_nothing_to_show_is_said_so(images):
    with pytest.raises(UnavailableError, match="no images"):
        viewer.show(images.iloc[:0])
    with pytest.raises(UnavailableError, match="0 megabytes"):
        viewer.show(images, megabytes=0)


def test_the_lesions_of_generated_data_are_in_the_files_pixels(generated):
    df = viewer.with_lesions(metadata.load_metadata(generated), generated)
    known = pd.read_csv(generated / "lesions.csv", dtype={"image_id": str}).query("cancer == 1")
    assert df["boxes"].map(len).sum() == len(known) > 0
    assert set(df.loc[df["boxes"].map(len) > 0, "image_id"]) == set(known["image_id"])
    assert not viewer.with_lesions(df, generated / "nowhere")["boxes"].map(len).any()


def test_lesions_without_a_box_are_a_fault_with_their_row(tmp_path):
    rows = "patient_id,image_id,cancer,x_min,y_min,x_max,y_max\n1,2,1,0,0,5,5\n1,3,1,0,,5,5\n"
    (tmp_path / "lesions.csv").write_text(rows)
    with pytest.raises(UnavailableError, match="the box in row 3 is not four numbers"):
        metadata.lesion_boxes(tmp_path)


def test_a_benign_row_needs_no_box_and_a_fault_is_logged(tmp_path, caplog):
    rows = "patient_id,image_id,cancer,x_min,y_min,x_max,y_max\n1,2,0,,,,\n1,3,1,0,1,5,6\n"
    (tmp_path / "lesions.csv").write_text(rows)
    assert metadata.lesion_boxes(tmp_path)["1", "3"].tolist() == [[0, 1, 5, 6]]
    (tmp_path / "lesions.csv").write_text(rows + "1,4,1,,,,\n")
    images = pd.DataFrame({"patient_id": ["1"], "image_id": ["3"]})
    assert not viewer.with_lesions(images, tmp_path)["boxes"].map(len).any()
    assert "row 4" in caplog.text


# ---------------------------------------------------------------- in a browser

READY = "document.querySelector('#hanging')?.getAttribute('aria-busy') === 'false'"
PIXELS = """[...document.querySelectorAll('.tile canvas')].map(canvas => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', {willReadFrequently: true});
  copy.drawImage(canvas, 0, 0);
  const {data} = copy.getImageData(0, 0, canvas.width, canvas.height);
  let sum = 0, places = 0, orange = 0, blue = 0;
  for (let i = 0; i < data.length; i += 4) {
    sum += data[i + 1];
    places += data[i + 1] * (i % 9973);
    orange += data[i] > data[i + 2] + 20;
    blue += data[i + 2] > data[i] + 20;
  }
  return {sum, places, orange, blue};
})"""
DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"


@pytest.fixture(scope="module")
def page(generated, tmp_path_factory) -> Path:
    """Three generated women, the first one with cancer, and a list of the other two; every image has a map."""
    df = viewer.with_lesions(metadata.load_metadata(generated), generated)
    cancer = df.groupby("patient_id")["cancer"].max()
    ids = [cancer.index[cancer == 1][0], *cancer.index[cancer == 0][:2]]
    chosen = pd.concat([df[df["patient_id"] == each] for each in ids]).assign(score=0.25)
    chosen = chosen[chosen["view"].isin(["CC", "MLO"])].drop_duplicates(["patient_id", "laterality", "view"])
    maps = dict.fromkeys(chosen["path"], np.full((8, 8), 0.5, np.float32))
    return viewer.show(chosen, {"without cancer": ids[1:]}, maps).save(tmp_path_factory.mktemp("page") / "women.html")


@pytest.fixture
def browser(page, tmp_path):
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        browser.wait_for(READY)
        yield browser
    assert browser.errors == []
    assert browser.requests == [page.as_uri()]


def seen(browser: Browser, name: str = "sum") -> list[int]:
    """What the four canvases show, once all changes are drawn."""
    browser.value(DRAWN)
    return [each[name] for each in browser.value(PIXELS)]


def middle(browser: Browser, number: int = 0) -> tuple[float, float]:
    """A place on the screen within the breast of a tile."""
    box = f"document.querySelectorAll('.tile canvas')[{number}].getBoundingClientRect()"
    x, y, width, height = browser.value(f"(b => [b.x, b.y, b.width, b.height])({box})")
    return x + width * (0.85 if number % 2 == 0 else 0.15), y + height / 2


needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium")


@needs_chromium
def test_the_browser_has_the_stored_values(browser, page):
    pictures = data_of(page.read_text())["pictures"]
    text = re.search('id="pixels-1">(.*?)<', page.read_text())[1]
    shape = pictures[1]["rows"], pictures[1]["columns"]
    values = browser.value(f"unpacked('pixels-1', {shape[0]}, {shape[1]}).then(level => Array.from(level.values))")
    np.testing.assert_array_equal(np.array(values).reshape(shape), unpacked(text, *shape))


@needs_chromium
def test_dragging_changes_the_window_of_all_four_and_0_resets_it(browser):
    browser.key("o")
    before = seen(browser)
    assert len(before) == 4
    assert min(before) > 0
    browser.drag(middle(browser), (0, -40))
    brighter = seen(browser)
    assert all(np.greater(brighter, before))
    browser.drag(middle(browser), (0, 80))
    assert all(np.less(seen(browser), before))
    browser.key("0")
    assert seen(browser) == before


@needs_chromium
def test_the_wheel_zooms_and_shift_dragging_moves_all_four(browser):
    browser.key("o")
    browser.key("b")
    before, places = seen(browser), seen(browser, "places")
    browser.mouse("mouseWheel", *middle(browser), deltaX=0, deltaY=-200)
    assert all(np.greater(seen(browser), before))
    browser.key("0")
    browser.drag(middle(browser), (-60, 0), modifiers=8)
    assert all(np.not_equal(seen(browser, "places"), places))
    assert browser.value("view.across") == pytest.approx(60 / browser.value("tiles[0].canvas.clientWidth"), rel=0.01)
    # right and left breasts move like mirror images, away from the middle
    gaps = (
        "tiles.map(tile => [place(tile), tile]).map(([at, tile]) => tile.picture.laterality === 'L' ? at.x : "
        "tile.canvas.width - at.x - at.w)"
    )
    assert browser.value(gaps) == pytest.approx([60] * 4, abs=1)
    browser.value("document.getElementById('reset').click()")
    assert seen(browser) == before


@needs_chromium
def test_what_is_under_the_mouse_stays_there(browser):
    where = middle(browser, 1)
    left = "tiles[1].canvas.getBoundingClientRect().x"
    share = f"(({{x, w}}) => (({where[0]} - {left}) * devicePixelRatio - x) / w)(place(tiles[1]))"
    before = browser.value(share)
    browser.mouse("mouseWheel", *where, deltaX=0, deltaY=-400)
    browser.value(DRAWN)
    assert browser.value("view.zoom") > 2
    assert browser.value(share) == pytest.approx(before, abs=0.003)  # a pixel of the screen


@needs_chromium
def test_keys_switch_and_fade_the_map_and_the_lesions(browser):
    first = seen(browser, "orange")
    assert min(first) > 1000
    browser.key("o")
    assert seen(browser, "orange") == [0] * 4
    assert max(seen(browser, "blue")) > 0
    browser.key("b")
    assert seen(browser, "blue") == [0] * 4
    browser.key("o")
    dense = seen(browser)
    for _ in range(3):
        browser.key("-")
    assert browser.value("document.getElementById('fade').value") == "0.3"
    assert seen(browser) != dense
    for _ in range(3):
        browser.key("+")
    assert seen(browser) == dense
    assert browser.value("document.getElementById('boxes').getAttribute('aria-pressed')") == "false"


@needs_chromium
def test_arrows_go_through_the_women_and_the_list_chooses_them(browser, page):
    ids = [woman["id"] for woman in data_of(page.read_text())["women"]]
    title = "document.getElementById('woman').textContent"
    before = seen(browser)
    browser.key("ArrowLeft")
    assert browser.value(title) == f"Woman {ids[0]} (1 of 3)"
    browser.key("ArrowRight")
    browser.wait_for(READY)
    assert browser.value(title) == f"Woman {ids[1]} (2 of 3)"
    assert seen(browser) != before
    browser.key("ArrowRight")
    browser.key("ArrowLeft")
    browser.key("ArrowLeft")
    browser.wait_for(READY)
    assert browser.value(title) == f"Woman {ids[0]} (1 of 3)"
    assert seen(browser) == before
    select = (
        "(s => {s.value = 'without cancer'; s.dispatchEvent(new Event('change'))})(document.getElementById('list'))"
    )
    browser.value(select)
    browser.wait_for(READY)
    assert browser.value(title) == f"Woman {ids[1]} (1 of 2)"
    assert "no cancer · score 0.250" in browser.value("document.querySelector('.tile .title').textContent")


@needs_chromium
def test_every_control_has_a_name(browser):
    names = """[...document.querySelectorAll('button, select, input, canvas')].map(each =>
      each.textContent || each.getAttribute('aria-label') || each.labels?.[0]?.textContent || '')"""
    assert all(len(name.strip()) > 2 for name in browser.value(names))


@needs_chromium
def test_the_frame_of_a_notebook_shows_the_same_without_the_network(images, tmp_path):
    shown = viewer.show(images.assign(patient_id=HOSTILE, view=["MLO", "MLO", "CC", HOSTILE]), {HOSTILE: [HOSTILE]})
    (tmp_path / "notebook.html").write_text(f"<!DOCTYPE html><p>Above</p>{shown._repr_html_()}")
    with Browser(tmp_path / "profile") as browser:
        browser.open(tmp_path / "notebook.html")
        browser.enter_frame()
        browser.wait_for(READY)
        assert min(seen(browser)) > 0
        assert HOSTILE in browser.value("document.getElementById('woman').textContent")
        assert "center 2000, width 2000; " in browser.value("document.querySelector('.tile .state').textContent")
        assert browser.value("document.querySelectorAll('img').length") == 0
    assert browser.errors == []
    assert browser.requests == [(tmp_path / "notebook.html").as_uri()]


@pytest.fixture
def jupyterlab(tmp_path, monkeypatch):
    """The address of a JupyterLab whose folder is `tmp_path`; it is left alone by the settings of whoever runs this."""
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"--no-browser --ip=127.0.0.1 --port={port} --IdentityProvider.token= --ServerApp.root_dir={tmp_path}"
    command = [sys.executable, "-m", "jupyterlab", *options.split(), "--allow-root", "--LabApp.news_url=None"]
    with (tmp_path / "lab.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    yield f"http://127.0.0.1:{port}"
    process.kill()  # asked to end, it may wait for minutes; it has no kernel
    process.wait(60)


@pytest.mark.slow
@needs_chromium
def test_jupyterlab_shows_the_viewer_of_an_executed_notebook(images, tmp_path, jupyterlab):
    shown = viewer.show(images)
    output = new_output("display_data", {"text/html": shown._repr_html_(), "text/plain": repr(shown)})
    notebook = new_notebook(cells=[new_code_cell("viewer.show(images)", outputs=[output])])
    nbformat.write(notebook, tmp_path / "executed.ipynb")
    trust = [sys.executable, "-m", "jupyter", "trust", str(tmp_path / "executed.ipynb")]
    subprocess.run(trust, check=True, capture_output=True)
    with Browser(tmp_path / "profile") as browser:
        address = f"{jupyterlab}/lab/tree/executed.ipynb"
        browser.wait_until(lambda: is_served(jupyterlab))
        browser.open(address)
        browser.enter_frame()
        browser.wait_for(READY)
        before = len(browser.errors), len(browser.requests)
        first = seen(browser)
        assert min(first) > 0
        browser.key("+")
        browser.drag(middle(browser), (0, -40))
        assert all(np.greater(seen(browser), first))
    assert (len(browser.errors), len(browser.requests)) == before


def is_served(address: str) -> bool:
    try:
        return requests.get(f"{address}/api", timeout=5).ok
    except requests.ConnectionError:
        return False


def test_the_images_of_a_run_come_in_the_order_of_the_women(generated, tmp_path):
    from rsna_nb import evaluation
    from tests.test_evaluation import write_run

    table = metadata.load_metadata(generated).drop(columns="path").assign(score=0.5, split="validation")
    run = write_run(tmp_path / "20261123-101530-fake", table, data_dir=str(generated))
    evaluated = evaluation.evaluate(run)
    women = evaluated.predictions["patient_id"].drop_duplicates().tolist()[2:0:-1]
    cases = {"hits": pd.DataFrame({"patient_id": women}), "misses": pd.DataFrame({"patient_id": women[1:]})}
    df = viewer.images_of(evaluated, cases)
    assert df["patient_id"].drop_duplicates().tolist() == women
    shown = data_of(viewer.show_examples(df, cases, megabytes=1).page)
    assert shown["lists"] == {"all women": women, "hits": women, "misses": women[1:]}
    assert df["path"].map(lambda path: Path(path).is_file()).all()
    assert "boxes" in df
    with pytest.raises(UnavailableError, match="no women"):
        viewer.images_of(evaluated, {"hits": pd.DataFrame({"patient_id": []})})
    nowhere = write_run(tmp_path / "20261123-101531-fake", table, data_dir=str(tmp_path / "gone"))
    with pytest.raises(UnavailableError, match="gone"):
        viewer.images_of(evaluation.evaluate(nowhere), cases)
