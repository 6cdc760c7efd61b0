"""Small data sets in the layouts that people have: drawn breasts, and the columns of the published tables.

Each function writes one into a folder and returns the images that a correct reading keeps: a table for each split.
"""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from openpyxl import Workbook
from pydicom.dataset import Dataset

from rsna_nb.metadata.layout import Layout
from tests.conftest import write_dicom

WOMEN, TEST_WOMEN = 18, 6
SHAPE = (160, 120)
Kept = dict[str, pd.DataFrame]
"""Split -> patient_id, laterality, view, cancer and path of each image, in any order."""

RSNA = [
    *("site_id", "patient_id", "image_id", "laterality", "view", "age", "cancer", "biopsy", "invasive", "BIRADS"),
    *("implant", "density", "machine_id", "difficult_negative_case"),
]
RSNA_TEST = "site_id patient_id image_id laterality view age implant machine_id prediction_id".split()
CASES = [
    *("patient_id", "breast_density", "left or right breast", "image view", "abnormality id", "abnormality type"),
    *("mass shape", "mass margins", "assessment", "pathology", "subtlety"),
    *("image file path", "cropped image file path", "ROI mask file path"),
]
CALCIFICATIONS = [
    {"breast_density": "breast density", "mass shape": "calc type", "mass margins": "calc distribution"}.get(name, name)
    for name in CASES
]
DICOM_INFO = [
    *("file_path", "image_path", "AccessionNumber", "BodyPartExamined", "Columns", "Laterality", "Modality"),
    *("PatientID", "PatientOrientation", "Rows", "SeriesDescription", "SeriesInstanceUID", "StudyInstanceUID"),
]
CESM = [
    *("Image_name", "Patient_ID", "Side", "Type", "Age", "Breast density (ACR)", "BIRADS", "Findings", "View", "Tags"),
    *("Machine", "Pathology Classification/ Follow up"),
]


def cohort(women: int = WOMEN, first: int = 1) -> pd.DataFrame:
    """CC and MLO of both breasts of each woman; every third woman has cancer in one breast."""
    rows = [
        {"woman": woman, "side": side, "view": view, "cancer": int(woman % 3 == 0 and side == "LR"[woman % 2])}
        for woman in range(first, first + women)
        for side in "LR"
        for view in ("CC", "MLO")
    ]
    return pd.DataFrame(rows)


def picture(seed: int, side: str = "L", cancer: int = 0) -> np.ndarray:
    """A drawn breast of 8 bits: dark air, textured tissue at the side's edge, and a bright mass with cancer."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    height, width = rng.uniform(0.36, 0.44) * SHAPE[0], rng.uniform(0.55, 0.75) * SHAPE[1]
    tissue = ((y - SHAPE[0] / 2) / height) ** 2 + (x / width) ** 2 < 1
    values = np.where(tissue, rng.normal(120, 15, SHAPE), 2)
    if cancer:
        values += 90 * (np.hypot(y - SHAPE[0] / 2, x - width / 2) < 9)
    values = np.clip(values, 0, 255).astype(np.uint8)
    return values if side == "L" else values[:, ::-1].copy()


def write(path: Path, seed: int, side: str = "L", cancer: int = 0, **header: object) -> Path:
    """Write a drawn breast in the format that the file's name says."""
    pixels = picture(seed, side, cancer)
    if path.suffix in (".dcm", ".dicom"):
        return write_dicom(path, pixels.astype(np.uint16) * 16, SOPInstanceUID=f"1.2.{seed + 1}", **header)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def write_table(path: Path, rows: list[dict] | pd.DataFrame, columns: list[str] | None = None, sep: str = ",") -> None:
    """Write a table with these columns; those that the rows lack are empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).reindex(columns=columns).to_csv(path, index=False, sep=sep)


def write_workbook(path: Path, rows: list[dict], columns: list[str], sheet: str) -> None:
    """Write an xlsx file with one sheet."""
    book = Workbook()
    book.active.title = sheet
    for row in [columns, *([row.get(name) for name in columns] for row in rows)]:
        book.active.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


def kept(rows: list[dict]) -> pd.DataFrame:
    """The images that a correct reading keeps."""
    return pd.DataFrame(rows, columns=["patient_id", "laterality", "view", "cancer", "path"])


def _kept(patient: object, row: pd.Series, path: Path, cancer: int | None = None) -> dict:
    label = row.cancer if cancer is None else cancer
    return {"patient_id": str(patient), "laterality": row.side, "view": row.view, "cancer": label, "path": str(path)}


def _rsna(folder: Path, table: Path, pattern: str, women: int, first: int = 1, split: str = "train") -> pd.DataFrame:
    """RSNA's table and the images that `pattern` names; {split} is replaced."""
    rows, found = [], []
    for number, row in enumerate(cohort(women, first).itertuples()):
        patient, image = str(10000 + row.woman), str(1459541791 + number + 1000 * first)
        path = folder / pattern.format(split=split, patient_id=patient, image_id=image)
        write(path, 1000 * first + number, row.side, row.cancer)
        site, machine = (1, 49) if row.woman % 2 else (2, 29)
        values = {"site_id": site, "machine_id": machine, "age": 40 + row.woman, "implant": 0, "biopsy": row.cancer}
        values |= {"patient_id": patient, "image_id": image, "laterality": row.side, "view": row.view}
        values |= {"cancer": row.cancer, "prediction_id": f"{patient}_{row.side}", "fold": row.woman % 4}
        rows.append(values | {"invasive": row.cancer, "difficult_negative_case": False})
        found.append(_kept(patient, row, path))
    folds = ["fold"] if table.stem == "train_folds" else []
    write_table(table, rows, RSNA_TEST if split == "test" else RSNA + folds)
    return kept(found)


