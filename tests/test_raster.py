"""PNG, JPEG, TIFF and PGM files: read as the same mammogram would be from DICOM, or refused with a reason."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rsna_nb import dicom
from rsna_nb.dicom.pyramid import Pyramid
from rsna_nb.dicom.raster import BytePyramid, format_of
from rsna_nb.dicom.reader import search
from rsna_nb.dicom.source import open_frame
from rsna_nb.dicom.voi import modality_values, padding_mask, to_brightness
from rsna_nb.prepare import image_file, prepare_images, read_pictures, store_path, to_8_bits
from tests.conftest import REAL_DIR, needs_real_files, write_dicom

SHAPE = (400, 300)


@pytest.fixture
def grey(breast: np.ndarray) -> np.ndarray:
    """uint8 (400, 300): the drawn breast, as a window of the whole 12 bits would show it."""
    return (breast >> 4).astype(np.uint8)


def saved(pixels: np.ndarray, name: str, mode: str | None = None, **options: object) -> bytes:
    """Encode by Pillow, after converting to another mode if one is given."""
    content, image = io.BytesIO(), Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(content, name, **options)
    return content.getvalue()


def plain_pgm(pixels: np.ndarray) -> bytes:
    rows = "\n".join(" ".join(map(str, row)) for row in pixels.tolist())
    return f"P2\n# a comment\n{pixels.shape[1]} {pixels.shape[0]}\n{pixels.max()}\n{rows}\n".encode()


def colours(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., np.newaxis], 3, axis=2)


def chunk(kind: bytes, content: bytes) -> bytes:
    """Encode a PNG chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_size(columns: int, rows: int) -> bytes:
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


EXACT: dict[str, Callable[[np.ndarray], bytes]] = {
    "PNG": lambda grey: saved(grey, "PNG"),
    "PNG of equal channels": lambda grey: saved(colours(grey), "PNG"),
    "PNG with a palette": lambda grey: saved(grey, "PNG", "P"),
    "PNG with alpha": lambda grey: saved(grey, "PNG", "LA"),
    "PNG of equal channels with alpha": lambda grey: saved(colours(grey), "PNG", "RGBA"),
    "TIFF": lambda grey: saved(grey, "TIFF"),
    "TIFF of equal channels": lambda grey: saved(colours(grey), "TIFF", compression="tiff_lzw"),
    "TIFF, LZW": lambda grey: saved(grey, "TIFF", compression="tiff_lzw"),
    "TIFF, Deflate": lambda grey: saved(grey, "TIFF", compression="tiff_adobe_deflate"),
    "TIFF, PackBits": lambda grey: saved(grey, "TIFF", compression="packbits"),
    "TIFF, white is zero": lambda grey: saved(grey, "TIFF", tiffinfo={262: 0}),
    "PGM": lambda grey: saved(grey, "PPM"),
    "PGM in digits": plain_pgm,
}
LOSSY: dict[str, Callable[[np.ndarray], bytes]] = {
    "JPEG": lambda grey: saved(grey, "JPEG", quality=95),
    "JPEG progressive": lambda grey: saved(grey, "JPEG", quality=95, progressive=True),
    "JPEG of equal channels": lambda grey: saved(colours(grey), "JPEG", quality=95),
    "JPEG with restarts": lambda grey: saved(grey, "JPEG", quality=95, restart_marker_blocks=7),
}
WIDE: dict[str, Callable[[np.ndarray], bytes]] = {
    "PNG": lambda pixels: imagecodecs.png_encode(pixels),
    "PNG of equal channels": lambda pixels: imagecodecs.png_encode(colours(pixels)),
    "TIFF": lambda pixels: saved(pixels, "TIFF", compression="tiff_lzw"),
    "PGM": lambda pixels: b"P5 300 400 4095\n" + pixels.astype(">u2").tobytes(),
    "PGM in digits": plain_pgm,
}


