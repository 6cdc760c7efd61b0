"""Every file of a table -> a store of 8-bit PNG images, and a ledger with a row for each file."""

from rsna_nb.prepare import ledger
from rsna_nb.prepare.ledger import Record
from rsna_nb.prepare.reading import Picture, read_pictures
from rsna_nb.prepare.store import prepare_images, store_path
from rsna_nb.prepare.tasks import PrepareError, cluster, image_file, to_8_bits

# fmt: off
__all__ = [
    "Picture", "PrepareError", "Record", "cluster", "image_file", "ledger", "prepare_images", "read_pictures",
    "store_path", "to_8_bits",
]
# fmt: on