def rsna(folder: Path) -> Kept:
    """The competition's folder."""
    pattern = "{split}_images/{patient_id}/{image_id}.dcm"
    train = _rsna(folder, folder / "train.csv", pattern, WOMEN)
    return {"train": train, "test": _rsna(folder, folder / "test.csv", pattern, TEST_WOMEN, 50, "test")}


def radek1(variant: str) -> Callable[[Path], Kept]:
    """One size of radek1's PNG files, with train.csv in the folder above, as its users have it."""

    def make(folder: Path) -> Kept:
        pattern = f"train_images_processed{variant}/{{patient_id}}/{{image_id}}.png"
        return {"train": _rsna(folder, folder.parent / "train.csv", pattern, WOMEN)}

    return make


def theoviel(folder: Path) -> Kept:
    """PNG files of <patient>_<image>.png."""
    return {"train": _rsna(folder, folder / "train.csv", "{patient_id}_{image_id}.png", WOMEN)}


def remekkinas(folder: Path) -> Kept:
    """The same in a folder of their own."""
    return {"train": _rsna(folder, folder / "train.csv", "bc_1280_train_lut/{patient_id}_{image_id}.png", WOMEN)}


def awsaf49(folder: Path) -> Kept:
    """RSNA's own folders with PNG files."""
    return {"train": _rsna(folder, folder / "train.csv", "train_images/{patient_id}/{image_id}.png", WOMEN)}


def mammo_clip(folder: Path) -> Kept:
    """Mammo-CLIP's PNG files and its table with folds."""
    pattern = "train_images_png/{patient_id}/{image_id}.png"
    return {"train": _rsna(folder, folder / "train_folds.csv", pattern, WOMEN)}


def vindr(pattern: str) -> Callable[[Path], Kept]:
    """VinDr-Mammo; its table holds both splits."""
    positive, negative = ("BI-RADS 4", "BI-RADS 5"), ("BI-RADS 1", "BI-RADS 2", "BI-RADS 3")

    def make(folder: Path) -> Kept:
        rows: list[dict] = []
        found: dict[str, list[dict]] = {"train": [], "test": []}
        for number, row in enumerate(cohort(WOMEN + TEST_WOMEN).itertuples()):
            split = "training" if row.woman <= WOMEN else "test"
            study, image = f"{row.woman:032x}", f"{number + 4096:032x}"
            birads = positive[row.woman % 2] if row.cancer else negative[row.woman % 3]
            values = {"study_id": study, "series_id": "s" + study, "image_id": image, "laterality": row.side}
            values |= {"view_position": row.view, "height": SHAPE[0], "width": SHAPE[1], "breast_birads": birads}
            rows.append(values | {"breast_density": "DENSITY " + "ABCD"[row.woman % 4], "split": split})
            path = write(folder / pattern.format(study=study, image=image), number, row.side, row.cancer)
            found[split.removesuffix("ing")].append(_kept(study, row, path))
        write_table(folder / "breast-level_annotations.csv", rows)
        return {split: kept(images) for split, images in found.items()}

    return make