def reason(path: Path, content: bytes) -> str:
    """Return why a file with this content cannot be read."""
    path.write_bytes(content)
    with pytest.raises(dicom.DicomError) as error:
        dicom.read(path, 64)
    assert "unexpected" not in error.value.reason
    return error.value.reason


@pytest.mark.parametrize("kind", EXACT)
def test_a_picture_of_8_bits_is_read_as_a_dicom_file_of_its_levels(tmp_path, grey, kind):
    path = tmp_path / "picture.any"
    path.write_bytes(EXACT[kind](grey))
    window = {"BitsStored": 8, "HighBit": 7, "WindowCenter": 128, "WindowWidth": 256}
    expected = dicom.read(write_dicom(tmp_path / "x.dcm", grey, **window), SHAPE)
    reading = dicom.read(path, SHAPE)
    np.testing.assert_allclose(reading.picture, expected.picture, atol=1e-6)
    name = kind.split(",")[0].split(" ")[0]
    assert (reading.format, reading.transfer_syntax) == (name, f"{name}, 8 bits")
    assert (reading.window, reading.bits, reading.crop) == ("levels 0 255", 8, expected.crop)
    assert (reading.rows, reading.columns, expected.format) == (*SHAPE, "DICOM")
    np.testing.assert_array_equal(dicom.read_mammogram(path, SHAPE), reading.picture)


@pytest.mark.parametrize("kind", LOSSY)
def test_jpeg_is_read_up_to_its_loss(tmp_path, grey, kind):
    reference, path = tmp_path / "x.png", tmp_path / "x.jpg"
    reference.write_bytes(EXACT["PNG"](grey))
    path.write_bytes(LOSSY[kind](grey))
    reading, expected = dicom.read(path, SHAPE), dicom.read(reference, SHAPE)
    assert (reading.format, reading.transfer_syntax) == ("JPEG", "JPEG, 8 bits")
    assert np.abs(reading.picture - expected.picture).mean() < 2 / 255


@pytest.mark.parametrize("kind", WIDE)
def test_a_picture_of_16_bits_is_read_as_a_dicom_file_without_a_window(tmp_path, breast, kind):
    path = tmp_path / "picture"
    path.write_bytes(WIDE[kind](breast))
    reading, expected = dicom.read(path, 128), dicom.read(write_dicom(tmp_path / "x.dcm", breast), 128)
    np.testing.assert_array_equal(reading.picture, expected.picture)
    assert (reading.window, reading.crop) == (expected.window, expected.crop)
    assert reading.window.startswith("min-max")
    assert reading.transfer_syntax == f"{kind.split(' ')[0]}, 16 bits"


def test_the_first_bytes_decide_not_the_name(tmp_path, grey, breast):
    (tmp_path / "x.dcm").write_bytes(EXACT["PNG"](grey))
    assert dicom.read(tmp_path / "x.dcm", 64).format == "PNG"
    path = write_dicom(tmp_path / "x.png", breast)
    assert dicom.read(path, 64).format == "DICOM"
    content = path.read_bytes()
    path.write_bytes(b"II*\0" + content[4:])  # a file that is TIFF too, by a directory in the preamble
    assert (format_of(path), dicom.read(path, 64).format) == ("DICOM", "DICOM")


@pytest.mark.parametrize(
    ("brightest", "window"), [(255, "levels 0 255"), (128, "levels 0 255"), (127, "levels 0 127"), (40, "levels 0 63")]
)
def test_the_fewest_bits_that_hold_the_brightest_level_set_the_scale(tmp_path, grey, brightest, window):
    scaled = np.rint(grey * (brightest / grey.max())).astype(np.uint8)
    (tmp_path / "x").write_bytes(EXACT["PNG"](scaled))
    reading = dicom.read(tmp_path / "x", SHAPE)
    assert reading.window == window
    assert reading.picture.max() == pytest.approx(brightest / int(window.split()[-1]), rel=0.1)  # it is resampled


