"""The anatomy of a generated woman: the outline of each breast in each view, its lesions and benign look-alikes.

A breast is made once and drawn in every view, so that a lesion lies at the same distance behind the nipple in each.
Both breasts of a woman are made together (`make_woman`), because they are alike: some findings tell nothing unless both
views, or both breasts, are compared. Lengths are fractions of the image's rows. Every breast is described as a left
one: the chest wall is at column 0, and x points towards the nipple.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rsna_nb.synthetic.lesions import LESION_KINDS

VIEWS = ("CC", "MLO")
MALIGNANT = {"spiculated_mass": 0.4, "microcalcification_cluster": 0.4, "asymmetric_density": 0.2}  # shares
ONE_VIEW = 0.2  # share of malignant masses and clusters that one view alone shows, as dense tissue hides some
OVERLAP = 0.2  # share of breasts with an overlap of tissue that looks like a malignant mass in one view alone
# Share of women without cancer who have a density in both breasts, at mirrored places. It is that of the asymmetric
# densities among the breasts with cancer, so that a density in one breast alone tells nothing.
SYMMETRIC = MALIGNANT["asymmetric_density"]


@dataclass(frozen=True)
class Outline:
    """The edge of a breast in one view."""

    top: float
    height: float
    depth: float  # from the chest wall to the nipple
    nipple: float  # its place from the top, as a fraction of the breast's height
    upper: tuple[float, float]  # two exponents that shape the curve above the nipple
    lower: tuple[float, float]  # and below it
    axilla: float  # depth at the top as a share of `depth` (MLO: the breast continues towards the arm)
    muscle: tuple[float, float]  # width at the top and height of the pectoral muscle; zeros in CC
    implant: tuple[float, float]  # semi-axes of an implant at the chest wall; zeros if there is none

    @property
    def nipple_row(self) -> float:
        """Row of the nipple, as a fraction of the image's rows."""
        return self.top + self.nipple * self.height

    def reach(self, y: NDArray) -> NDArray:
        """Return the distance of the skin from the chest wall at rows `y`; 0 above and below the breast."""
        t = (np.asarray(y) - self.top) / self.height
        above = t < self.nipple
        away = np.where(above, (self.nipple - t) / self.nipple, (t - self.nipple) / (1 - self.nipple))
        inside = np.clip(1 - away, 0, 1)
        power = np.where(above, self.upper[0], self.lower[0])
        root = np.where(above, self.upper[1], self.lower[1])
        curve = (1 - np.clip(away, 0, 1) ** power) ** root
        floor = np.where(above, self.axilla, 0.0)
        return np.where(inside > 0, self.depth * (floor + (1 - floor) * curve), 0.0)

    def muscle_edge(self, y: NDArray) -> NDArray:
        """Return the distance of the muscle's edge from the chest wall at rows `y`; 0 below the muscle."""
        width, height = self.muscle
        if height == 0:
            return np.zeros_like(np.asarray(y, dtype=float))
        return width * np.clip(1 - np.asarray(y) / height, 0, 1) ** 0.85

    def holds(self, x: float, y: float, radius: float, margin: float = 0.015) -> bool:
        """Return whether a disc at (x, y) lies within the breast, clear of skin, muscle, implant and chest wall."""
        angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        px, py = x + (radius + margin) * np.cos(angles), y + (radius + margin) * np.sin(angles)
        clear = np.all(px < self.reach(py)) and np.all(px > self.muscle_edge(py)) and np.all(px > 0)
        if self.implant[0] > 0:
            a, b = self.implant
            clear &= np.all((px / a) ** 2 + ((py - self.nipple_row) / b) ** 2 > 1)
        return bool(clear and np.all((py > 0) & (py < 1)))


@dataclass(frozen=True)
class Lesion:
    """A malignant lesion or a benign look-alike at one place of a breast."""

    kind: str  # a key of LESION_KINDS
    cancer: int  # 1 or 0
    behind_nipple: float  # distance from the nipple towards the chest wall
    offset: Mapping[str, float]  # view -> distance below the level of the nipple; only the views that show it
    radius: float  # the whole lesion lies within it
    contrast: float
    seed: int  # seeds its shape

    def centre(self, outline: Outline, view: str) -> tuple[float, float]:
        """Return the centre (x, y) of the lesion in a view."""
        return outline.depth - self.behind_nipple, outline.nipple_row + self.offset[view]


