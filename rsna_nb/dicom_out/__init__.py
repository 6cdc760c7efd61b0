"""Scores and heat maps -> DICOM objects in the study of their images: for research only, not for clinical use.

A Secondary Capture for each image is the picture with the heat map and a mark burnt in. A Structured Report for each
study (template TID 1500) has the score of each image and breast. Both carry the patient and study attributes of the
source, which is only read. UIDs are made from those of the source and the model, so the same command overwrites its own
files. Needs highdicom: pip install 'rsna_nb[dicom-out]'.
"""

from rsna_nb.dicom_out.results import DicomOutError, DicomResults

__all__ = ["DicomOutError", "DicomResults"]
