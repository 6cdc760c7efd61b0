"""Makes a damaged file from a seed: edits of its elements, of the fields of its codestream, and of single bytes."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from pydicom import uid
from pydicom.datadict import dictionary_VR, tag_for_keyword

from tests.fuzz.files import DELIMITER, ITEM, PIXEL_DATA, TRANSFER_SYNTAX, UNDEFINED, Element, File, encapsulated, even
from tests.fuzz.rasters import RASTER_DAMAGES
from tests.fuzz.sources import generated_sources, real_source, real_sources

REAL_SHARE = 0.02  # of the mutants are made from real files, each of which takes a hundred times as long
US_VALUES = (0, 1, 2, 3, 7, 8, 12, 15, 16, 24, 32, 40, 64, 255, 256, 400, 4095, 32768, 65535)
TEXTS = ("", " ", "0", "1", "-1", "2", "-0.0", "1e308", "1e-308", "1e999", "NaN", "inf", "nan\\nan", "\\", "abc", "4\\")
TEXTS = (*TEXTS, "2048\\x", "1,5", "0x10", "65536", "4294967296", "9" * 40, "2048 ", "1\0", "\xff")
ABSURD: dict[str, tuple[int | str, ...]] = {
    **dict.fromkeys(("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel"), US_VALUES),
    **dict.fromkeys(("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept"), TEXTS),
    **dict.fromkeys(("PixelPaddingValue", "PixelPaddingRangeLimit", "SmallestImagePixelValue"), US_VALUES),
    "PixelRepresentation": (0, 1, 2, 65535),
    "NumberOfFrames": ("0", "-1", "", "1.5", "abc", "999999999999", "2", "1\\1", "1"),
    "PhotometricInterpretation": ("", "RGB", "MONOCHROME1", "monochrome2", "PALETTE COLOR", "MONOCHROME2\\X", "\xff\0"),
    "VOILUTFunction": ("", "SIGMOID", "LINEAR_EXACT", "CUBIC", "SIGMOID\\LINEAR", "sigmoid "),
    "SpecificCharacterSet": ("", "ISO_IR 192", "ISO 2022 IR 87", "junk", "\\"),
    "PlanarConfiguration": (1, 65535),
    "PixelAspectRatio": ("1\\2", "0\\0", "abc"),
}
SYNTAXES = [
    *(uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.RLELossless),
    *(uid.DeflatedExplicitVRLittleEndian, uid.JPEG2000Lossless, uid.JPEG2000, uid.JPEGLossless, uid.JPEGLosslessSV1),
    *(uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSLossless, uid.JPEGLSNearLossless, uid.MPEG2MPML),
    *("", "1.2.3", "junk", uid.HTJ2KLossless),
]


def chosen(rng: Generator, options: Sequence):
    """Draw one of the options."""
    return options[int(rng.integers(len(options)))]


def set_absurd(file: File, rng: Generator) -> None:
    """Set an attribute to a value that is absurd, illegal or rare."""
    keyword = chosen(rng, list(ABSURD))
    value, tag = chosen(rng, ABSURD[keyword]), tag_for_keyword(keyword)
    vr = dictionary_VR(tag).split()[0]
    file.set(tag, vr, struct.pack("<H", value) if isinstance(value, int) else even(value.encode("latin1")))


def drop_element(file: File, rng: Generator) -> None:
    """Remove an element."""
    file.elements.remove(chosen(rng, file.elements))


def swap_values(file: File, rng: Generator) -> None:
    """Exchange the values of two elements."""
    one, other = chosen(rng, file.elements), chosen(rng, file.elements)
    if PIXEL_DATA not in (one.tag, other.tag):
        one.value, other.value = other.value, one.value


def repeat_element(file: File, rng: Generator) -> None:
    """Insert an element a second time, with random bytes."""
    copy = replace(chosen(rng, file.elements[:-1]), value=rng.bytes(2 * int(rng.integers(0, 5))))
    file.elements.insert(int(rng.integers(len(file.elements))), copy)


def change_vr(file: File, rng: Generator) -> None:
    """Change the value representation of an element."""
    chosen(rng, file.elements).vr = chosen(
        rng, ["OB", "OW", "UN", "US", "DS", "SQ", "IS", "LO", "FD", "AT", "ZZ", "  "]
    )


def wrong_length(file: File, rng: Generator) -> None:
    """Write a wrong length into an element."""
    chosen(rng, file.elements).length = chosen(rng, [0, 1, 3, 65534, 65535, 2**31, 2**32 - 2, UNDEFINED, 1000])


def wrong_transfer_syntax(file: File, rng: Generator) -> None:
    """Declare another transfer syntax."""
    file.set(TRANSFER_SYNTAX, "UI", even(str(chosen(rng, SYNTAXES)).encode()))


def broken_table(file: File, rng: Generator) -> None:
    """Add a VOI or modality LUT whose descriptor rarely fits its data."""
    descriptor = [chosen(rng, US_VALUES) for _ in range(chosen(rng, [3, 3, 3, 2, 0]))]
    parts = [
        Element(0x00283002, chosen(rng, ["US", "SS"]), struct.pack(f"<{len(descriptor)}H", *descriptor)),
        Element(0x00283004, "LO", b"HU"),
        Element(0x00283006, chosen(rng, ["OW", "US", "OB"]), rng.bytes(2 * chosen(rng, [0, 1, 16, 256, 4096]))),
    ]
    item = b"".join(part.encoded(file.is_implicit) for part in parts if rng.random() < 0.9)
    value = b"".join(ITEM + struct.pack("<I", len(item)) + item for _ in range(chosen(rng, [0, 1, 1, 2])))
    file.set(chosen(rng, [0x00283010, 0x00283000]), "SQ", value)


def split(file: File, rng: Generator) -> None:
    """Split the codestream into fragments, with a right, a wrong or no offset table. Only a wrong one does harm."""
    codestream, count = file.codestream, int(rng.integers(2, 9))
    step = max(2, len(codestream) // count // 2 * 2)
    parts = [codestream[start : start + step] for start in range(0, len(codestream), step)]
    ends = np.cumsum([0, *(len(part) + 8 for part in parts)])
    offsets = chosen(rng, [b"", struct.pack("<I", 0), ends[: len(parts)].astype("<u4").tobytes(), rng.bytes(8)])
    file.pixels.value, file.pixels.length = encapsulated(parts, offsets), UNDEFINED


def no_delimiter(file: File, rng: Generator) -> None:
    """Remove the sequence delimiter of the pixel data."""
    file.pixels.value = file.pixels.value.removesuffix(DELIMITER)


def wrong_fragment_length(file: File, rng: Generator) -> None:
    """Write a wrong length into the first fragment or the offset table."""
    value, item = file.pixels.value, chosen(rng, [0, 8])
    length = chosen(rng, [0, 1, 4, 1000, len(value) - 24, len(value) - 8, 2**31, UNDEFINED])
    file.pixels.value = value[: item + 4] + struct.pack("<I", length) + value[item + 8 :]


def encapsulated_or_not(file: File, rng: Generator) -> None:
    """Declare encapsulated pixel data native, or the other way round."""
    file.pixels.length = None if file.pixels.length == UNDEFINED else UNDEFINED


def flip_codestream(file: File, rng: Generator) -> None:
    """Change bytes of the codestream."""
    file.codestream = flipped(file.codestream, rng)


def flip_codestream_header(file: File, rng: Generator) -> None:
    """Change bytes of the header of the codestream."""
    codestream = file.codestream
    file.codestream = flipped(codestream[:100], rng) + codestream[100:]


def zero_codestream(file: File, rng: Generator) -> None:
    """Set a part of the codestream to zeros."""
    file.codestream = zeroed(file.codestream, rng)


def cut_codestream_to_its_end_marker(file: File, rng: Generator) -> None:
    """Cut out the end of the codestream but keep its end marker, which is the damage that is hardest to notice."""
    codestream = file.codestream
    keep = int(len(codestream) * rng.random())
    file.codestream = even(codestream[:keep]) + codestream[-2:]


def cut_out_of_codestream(file: File, rng: Generator) -> None:
    """Cut a part out of the codestream."""
    codestream = file.codestream
    start, gone = int(len(codestream) * rng.random()), int(rng.integers(1, 2000))
    file.codestream = codestream[:start] + codestream[start + gone :]


def insert_into_codestream(file: File, rng: Generator) -> None:
    """Insert random bytes into the codestream."""
    codestream = file.codestream
    start = int(len(codestream) * rng.random())
    file.codestream = codestream[:start] + rng.bytes(int(rng.integers(1, 200))) + codestream[start:]


def pad_codestream(file: File, rng: Generator) -> None:
    """Append bytes to the codestream."""
    file.codestream += chosen(rng, [bytes(2), bytes(62), bytes(200), b"\xff\xd9", rng.bytes(50)])


def codestream_of_another(file: File, rng: Generator) -> None:
    """Take the codestream of another file."""
    others = [source.file for source in generated_sources() if source.file]
    file.codestream = chosen(rng, others).codestream


def jpeg_2000_fields(codestream: bytes) -> dict[str, tuple[int, str]]:
    """Return the positions and formats of the fields of SIZ and COD (T.800, A.5.1 and A.6.1)."""
    siz = codestream.index(b"\xff\x4f\xff\x51") + 2
    names = "Xsiz Ysiz XOsiz YOsiz XTsiz YTsiz XTOsiz YTOsiz".split()
    fields = {name: (siz + 6 + 4 * i, ">I") for i, name in enumerate(names)}
    fields |= {"Lsiz": (siz + 2, ">H"), "Rsiz": (siz + 4, ">H"), "Csiz": (siz + 38, ">H")}
    fields |= {name: (siz + 40 + i, ">B") for i, name in enumerate(("Ssiz", "XRsiz", "YRsiz"))}
    cod = codestream.index(b"\xff\x52", siz)
    names = "Scod progression layers layers_low transform levels xcb ycb style wavelet".split()
    fields |= {name: (cod + 4 + i, ">B") for i, name in enumerate(names)}
    qcd = codestream.index(b"\xff\x5c", siz)
    return fields | {"Sqcd": (qcd + 4, ">B"), "SPqcd": (qcd + 5, ">B")}


def jpeg_fields(codestream: bytes) -> dict[str, tuple[int, str]]:
    """Return the positions and formats of the fields of the frame header (T.81, B.2.2) and the scan header."""
    frame = next(i for i in range(len(codestream)) if codestream[i : i + 2] in FRAME_MARKERS)
    fields = {"marker": (frame + 1, ">B"), "length": (frame + 2, ">H"), "precision": (frame + 4, ">B")}
    fields |= {"rows": (frame + 5, ">H"), "columns": (frame + 7, ">H"), "components": (frame + 9, ">B")}
    scan = codestream.index(b"\xff\xda", frame)
    fields |= {"sampling": (frame + 11, ">B"), "table": (scan + 6, ">B"), "predictor": (scan + 7, ">B")}
    return fields | {"scan end": (scan + 8, ">B"), "point transform": (scan + 9, ">B")}


FRAME_MARKERS = (b"\xff\xc0", b"\xff\xc1", b"\xff\xc3", b"\xff\xf7")


def change_codestream_field(file: File, rng: Generator) -> None:
    """Change a field of a header in the codestream."""
    codestream = file.codestream
    try:
        fields = jpeg_2000_fields(codestream) if b"\xff\x4f\xff\x51" in codestream[:200] else jpeg_fields(codestream)
    except (ValueError, StopIteration):  # neither JPEG nor JPEG 2000
        return flip_codestream_header(file, rng)
    position, form = fields[chosen(rng, sorted(fields))]
    old, largest = struct.unpack_from(form, codestream, position)[0], 256 ** struct.calcsize(form) - 1
    value = chosen(rng, [0, 1, 2, 3, 7, 8, 15, 16, 32, 0x83, 255, 65535, largest, old + 1, old - 1, 2 * old, old // 2])
    value = min(max(0, value), largest)
    file.codestream = codestream[:position] + struct.pack(form, value) + codestream[position + struct.calcsize(form) :]
    return None


def flipped(content: bytes, rng: Generator) -> bytes:
    """Change one to sixteen bytes."""
    damaged = np.frombuffer(content, np.uint8).copy()
    if damaged.size:
        positions = rng.integers(0, damaged.size, chosen(rng, [1, 1, 2, 4, 16]))
        damaged[positions] = rng.integers(0, 256, positions.size)
    return damaged.tobytes()


def zeroed(content: bytes, rng: Generator) -> bytes:
    """Set a part to zeros."""
    start, length = int(len(content) * rng.random()), int(2 ** (16 * rng.random()))
    return content[:start] + bytes(len(content[start : start + length])) + content[start + length :]


def header_flipped(content: bytes, rng: Generator) -> bytes:
    """Change bytes of the file's header."""
    return content[:132] + flipped(content[132:700], rng) + content[700:]