def _cbis_rows(frame: pd.DataFrame, kind: str, split: str) -> tuple[list[dict], list[str]]:
    """Rows of findings, and the name of each image's case. One breast has its malignant finding in one view only."""
    rows, names = [], []
    for row in frame.itertuples():
        patient, side = f"P_{row.woman:05d}", {"L": "LEFT", "R": "RIGHT"}[row.side]
        name = f"{kind.capitalize()}-{split}_{patient}_{side}_{row.view}"
        pathology = "MALIGNANT" if row.cancer else ("BENIGN", "BENIGN_WITHOUT_CALLBACK")[row.woman % 2]
        hidden = row.cancer and row.woman % 2 == 0 and row.view == "CC"
        findings = ["BENIGN" if hidden else pathology] + (["BENIGN"] if row.woman % 4 == 0 else [])
        for number, finding in enumerate(findings, 1):
            crop = f"{name}_{number}/1.3.6.{number}/1.3.7.{number}/000000.dcm"
            values = {"patient_id": patient, "left or right breast": side, "image view": row.view}
            values |= {"abnormality id": number, "abnormality type": kind, "assessment": 4, "pathology": finding}
            values |= {"image file path": f"{name}/1.3.6.{row.Index}/1.3.7.{row.Index}/000000.dcm"}
            rows.append(values | {"cropped image file path": crop, "ROI mask file path": crop + "\n"})
        names.append(name)
    return rows, names


def _cbis(folder: Path, tables: Path, file: Callable[[str, str], Path]) -> Kept:
    """The four tables. `file` names the file of a case and what it shows ("full", "crop" or "mask")."""
    found: dict[str, list[dict]] = {"train": [], "test": []}
    seed = 0
    parts = [("mass", "Training", WOMEN, 1), ("calc", "Training", 3, WOMEN + 1)]
    parts += [("mass", "Test", TEST_WOMEN, 50), ("calc", "Test", 3, 60)]
    for kind, split, women, first in parts:
        frame = cohort(women, first)
        rows, names = _cbis_rows(frame, kind, split)
        short = {"Training": "train", "Test": "test"}[split]
        if kind == "calc":
            rows = [row | {"breast density": 2} for row in rows]
        write_table(
            tables / f"{kind}_case_description_{short}_set.csv", rows, CASES if kind == "mass" else CALCIFICATIONS
        )
        for row, name in zip(frame.itertuples(), names, strict=True):
            path = write(file(name, "full"), seed := seed + 1, row.side, row.cancer)
            for shows in ("crop", "mask"):
                write(file(name + "_1", shows), 9999, row.side)
            found[short].append(_kept(f"P_{row.woman:05d}", row, path))
    return {split: kept(images) for split, images in found.items()}


def cbis_tcia(folder: Path) -> Kept:
    """CBIS-DDSM as NBIA's data retriever writes it: full mammograms, crops and masks."""
    series = {"full": "full mammogram images", "crop": "cropped images", "mask": "ROI mask images"}

    def file(name: str, shows: str) -> Path:
        study = folder / "CBIS-DDSM" / name / "07-20-2016-DDSM-NA-74994"
        return study / f"1.000000-{series[shows]}-24515" / ("1-2.dcm" if shows == "mask" else "1-1.dcm")

    return _cbis(folder, folder, file)


def cbis_jpeg(folder: Path) -> Kept:
    """CBIS-DDSM as its mirror of JPEG files has it."""
    info: list[dict] = []

    def file(name: str, shows: str) -> Path:
        uid = f"1.3.6.1.4.1.9590.100.1.2.{len(info) + 1}"
        path = folder / "jpeg" / uid / f"1-{len(info) % 300:03d}.jpg"
        described = {"full": "full mammogram images", "crop": "cropped images", "mask": "ROI mask images"}[shows]
        described = "" if len(info) % 10 == 0 else described  # the published file lacks some
        info.append(
            {"image_path": f"CBIS-DDSM/jpeg/{uid}/{path.name}", "PatientID": name, "SeriesDescription": described}
            | {"SeriesInstanceUID": uid, "Laterality": "L" if "LEFT" in name else "R", "Modality": "MG"}
        )
        return path

    found = _cbis(folder, folder / "csv", file)
    write_table(folder / "csv" / "dicom_info.csv", info, DICOM_INFO)
    write_table(folder / "csv" / "meta.csv", [{"SeriesInstanceUID": row["SeriesInstanceUID"]} for row in info])
    return found


