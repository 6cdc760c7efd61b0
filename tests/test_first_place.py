"""The preprocessing of the challenge's winner: the detector, the crop, the window, the resizing and the store.

The literal script here is written from the recipe's description, with NumPy for the arithmetic, and shares only the
decoder with the package.
"""

from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless

from rsna_nb import dicom, prepare
from rsna_nb.config import ImageRecipe, RunConfig
from rsna_nb.dicom import yolox
from rsna_nb.dicom.roi import find_region, load_detector
from rsna_nb.dicom.source import open_frame
from rsna_nb.explain.geometry import Geometry
from rsna_nb.metadata import load_metadata
from rsna_nb.prepare import image_file, prepare_images, read_pictures, store_path, to_8_bits
from rsna_nb.system import write_arrays
from tests.conftest import REAL_DIR, needs_real_files, write_dicom

RECIPE = ImageRecipe("rsna-first-place")
SIZE = (128, 96)
WINDOW = {"WindowCenter": 2049, "WindowWidth": 4095}


def random_tensors() -> dict[str, np.ndarray]:
    rng, tensors = np.random.default_rng(0), {}
    for name, shape in sorted(yolox.expected_shapes().items()):
        if name.endswith(("running_var", "bn.weight")):
            tensors[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            gain = 0.01 if "stem.conv" in name else 1.2  # the stem's input has 0-255
            scale = gain / np.sqrt(np.prod(shape[1:])) if len(shape) == 4 else 0.3
            tensors[name] = rng.normal(0, scale, shape).astype(np.float32)
    return tensors


def constant_tensors(box: tuple[float, ...], confidence: float = 0.9) -> dict[str, np.ndarray]:
    """Tensors of a detector that finds the same box (x_min, y_min, x_max, y_max of 416) in every picture."""
    tensors = {name: np.zeros(shape, np.float32) for name, shape in yolox.expected_shapes().items()}
    tensors |= {name: np.ones_like(each) for name, each in tensors.items() if name.endswith("running_var")}
    for level in range(3):
        tensors[f"head.obj_preds.{level}.bias"][:] = 20 if level == 0 else -20
        tensors[f"head.cls_preds.{level}.bias"][:] = np.log(confidence / (1 - confidence))
    x_min, y_min, x_max, y_max = np.array(box) / 8  # in cells of the finest output; the first cell is at 0, 0
    width, height = np.log(x_max - x_min), np.log(y_max - y_min)
    tensors["head.reg_preds.0.bias"][:] = (x_min + x_max) / 2, (y_min + y_max) / 2, width, height
    return tensors


def detector_file(path: Path, *arguments: object) -> ImageRecipe:
    write_arrays(path, constant_tensors(*arguments))
    return ImageRecipe("rsna-first-place", path)


# The detector


def test_the_network_has_the_published_tensors():
    shapes = yolox.expected_shapes()
    assert (len(shapes), sum(int(np.prod(shape)) for shape in shapes.values())) == (538, 912_146)
    assert shapes["backbone.backbone.stem.conv.conv.weight"] == (16, 12, 3, 3)
    assert shapes["backbone.backbone.dark3.1.m.2.conv2.dconv.conv.weight"] == (32, 1, 3, 3)
    assert shapes["backbone.backbone.dark5.1.conv2.conv.weight"] == (256, 512, 1, 1)
    assert shapes["backbone.C3_p4.conv1.conv.weight"] == (64, 256, 1, 1)
    assert shapes["head.cls_preds.2.weight"] == (1, 64, 1, 1)
    assert shapes["head.reg_preds.0.bias"] == (4,)


def test_outputs_equal_those_of_the_published_implementation():
    # yolox of the winner's repository (PyTorch 2.14, float32): YOLOX(YOLOPAFPN(0.33, 0.25, depthwise=True),
    # YOLOXHead(1, 0.25, depthwise=True)).eval() with BatchNorm's eps = 1e-3, decode_in_inference = False, these tensors
    # and this picture in three channels.
    y, x = np.mgrid[:416, :416].astype(np.float32)
    picture = np.where(x < 300, 127.5 + 127.5 * np.sin(x / 17) * np.cos(y / 23), 114).astype(np.float32)
    expected = {
        0: [-0.93296, 0.10966, 0.52011, 0.34935, 0.33388, 0.5956],
        1000: [-0.49191, 0.09725, 0.33076, 0.65572, 0.37479, 0.59626],
        2703: [-0.29703, 0.02934, 0.32137, 0.65886, 0.41871, 0.66187],
        2704: [-0.33551, -0.45632, 0.2617, 0.04663, 0.5599, 0.52126],
        3380: [-0.00605, -0.58965, 0.01445, 0.02544, 0.50093, 0.55585],
        3548: [-0.21643, -0.68155, 0.11043, 0.3326, 0.55843, 0.55821],
    }
    detector = yolox.Yolox(random_tensors() | {"backbone.backbone.stem.conv.bn.num_batches_tracked": np.array(7)})
    found = detector.outputs(picture)
    assert (found.shape, found.dtype) == ((3549, 6), np.float32)
    np.testing.assert_allclose(found[list(expected)], list(expected.values()), atol=1e-4)
    box, confidence = detector.best_box(picture)  # decoded by the same implementation: cell 3509
    assert box == pytest.approx([361.663, 246.044, 395.029, 289.939], abs=2e-3)
    assert confidence == pytest.approx(0.325782, abs=1e-5)


@pytest.mark.parametrize(("stride", "depthwise"), [(1, False), (1, True), (2, True)])
def test_a_convolution_equals_its_sum_written_out(stride, depthwise):
    rng = np.random.default_rng(1)
    x, bias = rng.normal(size=(6, 8, 3)), rng.normal(size=3 if depthwise else 5)
    kernel = rng.normal(size=(3, 3, 3) if depthwise else (3, 3, 3, 5))
    found = yolox.convolve(x, kernel, bias, stride)
    for row, column in np.ndindex(found.shape[:2]):
        expected = bias.copy()
        for i, j in np.ndindex(3, 3):
            y, z = row * stride + i - 1, column * stride + j - 1
            if 0 <= y < 6 and 0 <= z < 8:
                expected += x[y, z] * kernel[i, j] if depthwise else x[y, z] @ kernel[i, j]
        np.testing.assert_allclose(found[row, column], expected)


def test_a_block_applies_batch_normalisation_after_its_convolution_and_then_silu():
    tensors, name = random_tensors(), "head.stems.0"
    x = np.random.default_rng(2).normal(size=(2, 3, 64)).astype(np.float32)
    norm = {part: tensors[f"{name}.bn.{part}"] for part in yolox.NORM}
    y = x @ tensors[f"{name}.conv.weight"][:, :, 0, 0].T
    y = (y - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-3) * norm["weight"] + norm["bias"]
    np.testing.assert_allclose(yolox.Yolox(tensors)._unit(name, x), y / (1 + np.exp(-y)), atol=1e-5)


def test_the_box_of_a_cell_is_decoded_by_its_place_and_stride():
    tensors = constant_tensors((40, 80, 240, 400))
    box, confidence = yolox.Yolox(tensors).best_box(np.zeros((416, 416), np.float32))
    np.testing.assert_allclose(box, (40, 80, 240, 400), rtol=1e-6)
    assert confidence == pytest.approx(0.9)
    cells, strides = yolox._cells(), yolox._strides()
    assert cells[[0, 1, 52, 2703, 2704, 2705, 3380, 3548]].tolist() == [
        *([0, 0], [1, 0], [0, 1], [51, 51]),
        *([0, 0], [1, 0], [0, 0], [12, 12]),
    ]
    assert strides[[0, 2703, 2704, 3379, 3380, 3548]].tolist() == [8, 8, 16, 16, 32, 32]


def test_tensors_of_another_network_are_named():
    tensors = random_tensors()
    del tensors["head.stems.1.bn.bias"]
    tensors |= {"head.cls_preds.0.bias": np.zeros(80), "classifier.weight": np.zeros((2, 3))}
    tensors["head.obj_preds.0.bias"] = np.array([np.nan])
    with pytest.raises(dicom.DetectorError) as error:
        yolox.Yolox(tensors)
    assert "1 missing: head.stems.1.bn.bias (64,)" in str(error.value)
    assert "1 superfluous: classifier.weight (2, 3)" in str(error.value)
    assert "1 of another shape: head.cls_preds.0.bias (80,) instead of (1,)" in str(error.value)
    assert "1 not finite: head.obj_preds.0.bias" in str(error.value)


def test_a_detector_that_cannot_be_used_is_an_error_and_not_the_reason_of_each_file(breast, tmp_path):
    path = write_dicom(tmp_path / "x.dcm", breast)
    recipe = ImageRecipe("rsna-first-place", tmp_path / "roi.npz")
    for content, reason in ((None, "file is missing"), (b"no arrays", "is damaged")):
        if content:
            (tmp_path / "roi.npz").write_bytes(content)
        with pytest.raises(dicom.DetectorError, match=reason):
            dicom.read(path, 64, recipe)
        with pytest.raises(dicom.DetectorError, match=reason):
            next(read_pictures([str(path)], (64, 64), recipe))
        with pytest.raises(dicom.DetectorError, match=reason):
            store_path("stores", "data", 64, recipe)
    write_arrays(tmp_path / "roi.npz", {"weight": np.zeros(3)})
    with pytest.raises(dicom.DetectorError, match=r"roi\.npz: the tensors are not those of a YOLOX-nano"):
        dicom.read(path, 64, recipe)
    with pytest.raises(ValueError, match="must be breast or rsna-first-place, not 'second-place'"):
        dicom.read(path, 64, ImageRecipe("second-place"))


# The crop


def test_the_detectors_box_becomes_the_crop(breast, tmp_path):
    path = write_dicom(tmp_path / "x.dcm", breast, **WINDOW)  # 400 x 300: 1.04 pixels of 416 for each of the file's
    reading = dicom.read(path, SIZE, detector_file(tmp_path / "roi.npz", (52.5, 104.5, 208.5, 390.5)))
    assert (reading.crop, reading.notes, reading.level) == ((50, 100, 200, 375), (), 0)
    beyond = detector_file(tmp_path / "roi.npz", (-20, -10, 900, 390.5))  # the same file, changed: read again
    assert dicom.read(path, SIZE, beyond).crop == (0, 0, 300, 375)


@pytest.mark.parametrize("arguments", [((52, 104, 104, 190), 0.9), ((52, 104, 208, 390), 0.49)])
def test_a_small_or_doubtful_box_leaves_the_crop_to_otsus_threshold(arguments, breast, tmp_path):
    path = write_dicom(tmp_path / "x.dcm", breast, **WINDOW)
    reading = dicom.read(path, SIZE, detector_file(tmp_path / "roi.npz", *arguments))
    plain = dicom.read(path, SIZE, RECIPE)
    assert (reading.crop, reading.notes, plain.notes) == (plain.crop, ("otsu",), ())
    assert np.abs(np.array(plain.crop) - (0, 50, 180, 350)).max() < 8  # of the breast


def test_a_frame_without_a_large_region_is_kept_whole(tmp_path):
    pixels = np.full((400, 300), 10, np.uint16)
    pixels[100:120, 100:120] = 3000
    reading = dicom.read(write_dicom(tmp_path / "x.dcm", pixels, **WINDOW), SIZE, RECIPE)
    assert (reading.crop, reading.notes) == ((0, 0, 300, 400), ("whole frame",))
    assert "whole frame" in dicom.NOTES


def test_the_detector_sees_the_frame_at_the_upper_left_of_grey(monkeypatch):
    seen = []
    monkeypatch.setattr(yolox.Yolox, "best_box", lambda self, picture: seen.append(picture) or (np.zeros(4), 0.0))
    find_region(np.full((832, 416), 200, np.float32), yolox.Yolox(random_tensors()))
    np.testing.assert_array_equal(seen[0], np.where(np.arange(416) < 208, 200, 114) * np.ones((416, 1)))


# The window


@pytest.mark.parametrize(
    ("attributes", "window", "notes"),
    [
        (WINDOW, "LINEAR 2049 4095", ()),
        ({"WindowCenter": [1800, 2], "WindowWidth": [900, 3]}, "LINEAR 1800 900", ()),
        (WINDOW | {"VOILUTFunction": "LINEAR_EXACT"}, "LINEAR_EXACT 2049 4095", ()),
        (WINDOW | {"VOILUTFunction": "SIGMOID"}, "SIGMOID 2049 4095", ()),
        (WINDOW | {"VOILUTFunction": "CUBIC"}, "min-max 5 {} (unknown function 2049 4095 cannot be used)", ("window",)),
        ({"WindowCenter": 2, "WindowWidth": 1}, "min-max 5 {} (LINEAR 2 1 cannot be used)", ("window",)),
        ({}, "min-max 5 {}", ()),
    ],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_grey_levels_follow_the_first_window_or_the_range(attributes, window, notes, photometric, breast, tmp_path):
    pixels = breast if photometric == "MONOCHROME2" else 4095 - breast
    path = write_dicom(tmp_path / "x.dcm", pixels, PhotometricInterpretation=photometric, **attributes)
    reading = dicom.read(path, SIZE, RECIPE)
    x_min, y_min, x_max, y_max = reading.crop
    crop = pixels[y_min:y_max, x_min:x_max]
    assert reading.window == window.format(crop.max()).replace("min-max 5", f"min-max {crop.min()}")
    assert (reading.notes, reading.photometric) == (notes, photometric)
    assert_same_levels(reading.picture, literal(pixels, reading.crop, path, SIZE), 30)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, None])