def cut(content: bytes, rng: Generator) -> bytes:
    """Cut off the end."""
    return content[: int(len(content) * chosen(rng, [rng.random(), rng.random() ** 8, 1 - rng.random() ** 8]))]


def grown(content: bytes, rng: Generator) -> bytes:
    """Insert random bytes."""
    start = chosen(rng, [len(content), int(len(content) * rng.random()), int(rng.integers(132, 700))])
    return content[:start] + rng.bytes(int(2 ** (12 * rng.random()))) + content[start:]


def without_preamble(content: bytes, rng: Generator) -> bytes:
    """Cut off the beginning."""
    return content[chosen(rng, [1, 128, 132]) :]


EDITS: list[Callable[[File, Generator], None]] = [
    *([set_absurd] * 6),
    *(
        drop_element,
        swap_values,
        repeat_element,
        change_vr,
        wrong_length,
        wrong_transfer_syntax,
        wrong_transfer_syntax,
        broken_table,
    ),
    *(split, split, no_delimiter, wrong_fragment_length, encapsulated_or_not),
    *(flip_codestream, flip_codestream, flip_codestream_header, zero_codestream, cut_codestream_to_its_end_marker),
    *(cut_out_of_codestream, insert_into_codestream, pad_codestream, codestream_of_another),
    *([change_codestream_field] * 5),
]
DAMAGES: list[Callable[[bytes, Generator], bytes]] = [flipped, header_flipped, zeroed, cut, grown, without_preamble]


