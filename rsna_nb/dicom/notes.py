"""What is odd about a file that can be read: the words of the ledger's column `notes`.

A note never stops a file. It is counted where the user looks, and the setting `leave_out_notes` decides whether such a
file trains.
"""

NOTES = {
    "turned": "with the polarity of its header, air is brighter than tissue; the image was inverted",
    "no air": "no air was seen, so the polarity is that of the file's header",
    "label": "a label or the edge of a film may remain beside the breast",
    "low contrast": "the breast's grey levels span less than a tenth of the range",
    "side": "the file's header says another side than the table",
    "view": "the file's header says another view than the table",
}
"""Note -> what it means. The ledger joins several notes of a file with "; "."""