@dataclass(frozen=True)
class Breast:
    """Everything that all images of one breast have in common."""

    laterality: str
    density: str
    outlines: dict[str, Outline]
    lesions: tuple[Lesion, ...]
    tissue_seed: int = 0  # seeds the large structures of its tissue, which both breasts of a woman share


def _make_outlines(rng: np.random.Generator, implant: bool = False) -> dict[str, Outline]:
    """Sample the outlines of a breast. MLO is taller than CC and shows the muscle; the depth is similar."""
    depth = rng.uniform(0.32, 0.46)
    height = rng.uniform(0.66, 0.86)
    bend = (rng.uniform(1.6, 2.1), rng.uniform(0.65, 0.95))
    semi_axes = (0.42 * depth, 0.3 * height) if implant else (0.0, 0.0)
    top = rng.uniform(0.3, 0.7) * (1 - height)
    skew = rng.uniform(-0.2, 0.2)
    cc = Outline(
        top, height, depth, rng.uniform(0.42, 0.58), (bend[0] + skew, bend[1]), (bend[0] - skew, bend[1]),
        0.0, (0.0, 0.0), semi_axes,
    )  # fmt: skip
    foot = rng.uniform(0.86, 0.97)
    mlo = Outline(
        -0.05, foot + 0.05, depth * rng.uniform(0.95, 1.08), rng.uniform(0.58, 0.68),
        (rng.uniform(1.7, 2.1), rng.uniform(0.7, 0.95)), (rng.uniform(1.8, 2.3), rng.uniform(0.55, 0.75)),
        rng.uniform(0.35, 0.6), (rng.uniform(0.45, 0.62) * depth, rng.uniform(0.4, 0.58)), semi_axes,
    )  # fmt: skip
    return {"CC": cc, "MLO": mlo}


def make_woman(
    rng: np.random.Generator, density: str = "B", implant: bool = False, cancer: Collection[str] = ()
) -> dict[str, Breast]:
    """Make both breasts of a woman at random: outlines, benign look-alikes, and the malignant lesions.

    Parameters
    ----------
    rng
        Source of everything random.
    density
        BI-RADS category "A" (fatty) to "D" (dense).
    implant
        Whether the breasts have implants.
    cancer
        The sides with cancer, "L" and "R"; each has one malignant lesion, the first of its `lesions`.

    Raises
    ------
    RuntimeError
        If a malignant lesion does not fit.
    """
    left = _make_outlines(rng, implant)
    outlines = {"L": left, "R": {view: _alike(rng, outline) for view, outline in left.items()}}
    placed: dict[str, list[Lesion]] = {side: [] for side in outlines}
    if not cancer and rng.random() < SYMMETRIC:
        for side, lesion in zip(placed, _place_pair(rng, outlines), strict=False):
            placed[side].append(lesion)
    for side, own in placed.items():
        own += _lesions(rng, outlines[side], own, side in cancer)
    seed = int(rng.integers(2**31))
    return {side: Breast(side, density, outlines[side], tuple(placed[side]), seed) for side in placed}


def _alike(rng: np.random.Generator, outline: Outline) -> Outline:
    """The outline of the other breast, which differs by a few per cent."""
    height, depth = (1 + 0.015 * rng.standard_normal(2)).clip(0.95, 1.05)
    muscle = outline.muscle[0] * depth, outline.muscle[1] * height
    nipple = outline.nipple + 0.01 * rng.standard_normal()
    return replace(outline, height=outline.height * height, depth=outline.depth * depth, nipple=nipple, muscle=muscle)