def inbreast(folder: Path) -> Kept:
    """INbreast: the table does not name the woman, the file's name does. One woman was examined twice."""
    rows, found = [], []
    frame = cohort()
    frame = pd.concat([frame.assign(month=201001), frame[frame["woman"] == 3].assign(month=200801, cancer=0)])
    malignant, benign = ("4a", "4b", "4c", "5", "6"), ("1", "2", "3")
    for number, row in enumerate(frame.itertuples()):
        woman, position = f"{row.woman + 2**60:016x}", {"CC": "CC", "MLO": "ML"}[row.view]
        name = 20586908 + 26 * number
        path = folder / "AllDICOMs" / f"{name}_{woman}_MG_{row.side}_{position}_ANON.dcm"
        write(path, number, row.side, row.cancer)
        birads = malignant[row.woman % 5] if row.cancer else benign[row.woman % 3]
        values = {"Patient ID": "removed", "Patient age": "removed", "Laterality": row.side, "View": row.view}
        values |= {"Acquisition date": row.month, "File Name": name, "ACR": f"{1 + row.woman % 4} ", "Bi-Rads": birads}
        rows.append(values)
        # Of a breast with cancer only the examination that shows it is kept.
        if not (row.month == 200801 and row.side == "LR"[row.woman % 2]):
            found.append(_kept(woman, row, path))
    write_table(folder / "INbreast.csv", rows, sep=";")
    return {"train": kept(found)}


VIEW_CODES = {"CC": ("399162004", "cranio-caudal"), "MLO": ("399368009", "medio-lateral oblique")}


def _view_code(view: str) -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodeMeaning = VIEW_CODES[view]
    item.CodingSchemeDesignator = "SCT"
    return [item]


def cmmd(folder: Path) -> Kept:
    """CMMD: a row a breast; view and side stand in the headers. The other breast of most women has no label."""
    rows, found = [], []
    for woman, images in cohort().groupby("woman"):
        name, both = f"D{1 + woman % 2}-{woman:04d}", woman % 4 == 1
        labelled = "LR" if both else "LR"[woman % 2]
        for side in labelled:
            cancer = int(images.loc[images["side"] == side, "cancer"].max())
            values = {"ID1": name, "LeftRight": side, "Age": 40 + woman, "number": len(images), "abnormality": "mass"}
            rows.append(values | {"classification": "Malignant" if cancer else "Benign", "subtype": None})
        for number, row in enumerate(images.itertuples(), 1):
            path = folder / "CMMD" / name / "07-18-2010-NA-NA-79377" / "1.000000-NA-70244" / f"1-{number}.dcm"
            header = {"ImageLaterality": row.side, "ViewCodeSequence": _view_code(row.view), "PatientID": name}
            write(path, 10 * woman + number, row.side, row.cancer, **header)
            if row.side in labelled:
                found.append(_kept(name, row, path))
    columns = ["ID1", "LeftRight", "Age", "number", "abnormality", "classification", "subtype"]
    write_workbook(folder / "CMMD_clinicaldata_revision.xlsx", rows, columns, "Sheet1")
    return {"train": kept(found)}


