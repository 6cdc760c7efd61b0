"""The whole files that mutants are made from: small ones in every transfer syntax and format, and the real ones."""

import io
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image
from pydicom import uid

from tests.conftest import ENCODERS, OTHER_DIR, REAL_DIR, write_dicom
from tests.fuzz.files import TRANSFER_SYNTAX, File, even, parsed
from tests.fuzz.rasters import raster_contents


@dataclass(frozen=True)
class Source:
    """A whole file. `file` is None if it cannot be edited element by element."""

    name: str
    content: bytes
    file: File | None


def phantom(shape: tuple[int, int], bits: int = 12, signed: bool = False, seed: int = 0) -> np.ndarray:
    """Draw air and a textured half disc of tissue at the left edge, both away from the ends of the range."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    inside = ((y / shape[0] - 0.5) / 0.4) ** 2 + (x / shape[1] / 0.6) ** 2 < 1
    texture = np.random.default_rng(seed).normal(0.45, 0.05, inside.shape)
    stored = np.where(inside, np.clip(texture, 0.2, 0.9), 0.03) * (2**bits - 1) - signed * 2 ** (bits - 1)
    return stored.astype(("i" if signed else "u") + str(1 if bits <= 8 else 2))


def jpeg_2000(pixels: np.ndarray, **options: object) -> bytes:
    options = {"codecformat": "j2k", "reversible": True, "level": 0, "bitspersample": 12, "resolutions": 6} | options
    return bytes(imagecodecs.jpeg2k_encode(pixels, **options))


def tiled(pixels: np.ndarray) -> bytes:
    codestream, options = io.BytesIO(), {"tile_size": (128, 128), "num_resolutions": 3, "no_jp2": True}
    Image.fromarray(pixels).save(codestream, "JPEG2000", **options)
    return codestream.getvalue()


def jpeg_2000_codestreams() -> Iterator[tuple[str, np.ndarray, bytes, dict]]:
    """Yield JPEG 2000 codestreams that ENCODERS does not make: those of mammograms, and unusual ones."""
    grey, large = phantom((431, 300)), phantom((840, 643))
    for resolutions in (1, 2, 6):
        yield f"J2K {resolutions} resolutions", grey, jpeg_2000(grey, resolutions=resolutions), {}
    yield "J2K large", large, jpeg_2000(large), {}
    yield "J2K of 16 bits for 12", large, jpeg_2000(large, bitspersample=16), {}
    yield "J2K in tiles", grey, tiled(grey), {}
    yield "J2K irreversible", grey, jpeg_2000(grey, reversible=False, level=40), {}
    yield "JP2", grey, jpeg_2000(grey, codecformat="jp2"), {}
    small = phantom((431, 300), 8)
    yield "J2K 8 bits", small, jpeg_2000(small, bitspersample=8), {"BitsStored": 8, "HighBit": 7}
    signed = phantom((431, 300), signed=True)
    yield "J2K signed", signed, jpeg_2000(signed), {"WindowCenter": 0}


@cache
def generated_sources() -> list[Source]:
    """Return small files in every transfer syntax, and every other format, that can be read."""
    window = {"WindowCenter": 2048, "WindowWidth": 4000, "RescaleSlope": 1, "RescaleIntercept": 0}
    eight, narrow = {"BitsStored": 8, "HighBit": 7}, {"WindowCenter": 128, "WindowWidth": 256}
    made = []
    with tempfile.TemporaryDirectory() as folder:

        def add(name: str, pixels: np.ndarray, syntax: uid.UID, codestream: bytes | None = None, **attributes) -> None:
            attributes = {keyword: value for keyword, value in (window | attributes).items() if value is not None}
            as_written = syntax if codestream is None else uid.JPEGBaseline8Bit  # written as it is, and replaced below
            file = parsed(write_dicom(Path(folder) / "x.dcm", pixels, as_written, **attributes).read_bytes())
            if codestream is not None:
                file.codestream = codestream
                file.set(TRANSFER_SYNTAX, "UI", even(syntax.encode()))
            made.append(Source(name, file.encoded(), file))

        for syntax in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, *ENCODERS):
            add(f"{syntax.name[:24]} odd", phantom((403, 301)), syntax, VOILUTFunction="LINEAR")
            if syntax != uid.RLELossless:  # conftest encodes RLE of 16-bit words only
                add(f"{syntax.name[:24]} 8 bits", phantom((320, 256), 8), syntax, None, **eight, **narrow)
            bright = (4095 - phantom((405, 300))).astype(np.uint16)
            add(f"{syntax.name[:24]} MONOCHROME1", bright, syntax, PhotometricInterpretation="MONOCHROME1")
            add(f"{syntax.name[:24]} tiny", phantom((53, 47)), syntax, WindowWidth=None, WindowCenter=None)
        for syntax in (uid.ExplicitVRLittleEndian, uid.JPEG2000Lossless):
            add(f"{syntax.name[:24]} signed", phantom((403, 301), signed=True), syntax, WindowCenter=0)
        for name, pixels, codestream, attributes in jpeg_2000_codestreams():
            add(name, pixels, uid.JPEG2000Lossless, codestream, **attributes)
        bytewise = phantom((320, 256), 8)
        add("JPEG baseline", bytewise, uid.JPEGBaseline8Bit, imagecodecs.jpeg8_encode(bytewise, level=90), **eight)
        add("RLE 8 bits", bytewise, uid.RLELossless, rle_of_bytes(bytewise), **eight, **narrow)
        words, syntax = phantom((403, 301)).astype(">u2"), uid.ExplicitVRBigEndian
        made.append(Source(syntax.name, write_dicom(Path(folder) / "x.dcm", words, syntax).read_bytes(), None))
    made += [Source(name, content, None) for name, content in raster_contents(phantom).items()]
    return made


def rle_of_bytes(pixels: np.ndarray) -> bytes:
    """Encode bytes by PS3.5 Annex G: the offset of the only segment, and PackBits row by row."""
    segment = b"".join(imagecodecs.packbits_encode(row) for row in pixels)
    return struct.pack("<16I", 1, 64, *[0] * 14) + segment + bytes(len(segment) % 2)


@cache
def real_sources() -> list[Path]:
    return sorted([*REAL_DIR.glob("train_images/*/*.dcm"), *OTHER_DIR.glob("*.dcm")])


@cache
def real_source(path: Path) -> Source:
    content = path.read_bytes()
    try:
        return Source(path.name, content, parsed(content))
    except (UnicodeDecodeError, struct.error):
        return Source(path.name, content, None)
