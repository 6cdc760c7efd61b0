"""DICOM files as lists of raw elements, so that faults can be written that no library would write."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from pydicom import uid
from pydicom.datadict import dictionary_VR

UNDEFINED = 0xFFFFFFFF
LONG = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "UC", "UN", "UR", "UT", "SV", "UV")  # VRs with a length of 4 bytes
ITEM, DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"
PIXEL_DATA, TRANSFER_SYNTAX = 0x7FE00010, 0x00020010


@dataclass
class Element:
    """One element as it is on the disk. `length` is None if it is the length of the value."""

    tag: int
    vr: str
    value: bytes
    length: int | None = None

    def encoded(self, implicit: bool) -> bytes:
        length = len(self.value) if self.length is None else self.length
        head = struct.pack("<HH", self.tag >> 16, self.tag & 0xFFFF)
        if implicit and self.tag >> 16 != 2:
            return head + struct.pack("<I", length) + self.value
        if self.vr in LONG:
            return head + self.vr.encode() + struct.pack("<HI", 0, length) + self.value
        return head + self.vr.encode() + struct.pack("<H", length & 0xFFFF) + self.value


@dataclass
class File:
    """A DICOM file in little endian. `is_implicit` decides how it is written, whatever transfer syntax it declares."""

    elements: list[Element]
    is_implicit: bool = False
    preamble: bytes = bytes(128) + b"DICM"

    def element(self, tag: int) -> Element | None:
        return next((element for element in self.elements if element.tag == tag), None)

    @property
    def pixels(self) -> Element:
        return self.element(PIXEL_DATA) or Element(PIXEL_DATA, "OW", b"")

    @property
    def codestream(self) -> bytes:
        return b"".join(fragments(self.pixels.value)) if self.pixels.length == UNDEFINED else self.pixels.value

    @codestream.setter
    def codestream(self, codestream: bytes) -> None:
        is_encapsulated = self.pixels.length == UNDEFINED
        self.pixels.value = encapsulated([codestream]) if is_encapsulated else codestream

    def set(self, tag: int, vr: str, value: bytes) -> None:
        """Insert an element in its place, or replace the one that is there."""
        others = [element for element in self.elements if element.tag != tag]
        self.elements = sorted([*others, Element(tag, vr, value)], key=lambda element: element.tag)

    def encoded(self) -> bytes:
        return self.preamble + b"".join(element.encoded(self.is_implicit) for element in self.elements)


def parsed(content: bytes) -> File:
    """Parse a file into its elements. Sequences stay raw, so their lengths must be defined."""
    file, position = File([]), 132
    while position < len(content):
        group, number = struct.unpack_from("<HH", content, position)
        vr, length, start = raw_header(content, position, file.is_implicit and group != 2)
        end = len(content) if length == UNDEFINED else start + length
        value = content[start:end]
        file.elements.append(Element(group << 16 | number, vr, value, UNDEFINED if length == UNDEFINED else None))
        if (group, number) == (2, 0x10):
            file.is_implicit = value.rstrip(b"\0").decode() == uid.ImplicitVRLittleEndian
        position = end
    return file


def raw_header(content: bytes, position: int, implicit: bool) -> tuple[str, int, int]:
    """Return the VR, the length and the start of the value of the element at `position`."""
    if implicit:
        tag = struct.unpack_from("<HH", content, position)
        return dictionary_VR(tag).split()[0], struct.unpack_from("<I", content, position + 4)[0], position + 8
    vr = content[position + 4 : position + 6].decode()
    if vr in LONG:
        return vr, struct.unpack_from("<I", content, position + 8)[0], position + 12
    return vr, struct.unpack_from("<H", content, position + 6)[0], position + 8


def fragments(value: bytes) -> list[bytes]:
    """Return the items of encapsulated PixelData after the offset table (PS3.5 A.4). ValueError if it has none."""
    items, position = [], 0
    while value[position : position + 4] == ITEM:
        length = struct.unpack_from("<I", value, position + 4)[0]
        items.append(value[position + 8 : position + 8 + length])
        position += 8 + length
    if position < len(value) and value[position : position + 4] != DELIMITER[:4]:
        raise ValueError("no item")
    return items[1:]


def encapsulated(parts: Iterable[bytes], offsets: bytes = b"") -> bytes:
    """Encapsulate fragments as PixelData (PS3.5 A.4)."""
    items = (part + bytes(len(part) % 2) for part in (offsets, *parts))
    return b"".join(ITEM + struct.pack("<I", len(part)) + part for part in items) + DELIMITER


def even(value: bytes) -> bytes:
    """Pad a value with a space to an even length, as DICOM demands."""
    return value + b" " * (len(value) % 2)