def embed(folder: Path) -> Kept:
    """EMBED: a table of images and one of findings.

    Women 1 and 2 have no finding that decides, woman 4 has a high-risk lesion, and woman 3 was examined a year before
    her cancer. Some images are synthesized from tomosynthesis, some are magnified.
    """
    images, findings, found = [], [], []
    frame = cohort().assign(exam=2)
    frame = pd.concat([frame, frame[frame["woman"] == 3].assign(exam=1, cancer=0)])
    undecided = {1: {"asses": "A"}, 2: {"asses": "S"}}
    for number, row in enumerate(frame.itertuples()):
        accession, side = 9_000_000 + 10 * row.woman + row.exam, "LR"[row.woman % 2]
        stored = f"cohort_1/{row.woman}/1.2.{row.exam}/1.3.{number}/{number}.dcm"
        path = write(folder / "images" / stored, number, row.side, row.cancer)
        values = {"empi_anon": 11_000_000 + row.woman, "acc_anon": accession, "ImageLateralityFinal": row.side}
        values |= {"ViewPosition": row.view, "FinalImageType": "2D", "StudyDescription": "MG Screening"}
        images.append(values | {"anon_dicom_path": f"/mnt/anon_dicom/{stored}"})
        if row.woman % 5 == 0:
            images.append(images[-1] | {"FinalImageType": "cview", "anon_dicom_path": f"/mnt/{stored}c.dcm"})
        if row.woman % 7 == 0:
            images.append(images[-1] | {"spot_mag": 1.0, "anon_dicom_path": f"/mnt/{stored}m.dcm"})
        earlier = row.woman == 3 and row.exam == 1 and row.side == side
        if not earlier and not (row.woman in undecided and row.side == side):
            found.append(_kept(11_000_000 + row.woman, row, path))
    for (woman, exam), rows in frame.groupby(["woman", "exam"]):
        side, cancer = "LR"[woman % 2], int(rows["cancer"].max())
        values = {"empi_anon": 11_000_000 + woman, "acc_anon": 9_000_000 + 10 * woman + exam, "numfind": 1}
        values |= {"age_at_study": 51.0, "tissueden": 2.0, "desc": "MG Screening", "study_date_anon": "2015-01-01"}
        finding = {"side": side, "asses": "N"} | undecided.get(woman, {})
        if cancer or woman == 4:
            severity = (woman % 2) if cancer else 2
            finding = {"side": side, "bside": side, "asses": "M", "path_severity": float(severity)}
        findings.append(values | finding)
        if woman % 2:  # a benign finding of the whole examination as well
            findings.append(values | {"numfind": 2, "asses": "B", "side": "B" if woman % 4 == 1 else None})
    columns = "empi_anon acc_anon study_date_anon StudyDescription FinalImageType ImageLateralityFinal ViewPosition"
    write_table(folder / "tables" / "EMBED_OpenData_metadata.csv", images, [*columns.split(), *IMAGES_OF_EMBED])
    columns = "empi_anon acc_anon study_date_anon desc numfind side asses tissueden age_at_study path_severity bside"
    write_table(folder / "tables" / "EMBED_OpenData_clinical.csv", findings, columns.split())
    return {"train": kept(found)}


IMAGES_OF_EMBED = ["spot_mag", "anon_dicom_path", "Manufacturer", "ManufacturerModelName"]


def csaw(folder: Path) -> Kept:
    """CSAW-CC: all examinations of each woman; her cancer lies on one side and is found in the last or after it."""
    rows, found = [], []
    frame = pd.concat([cohort().assign(year=2010), cohort().assign(year=2014)])
    for number, row in enumerate(frame.itertuples()):
        case, side = int(row.woman % 3 == 0), "LR"[row.woman % 2]
        timing = (3 if row.year == 2010 else 1 + row.woman % 2) if case else None
        name = f"{row.woman:05d}_20990909_{row.side}_{row.view}_{number}.dcm"
        path = write(folder / f"batch_{1 + row.woman % 2}" / name, number, row.side, row.cancer)
        values = {"anon_patientid": row.woman, "exam_year": row.year, "x_age": 1 + row.woman % 2, "x_case": case}
        values |= {"x_cancer_laterality": {"L": "Left", "R": "Right"}[side] if case else None, "rad_timing": timing}
        values |= {"imagelaterality": {"L": "Left", "R": "Right"}[row.side], "viewposition": row.view}
        rows.append(values | {"rad_recall": int(timing == 1), "libra_percentdensity": 20.5, "anon_filename": name})
        if not (case and row.side == side and row.year == 2010):
            found.append(_kept(row.woman, row, path))
    write_table(folder / "CSAW-CC_breast_cancer_screening_data.csv", rows)
    return {"train": kept(found)}