def test_a_hot_pixel_does_not_set_the_scale(tmp_path, grey):
    dark = grey // 3  # up to 62
    dark[200, 50] = 255
    (tmp_path / "x").write_bytes(EXACT["PNG"](dark))
    reading = dicom.read(tmp_path / "x", 64)
    assert (reading.window, reading.notes) == ("levels 0 63", ("hot pixels",))


@pytest.mark.parametrize("name", ["JPEG", "TIFF", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_exif_is_applied(tmp_path, grey, name, orientation):
    turned = Image.Transpose
    undo = [None, turned.FLIP_LEFT_RIGHT, turned.ROTATE_180, turned.FLIP_TOP_BOTTOM, turned.TRANSPOSE]
    undo += [turned.ROTATE_90, turned.TRANSVERSE, turned.ROTATE_270]
    upright = Image.fromarray(grey)
    lying = upright if undo[orientation - 1] is None else upright.transpose(undo[orientation - 1])
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying.save(tmp_path / "x", name, exif=exif, **({"quality": 95} if name == "JPEG" else {}))
    (tmp_path / "y").write_bytes(EXACT["PNG"](grey))
    expected = dicom.read(tmp_path / "y", SHAPE).picture
    assert np.abs(dicom.read(tmp_path / "x", SHAPE).picture - expected).mean() < 2 / 255


def test_a_damaged_orientation_is_ignored(tmp_path, grey):
    (tmp_path / "x").write_bytes(saved(grey, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert dicom.read(tmp_path / "x", 64).format == "JPEG"


def test_a_picture_that_is_cropped_and_sized_already_keeps_its_pixels(tmp_path, grey):
    box = dicom.read_mammogram(write_dicom(tmp_path / "x.dcm", grey.astype(np.uint16) << 4), (256, 192))
    once = to_8_bits(box)
    (tmp_path / "x").write_bytes(EXACT["PNG"](once))
    reading = dicom.read(tmp_path / "x", (256, 192))
    twice = to_8_bits(reading.picture)
    assert (reading.level, reading.crop) == (0, (0, 0, 192, 256))
    np.testing.assert_array_equal(twice[twice > 0], once[twice > 0])
    assert ((twice == 0) & (once > 0)).mean() < 0.01
    larger = cv2.copyMakeBorder(once, 32, 32, 0, 64, cv2.BORDER_CONSTANT)  # with air around it: it is cropped
    (tmp_path / "x").write_bytes(EXACT["PNG"](larger))
    assert dicom.read(tmp_path / "x", larger.shape).crop != (0, 0, *larger.shape[::-1])


def test_halving_a_picture_of_8_bits_does_not_change_its_brightness(grey):
    for level in (1, 2, 3):
        halved, exact = BytePyramid(grey, 8).level(level), Pyramid(grey.astype(np.uint16) << 6, 14).level(level) / 64
        assert halved.dtype == np.uint8
        assert np.abs(halved - exact).max() <= 0.75
        assert (halved - exact).mean() == pytest.approx(0, abs=0.1)
        assert (Pyramid(grey, 8).level(level) - exact).mean() > 0.15
    white = np.full((64, 64), 255, np.uint8)
    assert (BytePyramid(white, 8).level(2) == 255).all()


@pytest.mark.parametrize("kind", [*EXACT, *LOSSY])
def test_a_file_that_is_cut_off_is_an_error(tmp_path, grey, kind):
    content = (EXACT | LOSSY)[kind](grey)
    lengths = [*np.linspace(9, len(content), 25, dtype=int)[:-1], len(content) - 20]
    lengths += [] if kind == "PGM in digits" else [len(content) - 1]  # its last number may be 1 as well as 12
    for length in lengths:
        assert reason(tmp_path / "x", content[:length])


@pytest.mark.parametrize("kind", LOSSY)
@pytest.mark.parametrize("lost", [30, 500, 3000])
def test_jpeg_data_that_end_too_soon_before_an_end_marker_are_an_error(tmp_path, grey, kind, lost):
    content = LOSSY[kind](grey)
    assert "its data end before the picture" in reason(tmp_path / "x", content[: -2 - lost] + content[-2:])


def test_every_changed_byte_of_a_png_file_is_noticed(tmp_path, grey):
    content, rng = EXACT["PNG"](grey), np.random.default_rng(0)
    for position in rng.integers(8, len(content), 100):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        assert "defective PNG" in reason(tmp_path / "x", bytes(damaged))


def test_png_data_that_end_too_soon_are_an_error_though_every_checksum_is_right(tmp_path, grey):
    header = struct.pack(">IIBBBBB", 300, 400, 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in grey)
    for packed in (zlib.compress(rows)[:-500], zlib.compress(rows[:-3000])):
        content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
        assert "defective PNG" in reason(tmp_path / "x", content)


def test_what_is_no_grey_picture_is_refused_with_a_reason(tmp_path, grey):
    path, coloured = tmp_path / "x", colours(grey)
    coloured[..., 0] //= 2
    red = saved(coloured, "PNG")
    transparent = np.dstack([grey, np.full_like(grey, 200)])
    pages = saved(grey, "TIFF", save_all=True, append_images=[Image.fromarray(grey)])
    animation = saved(grey, "PNG", save_all=True, append_images=[Image.fromarray(255 - grey)])
    expected = {
        "a colour picture: its channels differ": [red, saved(coloured, "JPEG"), saved(coloured, "TIFF")],
        "a colour picture: it has 4 components": [saved(colours(grey), "JPEG", "CMYK")],
        "transparent parts": [imagecodecs.png_encode(transparent)],
        "2 pages": [pages],
        "an animation": [animation],
        "samples of 1 bits": [saved(grey, "PNG", "1")],
        "samples must be unsigned integers": [saved(grey, "TIFF", "1"), saved(grey.astype(np.float32), "TIFF")],
        "TIFF of compression 7": [saved(grey, "TIFF", compression="jpeg")],
        "PhotometricInterpretation (tag 262) is 3": [saved(grey, "TIFF", "P")],
        "unsupported JPEG process (SOF3)": [imagecodecs.jpeg8_encode(grey, lossless=True, predictor=1)],
        "not a DICOM, PNG, JPEG, TIFF or PGM file": [saved(grey, "GIF"), b"patient_id,image_id\n1,2\n"],
        "the file is empty": [b""],
        "every pixel has the same value": [saved(np.zeros_like(grey), "PNG")],
    }
    for words, contents in expected.items():
        for content in contents:
            assert words in reason(path, content)
    with pytest.raises(dicom.DicomError, match="the file is missing"):
        dicom.read(tmp_path / "nowhere.png", 64)
    with pytest.raises(dicom.DicomError, match="cannot be read"):
        dicom.read(tmp_path, 64)


def test_a_size_that_would_fill_the_memory_is_refused_before_decoding(tmp_path, grey):
    jpeg, tiff = LOSSY["JPEG"](grey), EXACT["TIFF"](grey)
    frame = jpeg.index(b"\xff\xc0") + 5
    # The directory of this TIFF file has its width and its height in the first two entries.
    directory = struct.unpack_from("<I", tiff, 4)[0]
    wide = bytearray(tiff)
    for entry in (0, 1):
        wide[directory + 2 + 12 * entry : directory + 14 + 12 * entry] = struct.pack("<HHII", 256 + entry, 4, 1, 60000)
    contents = [
        png_of_size(60000, 60000),
        jpeg[:frame] + struct.pack(">HH", 60000, 60000) + jpeg[frame + 4 :],
        bytes(wide),
        b"P5 60000 60000 255\n" + bytes(1000),
    ]
    for content in contents:
        assert "60000 x 60000 pixels" in reason(tmp_path / "x", content)
    assert "defective PNG" in reason(tmp_path / "x", png_of_size(300, 400))


@pytest.mark.parametrize(
    "content",
    [
        *(b"P5 3 2 255\n" + bytes(5), b"P5 3 2 255\n" + bytes(range(6)) + b"more", b"P5 3 2 4\n" + bytes(range(6))),
        *(b"P2 3 2 255\n1 2 3 4 5" + end for end in (b"", b" x", b" 256", b" -6", b" 6 7", b" 1234567")),
        *(b"P5 3 -2 255\n" + bytes(6), b"P5 3 2 70000\n" + bytes(6), b"P5 3 0 255\n", b"P5\n", b"P2 3 2 255\n"),
    ],
)
def test_a_pgm_file_whose_samples_do_not_fit_its_header_is_an_error(tmp_path, content):
    assert reason(tmp_path / "x", content)


def windowed(path: Path) -> np.ndarray:
    """Return the whole frame of a DICOM file as a viewer shows it, uint8."""
    frame = open_frame(path)
    stored = frame.pyramid.level(0)
    found = search(frame.pyramid, frame.dataset)
    values, padding = modality_values(stored, frame.dataset), padding_mask(stored, frame.dataset)
    return to_8_bits(to_brightness(values, found.inverted, found.declared, padding))


def assert_same_as_png(path: Path, folder: Path, size: int) -> None:
    (folder / "x.png").write_bytes(EXACT["PNG"](windowed(path)))
    ours, expected = dicom.read(folder / "x.png", size), dicom.read(path, size)
    difference = np.abs(to_8_bits(ours.picture).astype(int) - to_8_bits(expected.picture))
    in_breast = difference[(ours.picture > 0) | (expected.picture > 0)]
    assert in_breast.mean() < 1, path.name  # grey levels; over the whole picture it is less, since air is equal
    assert ours.crop == expected.crop


@needs_real_files
@pytest.mark.slow
@pytest.mark.parametrize("size", [512, 1024])
def test_a_real_mammogram_is_the_same_as_dicom_and_as_png(tmp_path, size):
    for path in sorted(REAL_DIR.glob("train_images/*/*.dcm")):
        assert_same_as_png(path, tmp_path, size)


def test_a_generated_mammogram_is_the_same_as_dicom_and_as_png(tmp_path, generated):
    for path in sorted(generated.glob("train_images/*/*.dcm"))[:12]:
        assert_same_as_png(path, tmp_path, 64)


def test_files_of_every_format_are_prepared_and_the_ledger_says_which(tmp_path, grey, breast):
    contents = {"PNG": EXACT["PNG"](grey), "JPEG": LOSSY["JPEG"](grey), "TIFF": EXACT["TIFF"](grey)}
    contents |= {"PGM": EXACT["PGM"](grey), "cut": EXACT["PNG"](grey)[:-30]}
    data = tmp_path / "data"
    write_dicom(data / "DICOM", breast)
    for name, content in contents.items():
        (data / name).write_bytes(content)
    names = ["DICOM", *contents]
    table = pd.DataFrame({"patient_id": "1", "image_id": names, "path": [str(data / name) for name in names]})
    ledger = prepare_images(table, data, tmp_path / "stores", 64)
    assert ledger["format"].tolist() == [*names[:-1], ""]
    assert ledger["status"].tolist() == [*["ok"] * 5, "error"]
    assert ledger["error"].iloc[-1].startswith("cut off, or a defective PNG file")
    store = store_path(tmp_path / "stores", data, 64)
    stored = cv2.imread(str(image_file(store, "1", "PNG")), cv2.IMREAD_UNCHANGED)
    for position, outcome in read_pictures([str(data / name) for name in ("PNG", "cut")], (64, 64)):
        assert isinstance(outcome, str) if position else np.array_equal(outcome.image, stored)
    assert [step.picture.ndim for step in dicom.reading_steps(str(data / "PNG"), 64)] == [2] * 5
