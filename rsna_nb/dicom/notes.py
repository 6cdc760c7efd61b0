"""What is odd about a file that can be read: the words of the ledger's column `notes`.

A file with a note is prepared like any other. Notes are counted in the log, 00 and 01. The setting `leave_out_notes`
leaves such files out of training.
"""

NOTES = {
    "turned": "as the file has it, air is brighter than tissue; the image was inverted",
    "no air": "no air was seen: the polarity was kept as the file has it, and air that is grey was not cut off",
    "label": "a label or the edge of a film may remain beside the breast",
    "outline": "the crop did not have a breast's outline at first: a part may be missing, or a label attached",
    "low contrast": "the breast's grey levels span less than a tenth of the range",
    "side": "the file's header gives another side than the table",
    "view": "the file's header gives another view than the table",
    "modality": "the header's Modality is not MG (mammography)",
    "for processing": "the file holds raw values for processing, not for presentation",
    "magnified": "the header says that it is a magnification view",
    "spot view": "the header says that it is a spot compression view, which shows a part of the breast",
    "aspect": "the header says that pixels are not square; the column aspect is 1 if it is implausible and not used",
    "rescale": "the header's rescale slope or intercept cannot be used and was left out",
    "window": "a VOI LUT or window of the header cannot be used; the column window says what replaces it",
    "hot pixels": "a few pixels are far outside the range of the others and were not used to set the window",
    "otsu": 'reading "rsna-first-place": the breast detector found no breast, so Otsu\'s threshold made the crop',
    "whole frame": 'reading "rsna-first-place": no breast was found, so the whole frame was kept',
}
"""Note -> what it means. The ledger joins several notes of a file with "; "."""