@dataclass(frozen=True)
class Mutant:
    """A damaged file.

    `source` is the name of the whole file, and `codestream` that file's; `content` are the bytes of the damaged one.
    """

    seed: int
    source: str
    mutations: tuple[str, ...]
    content: bytes
    codestream: bytes


def mutant(seed: int, real_share: float = REAL_SHARE) -> Mutant:
    """Return the mutant of a seed. If there are real files, a share of `real_share` of the mutants come from them."""
    rng = np.random.default_rng(seed)
    source, is_real, draw = chosen(rng, generated_sources()), rng.random() < real_share, rng.random()
    if is_real and (paths := real_sources()):
        source = real_source(paths[int(draw * len(paths))])
    names, content = [], source.content
    count = int(rng.integers(1, 4))
    edits = count if rng.random() < 0.8 else int(rng.integers(count))
    if source.file:
        content, names = edited(source.file, edits, rng)
    for _ in range(count - len(names)):
        is_dicom = content[128:132] == b"DICM"
        damage = chosen(rng, DAMAGES if is_dicom or rng.random() < 0.3 else RASTER_DAMAGES)
        content = damage(content, rng)
        names.append(damage.__name__)
    return Mutant(seed, source.name, tuple(names), content, source.file.codestream if source.file else b"")


def edited(source: File, count: int, rng: Generator) -> tuple[bytes, list[str]]:
    """Edit a file `count` times. Returns its bytes and the names of the edits; impossible edits are skipped."""
    file = replace(source, elements=[replace(element) for element in source.elements])
    names = []
    for _ in range(count):
        edit = chosen(rng, EDITS)
        try:
            edit(file, rng)
        except (ValueError, IndexError, struct.error):  # an earlier edit has left nothing to work on
            continue
        names.append(edit.__name__)
    return file.encoded(), names