def _lesions(
    rng: np.random.Generator, outlines: dict[str, Outline], others: list[Lesion], cancer: bool
) -> list[Lesion]:
    """Make the lesions of one breast, apart from `others`."""
    # Masses and calcifications are as frequent with a cancer as without one, so their number reveals nothing.
    masses = int(rng.choice([0, 1, 2], p=[0.72, 0.24, 0.04]))
    scattered = rng.random() < 0.05
    calcifications = int(rng.integers(6, 13) if scattered else rng.choice([0, 1, 2, 3], p=[0.5, 0.25, 0.15, 0.1]))
    kinds = ["smooth_mass"] * masses + ["single_calcification"] * calcifications
    overlaps = rng.random() < OVERLAP
    if cancer:
        malignant = str(rng.choice(list(MALIGNANT), p=list(MALIGNANT.values())))
        if malignant == "spiculated_mass" and masses:
            kinds.remove("smooth_mass")
        kinds = [malignant, *kinds]
    if overlaps:  # before a cancer, which always finds room, so that overlaps are as frequent beside one
        kinds = ["overlap", *kinds]
    placed: list[Lesion] = []
    for kind in kinds:
        lesion = _place(rng, kind, outlines, [*others, *placed])
        if lesion is not None:
            # Placed in both views like a mass, since one that had to fit in its own view alone would be told by its
            # size and depth.
            placed.append(_in_one_view(rng, lesion) if kind == "overlap" else lesion)
    placed.sort(key=lambda lesion: -lesion.cancer)
    if cancer and placed[0].kind != "asymmetric_density" and rng.random() < ONE_VIEW:
        placed[0] = _in_one_view(rng, placed[0])
    return placed


def _in_one_view(rng: np.random.Generator, lesion: Lesion) -> Lesion:
    """The lesion in one of its views alone."""
    view = str(rng.choice(list(lesion.offset)))
    return replace(lesion, offset={view: lesion.offset[view]})


def _place_pair(rng: np.random.Generator, outlines: dict[str, dict[str, Outline]]) -> list[Lesion]:
    """Place the same look-alike in both breasts, at mirrored places but for a little; empty if it does not fit."""
    for _ in range(20):
        first = _place(rng, "symmetric_density", outlines["L"], [])
        if first is None:
            continue
        offset = {view: place + 0.01 * rng.standard_normal() for view, place in first.offset.items()}
        second = replace(first, behind_nipple=first.behind_nipple + 0.01 * rng.standard_normal(), offset=offset)
        if all(o.holds(*second.centre(o, view), second.radius) for view, o in outlines["R"].items()):
            return [first, second]
    return []


def _place(rng: np.random.Generator, name: str, outlines: dict[str, Outline], others: list[Lesion]) -> Lesion | None:
    """Place a lesion in all views of a breast, apart from the others. Returns None if a look-alike does not fit.

    A malignant lesion shrinks until it fits, because a breast with cancer must show it.
    """
    kind = LESION_KINDS[name]
    radius = rng.uniform(*kind.radius) * float(np.mean([outline.height for outline in outlines.values()]))
    contrast = rng.uniform(*kind.contrast)
    depth = min(outline.depth for outline in outlines.values())
    for attempt in range(1000 if kind.cancer else 200):
        if attempt and attempt % 100 == 0:
            radius *= 0.92
        behind = rng.uniform(0.15, 0.9) * depth
        offset = {view: rng.uniform(-0.4, 0.4) * outline.height for view, outline in outlines.items()}
        lesion = Lesion(name, kind.cancer, behind, offset, radius, contrast, int(rng.integers(2**31)))
        inside = all(o.holds(*lesion.centre(o, view), radius) for view, o in outlines.items())
        if inside and all(_apart(lesion, other) for other in others):
            return lesion
    if kind.cancer:
        raise RuntimeError(f"No room for a {name} of radius {radius:.3f} in {outlines}.")
    return None


def _apart(a: Lesion, b: Lesion) -> bool:
    """Return whether two lesions are clearly apart in every view that shows both.

    Single calcifications therefore form no cluster.
    """
    gap = a.radius + b.radius + 0.05
    along = a.behind_nipple - b.behind_nipple
    return all(np.hypot(along, a.offset[view] - b.offset[view]) > gap for view in a.offset.keys() & b.offset.keys())
