"""PNG, JPEG, TIFF and PGM files: whole ones, ways to damage them, and what other decoders read in them."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache

import cv2
import imagecodecs
import numpy as np
from numpy.random import Generator
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "TIFF", "PGM")
PNG_START = b"\x89PNG\r\n\x1a\n"
SIZES = (0, 1, 2, 7, 255, 300, 301, 4096, 65535, 2**31 - 1, 2**32 - 1)


def saved(pixels: np.ndarray, name: str, mode: str | None = None, **options: object) -> bytes:
    content, image = io.BytesIO(), Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(content, name, **options)
    return content.getvalue()


def big_endian_tiff(pixels: np.ndarray) -> bytes:
    """Encode a TIFF file of one strip in the byte order that Pillow does not write."""
    rows, columns = pixels.shape
    tags = {256: columns, 257: rows, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: rows, 279: pixels.nbytes}
    strip = pixels.astype(">u2").tobytes()
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"MM\0*" + struct.pack(">I", 8 + len(strip)) + strip + struct.pack(">H", len(tags)) + entries + bytes(4)


@cache
def raster_contents(phantom: Callable[..., np.ndarray]) -> dict[str, bytes]:
    """Return whole files by name. `phantom` draws (shape, bits)."""
    grey, wide, small = phantom((403, 301), 8), phantom((403, 301), 16), phantom((64, 48), 8)
    colours, digits = np.dstack([grey] * 3), "\n".join(" ".join(map(str, row)) for row in small.tolist())
    lzw, deflate = {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}
    return {
        "PNG": saved(grey, "PNG"),
        "PNG 16 bits": imagecodecs.png_encode(wide),
        "PNG RGB": saved(colours, "PNG"),
        "PNG palette": saved(grey, "PNG", "P"),
        "PNG tiny": saved(phantom((71, 53), 8), "PNG"),
        "JPEG": saved(grey, "JPEG", quality=92),
        "JPEG progressive": saved(grey, "JPEG", quality=92, progressive=True),
        "JPEG RGB": saved(colours, "JPEG", quality=90),
        "JPEG restarts": saved(grey, "JPEG", quality=92, restart_marker_blocks=9),
        "TIFF": saved(grey, "TIFF"),
        "TIFF LZW": saved(grey, "TIFF", **lzw),
        "TIFF Deflate 16 bits": saved(wide, "TIFF", **deflate),
        "TIFF PackBits": saved(grey, "TIFF", compression="packbits"),
        "TIFF white is zero": saved(grey, "TIFF", tiffinfo={262: 0}),
        "TIFF big-endian": big_endian_tiff(wide),
        "PGM": saved(grey, "PPM"),
        "PGM 16 bits": b"P5\n301 403\n65535\n" + wide.astype(">u2").tobytes(),
        "PGM digits": f"P2 48 64 255\n{digits}\n".encode(),
    }


def sealed(content: bytes) -> bytes:
    """Return a PNG file with right checksums, so that its damage reaches the decoder."""
    parts, position = [content[:8]], 8
    while position + 12 <= len(content):
        length = struct.unpack_from(">I", content, position)[0]
        body = content[position + 4 : position + 8 + length]
        parts.append(content[position : position + 8 + length] + struct.pack(">I", zlib.crc32(body)))
        position += 12 + length
    return b"".join([*parts, content[position:]])


def head_changed(content: bytes, rng: Generator) -> bytes:
    """Change bytes near the beginning."""
    damaged = bytearray(content)
    for position in rng.integers(0, min(200, len(content)), int(rng.integers(1, 5))) if content else ():
        damaged[position] = rng.integers(256)
    return bytes(damaged)


def field_changed(content: bytes, rng: Generator) -> bytes:
    """Put a size into a field of 1, 2 or 4 bytes near the beginning or the end, where TIFF has its directory."""
    if len(content) < 20:
        return content
    size, form = SIZES[int(rng.integers(len(SIZES)))], "BHI"[int(rng.integers(3))]
    end = min(len(content), 400) - 4
    start = int(rng.integers(end)) if rng.random() < 0.6 else len(content) - 4 - int(rng.integers(end))
    field = struct.pack("<>"[int(rng.integers(2))] + form, size % 256 ** struct.calcsize(form))
    return content[:start] + field + content[start + len(field) :]


def cut_to_its_end(content: bytes, rng: Generator) -> bytes:
    """Cut out the end but keep the end marker of PNG or JPEG, which is the damage that is hardest to notice."""
    ending = 12 if content.startswith(PNG_START) else 2
    return content[: int(len(content) * rng.random())] + content[-ending:]


def cut_out(content: bytes, rng: Generator) -> bytes:
    """Cut a part out of the file."""
    start, gone = int(len(content) * rng.random()), int(rng.integers(1, 500))
    return content[:start] + content[start + gone :]


def inside_changed(content: bytes, rng: Generator) -> bytes:
    """Change a few bytes anywhere."""
    damaged = bytearray(content)
    for position in rng.integers(0, max(1, len(content)), int(rng.integers(1, 4))) if content else ():
        damaged[position] = rng.integers(256)
    return bytes(damaged)


def resealed(content: bytes, rng: Generator) -> bytes:
    """Change a few bytes, and the checksums of a PNG file with them."""
    damaged = inside_changed(content, rng)
    return sealed(damaged) if damaged.startswith(PNG_START) else damaged


RASTER_DAMAGES = [head_changed, field_changed, field_changed, cut_to_its_end, cut_out, inside_changed, resealed]


def raster_opinions(content: bytes, is_inverted: bool) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what the other decoders read, one grey channel in stored values. Those that refuse have no opinion."""
    for name, decode in {"Pillow": by_pillow, "OpenCV": by_opencv, "NumPy": by_numpy}.items():
        try:
            pixels = decode(content)
        except Exception:
            continue
        yield name, np.invert(pixels) if is_inverted else pixels


def by_pillow(content: bytes) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content), formats=["PNG", "JPEG", "TIFF"]))
    pixels = np.asarray(image.convert("RGB") if image.mode in ("P", "PA") else image)
    return pixels if pixels.ndim == 2 else pixels[..., len(pixels[0, 0]) // 2 if len(pixels[0, 0]) > 2 else 0]


def by_opencv(content: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    return pixels if pixels.ndim == 2 else pixels[..., 1]


def by_numpy(content: bytes) -> np.ndarray:
    """Read PGM, whose samples Pillow and OpenCV scale to the full range."""
    kind, *numbers = content.split(maxsplit=4)[:4]
    columns, rows, largest = map(int, numbers)
    if kind == b"P2":
        return np.array(content.split()[4:], int).reshape(rows, columns)
    assert kind == b"P5"
    dtype = np.dtype(">u2" if largest > 255 else "u1")
    start = content.index(numbers[2], content.index(numbers[1], content.index(numbers[0]) + len(numbers[0])))
    return np.frombuffer(content, dtype, rows * columns, start + len(numbers[2]) + 1).reshape(rows, columns)