def test_the_window_of_files_decoded_on_a_gpu_is_rounded_to_16_bits(syntax, breast, tmp_path):
    path = write_dicom(tmp_path / "x.dcm", breast, *filter(None, [syntax]), **WINDOW)
    assert dicom.read(path, SIZE, RECIPE).window == ("LINEAR 2048 4096" if syntax else "LINEAR 2049 4095")
    large = write_dicom(tmp_path / "y.dcm", breast, JPEG2000Lossless, WindowCenter=2048, WindowWidth=70000)
    assert dicom.read(large, SIZE, RECIPE).window == "LINEAR 2048 70000"  # infinite in 16 bits


def test_a_file_that_is_not_dicom_has_no_window(breast, tmp_path):
    grey = np.clip(breast // 16, 10, 200).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "x.png"), grey)
    reading = dicom.read(tmp_path / "x.png", SIZE, RECIPE)
    x_min, y_min, x_max, y_max = reading.crop
    crop = grey[y_min:y_max, x_min:x_max]
    assert (reading.window, reading.format) == (f"min-max {crop.min()} {crop.max()}", "PNG")
    assert reading.picture.max() > 0.8


@pytest.mark.parametrize(
    ("value", "attributes", "reason"),
    [
        (7, WINDOW, "every pixel has the same value, 7"),
        (None, {"WindowCenter": 9000, "WindowWidth": 10}, r"the image is black.*LINEAR 9000 10"),
        (None, {"SamplesPerPixel": 3}, "SamplesPerPixel"),
    ],
)
def test_a_file_that_shows_nothing_is_refused(value, attributes, reason, breast, tmp_path):
    pixels = breast if value is None else np.full_like(breast, value)
    with pytest.raises(dicom.DicomError, match=reason):
        dicom.read(write_dicom(tmp_path / "x.dcm", pixels, **attributes), SIZE, RECIPE)


def test_pixels_that_are_not_square_are_made_square(breast, tmp_path):
    flat = write_dicom(tmp_path / "x.dcm", breast[::2], PixelAspectRatio=[2, 1], **WINDOW)
    reading, plain = (
        dicom.read(path, SIZE, RECIPE) for path in (flat, write_dicom(tmp_path / "y.dcm", breast, **WINDOW))
    )
    x_min, y_min, x_max, y_max = reading.crop
    assert np.abs(np.array([x_min, 2 * y_min, x_max, 2 * y_max]) - plain.crop).max() <= 6
    assert reading.aspect == 2
    assert np.mean((reading.picture > 0) != (plain.picture > 0)) < 0.03


# The whole preprocessing


def literal(pixels: np.ndarray, box: tuple[int, ...], path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The picture, uint8, from the description of the recipe."""
    header = pydicom.dcmread(path, stop_before_pixels=True)
    crop = pixels[box[1] : box[3], box[0] : box[2]].astype(float)
    center, width = (np.atleast_1d(header.get(name, np.nan))[0] for name in ("WindowCenter", "WindowWidth"))
    if "JPEG" in header.file_meta.TransferSyntaxUID.name:
        center, width = float(np.float16(center)), float(np.float16(width))
    function = header.get("VOILUTFunction", "LINEAR")
    if function == "SIGMOID":
        crop = 255 / (1 + np.exp(-4 * (crop - center) / width))
    elif function in ("LINEAR", "LINEAR_EXACT") and width > 1:
        center, width = (center - 0.5, width - 1) if function == "LINEAR" else (center, width)
        crop = np.clip(255 * ((crop - center) / width + 0.5), 0, 255)
    else:
        crop = 255 * (crop - crop.min()) / (crop.max() - crop.min())
    if header.PhotometricInterpretation == "MONOCHROME1":
        crop = 255 - crop
    inner = interpolated(crop, scaled(crop.shape, shape))
    top, left = (shape[0] - inner.shape[0]) // 2, (shape[1] - inner.shape[1]) // 2
    picture = np.zeros(shape, np.uint8)
    picture[top : top + inner.shape[0], left : left + inner.shape[1]] = inner.astype(np.uint8)
    return picture


def scaled(own: tuple[int, ...], shape: tuple[int, int]) -> tuple[int, int]:
    ratio = min(shape[0] / own[0], shape[1] / own[1])
    return int(own[0] * ratio), int(own[1] * ratio)


def interpolated(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bilinear interpolation of pixel centres, without averaging."""
    for axis in (0, 1):
        own, side = values.shape[axis], shape[axis]
        at = np.maximum((np.arange(side) + 0.5) * own / side - 0.5, 0)
        below = np.floor(at).astype(int)
        above, weight = np.minimum(below + 1, own - 1), np.expand_dims(at - below, 1 - axis)
        values = values.take(below, axis) * (1 - weight) + values.take(above, axis) * weight
    return values


def literal_otsu(pixels: np.ndarray, inverted: bool) -> list[int]:
    rows, columns = pixels.shape
    grey = 255.0 * (pixels - pixels.min().astype(float)) / (int(pixels.max()) - int(pixels.min()))
    ratio = min(416 / rows, 416 / columns)
    small = interpolated(255 - grey if inverted else grey, scaled(pixels.shape, (416, 416))).astype(np.uint8)
    small[small > np.percentile(small, 95)] = small.min()
    small = cv2.GaussianBlur(small, (5, 5), 0)
    mask = cv2.dilate((small > cv2.threshold(small, 0, 1, cv2.THRESH_OTSU)[0]).astype(np.uint8), np.ones((3, 3)))
    outline = max(cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=cv2.contourArea)
    assert cv2.contourArea(outline) >= 0.04 * small.size
    x, y, width, height = cv2.boundingRect(outline)
    sides = zip((x, y, x + width, y + height), (columns, rows) * 2, strict=True)
    return [min(int(side / ratio), most) for side, most in sides]


def assert_same_levels(picture: np.ndarray, expected: np.ndarray, most: int) -> None:
    """Assert that levels differ by at most one, by rounding, in at most `most` pixels."""
    difference = np.abs(np.rint(255 * picture).astype(int) - expected)
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= most


@needs_real_files
@pytest.mark.parametrize("image", [0, *(pytest.param(image, marks=pytest.mark.slow) for image in range(1, 8))])
def test_a_real_file_gives_the_picture_of_a_literal_script(image):
    path = sorted(REAL_DIR.glob("train_images/*/*.dcm"))[image]
    pixels = open_frame(path).pyramid.level(0)
    reading = dicom.read(path, (2048, 1024), RECIPE)
    assert list(reading.crop) == literal_otsu(pixels, reading.photometric == "MONOCHROME1")
    expected = literal(pixels, reading.crop, path, (2048, 1024))
    assert_same_levels(reading.picture, expected, 20)  # of two million


def test_the_store_holds_exactly_the_pictures_levels(breast, tmp_path):
    picture = dicom.read_mammogram(write_dicom(tmp_path / "x.dcm", breast, **WINDOW), SIZE, RECIPE)
    assert picture.dtype == np.float32
    np.testing.assert_array_equal(to_8_bits(picture).astype(np.float32) / 255, picture)


def test_the_steps_end_in_the_picture_and_show_the_whole_frame_before(breast, tmp_path):
    path = write_dicom(tmp_path / "x.dcm", 4095 - breast, PhotometricInterpretation="MONOCHROME1", **WINDOW)
    stored, windowed, upright, cropped, sized = dicom.reading_steps(str(path), SIZE, RECIPE)
    reading = dicom.read(path, SIZE, RECIPE)
    x_min, y_min, x_max, y_max = reading.crop
    assert stored.picture.shape == windowed.picture.shape == upright.picture.shape == (400, 300)
    assert windowed.picture[0, -1] > 0.9 > 0.1 > upright.picture[0, -1]
    assert (cropped.name, cropped.picture.shape) == ("cropped: Otsu", (y_max - y_min, x_max - x_min))
    np.testing.assert_array_equal(sized.picture, reading.picture)


def test_a_spot_in_the_image_maps_to_its_place_in_the_file(breast, tmp_path):
    breast[150:166, 60:76] = 4095
    reading = dicom.read(write_dicom(tmp_path / "x.dcm", breast, **WINDOW), (101, 75), RECIPE)
    geometry = Geometry.of(reading, (101, 75), RECIPE)
    y, x = np.nonzero(reading.picture > 0.95)
    found = geometry.to_file(np.array([[x.min(), y.min(), x.max() + 1, y.max() + 1]], float))[0]
    assert np.abs(found - (60, 150, 76, 166)).max() <= 1.1 / geometry.scale.min()
    height, width = scaled((reading.crop[3] - reading.crop[1], reading.crop[2] - reading.crop[0]), (101, 75))
    assert (geometry.inner.height, geometry.inner.width) == (height, width)
    assert geometry.map_to_file(np.ones((101, 75))).sum() == np.prod(np.subtract(reading.crop[2:], reading.crop[:2]))


# The store


def test_stores_of_other_recipes_have_other_names_and_that_of_breast_keeps_its_name(tmp_path):
    own = store_path("stores", "/data/rsna", 512)
    assert own.name == store_path("stores", "/data/rsna", 512, ImageRecipe()).name == "rsna-512x512-298a649c"
    recipes = [RECIPE, *(detector_file(tmp_path / f"{n}.npz", (0, 0, 100, 100 + n)) for n in (1, 2))]
    names = [store_path("stores", "/data/rsna", 512, recipe).name for recipe in recipes]
    assert len({*names}) == 3
    assert all(name.startswith("rsna-512x512-rsna-first-place-") for name in names)
    (tmp_path / "copy.npz").write_bytes((tmp_path / "1.npz").read_bytes())
    copy = ImageRecipe("rsna-first-place", tmp_path / "copy.npz")
    assert store_path("stores", "/data/rsna", 512, copy).name == names[1]


@pytest.mark.slow
def test_worker_processes_prepare_and_read_by_the_recipe(generated, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare.reading, "MAX_HERE", 2)
    recipe, few = detector_file(tmp_path / "roi.npz", (0, 0, 416, 300)), load_metadata(generated).head(3)
    ledger = prepare_images(few, generated, tmp_path, 64, recipe=recipe)
    store = store_path(tmp_path, generated, 64, recipe)
    pictures = dict(read_pictures(few["path"].tolist(), (64, 64), recipe))
    for position, row in enumerate(few.itertuples()):
        expected = to_8_bits(dicom.read_mammogram(row.path, 64, recipe))
        png = cv2.imread(str(image_file(store, row.patient_id, row.image_id)), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(png, expected)
        np.testing.assert_array_equal(pictures[position].image, expected)
        assert dicom.read(row.path, 64, recipe).crop == tuple(map(int, ledger["crop"][position].split()))
    assert (ledger["level"] == 0).all()


def test_a_run_of_the_recipe_has_its_own_images(generated, stores, caplog):
    from rsna_nb.training import data

    folders = {"data_dir": str(generated), "store_dir": stores}
    config = RunConfig(**folders, img_size=64, limit_patients=12, reading="rsna-first-place")
    found = data.prepare(config, *data.split_table(config))
    assert found.store == store_path(stores, generated, 64, RECIPE) != store_path(stores, generated, 64)
    assert all(Path(file).is_relative_to(found.store) for file in found.table["file"])  # so is the feature bank
    assert "without a breast detector: Otsu's threshold crops every image" in caplog.text
    assert (found.ledger["level"] == 0).all()


def test_a_detector_is_read_from_the_disk_once(tmp_path):
    recipe = detector_file(tmp_path / "roi.npz", (0, 0, 100, 100))
    assert load_detector(recipe.detector) is load_detector(recipe.detector)
