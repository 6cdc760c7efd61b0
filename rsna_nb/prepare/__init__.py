"""Every file of a table -> a store of 8-bit PNG pictures and a ledger with a row for each file."""

from rsna_nb.prepare import ledger, store
from rsna_nb.prepare.ledger import Record
from rsna_nb.prepare.reading import read_pictures
from rsna_nb.prepare.store import PrepareError, image_file, prepare_images, store_path, to_8_bits

__all__ = [
    "PrepareError",
    "Record",
    "image_file",
    "ledger",
    "prepare_images",
    "read_pictures",
    "store",
    "store_path",
    "to_8_bits",
]