def cdd_cesm(folder: Path) -> Kept:
    """CDD-CESM: low-energy images beside subtracted ones of the same breasts; some have a row for each finding."""
    rows, found = [], []
    folders = {"DM": "Low energy images of CDD-CESM", "CM": "Subtracted images of CDD-CESM"}
    for number, row in enumerate(cohort().itertuples()):
        pathology = "Malignant" if row.cancer else ("Benign", "Normal")[row.woman % 2]
        for kind, type_ in (("DM", "DM"), ("CM", "CESM")):
            name = f"P{row.woman}_{row.side}_{kind}_{row.view}"
            path = write(folder / folders[kind] / f"{name}.jpg", number + 500 * (kind == "CM"), row.side, row.cancer)
            values = {"Image_name": name, "Patient_ID": row.woman, "Side": row.side, "Type": type_, "View": row.view}
            values |= {"Age": 40 + row.woman, "Breast density (ACR)": "b", "BIRADS": "5" if row.cancer else "2"}
            values |= {"Pathology Classification/ Follow up": pathology}
            rows += [values, values | {"Findings": "Second mass"}] if row.woman % 6 == 0 else [values]
            if kind == "DM":
                found.append(_kept(row.woman, row, path))
    write_workbook(folder / "Radiology-manual-annotations.xlsx", rows, CESM, "all")
    return {"train": kept(found)}


INFO = """INFORMATION:

This file lists the films in the MIAS database and provides
appropriate details as follows:

1st column: MIAS database reference number.

REFNUM BG CLASS SEVERITY X Y RADIUS
"""


def mini_mias(folder: Path) -> Kept:
    """mini-MIAS: one oblique view of each breast; two films in a row are of one woman, the even number is left."""
    lines, found = [], []
    frame = cohort()
    for row in frame[frame["view"] == "MLO"].itertuples():
        name = f"mdb{2 * row.woman - (row.side == 'R'):03d}"
        path = write(folder / "all-mias" / f"{name}.pgm", 2 * row.woman - (row.side == "R"), row.side, row.cancer)
        found.append(_kept(row.woman, row, path))
        if row.cancer:
            lines += [f"{name} G SPIC M 535 425 197"] + [f"{name} G CIRC B 100 200 30"] * (row.woman % 2)
        else:
            lines.append((f"{name} D NORM", f"{name} F CIRC B 522 280 69", f"{name} B CALC B *NOTE 3*")[row.woman % 3])
    (folder / "all-mias" / "Info.txt").write_text(INFO + "\n".join(sorted(lines)) + "\n\nNOTES\n=====\n1) The list.\n")
    return {"train": kept(found)}


DATA_SETS: dict[str, Callable[[Path], Kept]] = {
    "rsna": rsna,
    "radek1_256": radek1("_cv2_256"),
    "radek1_512": radek1("_512"),
    "radek1_1024": radek1("_1024"),
    "radek1_dicomsdl": radek1("_cv2_dicomsdl_256"),
    "theoviel": theoviel,
    "remekkinas": remekkinas,
    "awsaf49": awsaf49,
    "mammo_clip": mammo_clip,
    "vindr_dicom": vindr("images/{study}/{image}.dicom"),
    "vindr_png": vindr("images_png/{study}/{image}.png"),
    "cbis_tcia": cbis_tcia,
    "cbis_jpeg": cbis_jpeg,
    "inbreast": inbreast,
    "cmmd": cmmd,
    "embed": embed,
    "csaw": csaw,
    "cdd_cesm": cdd_cesm,
    "mini_mias": mini_mias,
}
"""Name of a test -> the function that writes the data set into the folder `data` and returns what is to be read."""


def described(layouts: list[Layout]) -> tuple[str, str]:
    """The two tables of docs/data_sets.md, and its list of what has no second source."""
    rows = [layout.about | {"label": layout.label or "Proven by biopsy."} for layout in layouts]
    rows.sort(key=lambda row: (not row["title"].startswith("RSNA"), row["title"]))
    parts = [("get", "licence", "label"), ("files", "mapped", "left_out")]
    heads = [("how to get it", "licence", "what cancer means"), ("files", "what is mapped", "what is left out")]
    tables = [
        [
            f"| data set | {' | '.join(head)} |",
            f"|---|{'---|' * len(head)}",
            *(f"| {' | '.join(['**' + row['title'] + '**', *(row[name] for name in names)])} |" for row in rows),
        ]
        for names, head in zip(parts, heads, strict=True)
    ]
    unverified = [f"- {row['title']}: {row['unverified']}." for row in rows if "unverified" in row]
    return "\n\n".join("\n".join(table) for table in tables), "\n".join(unverified)


if __name__ == "__main__":
    print(*described(Layout.known()), sep="\n\n")
