"""Draws scanned films, 8 bits: a generated breast with the fog, labels, edges and scratches of real films.

Every film is drawn as mini-MIAS pads its own: 1024 x 1024 pixels with a band of one level at both sides. The breast is
one of `rsna_nb.synthetic`; its skin is blurred, because on film it fades into the air. The same kind and seed give the
same film.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from rsna_nb.synthetic.anatomy import Breast, make_woman
from rsna_nb.synthetic.drawing import MAX_VALUE, Look, draw_mammogram
from rsna_nb.synthetic.table import DENSITIES

SIDE = 1024
SCALE = np.float32(1 / MAX_VALUE)


def make_breast(
    rng: np.random.Generator, laterality: str = "L", density: str = "B", implant: bool = False, cancer: bool = False
) -> Breast:
    """Make a generated woman at random and return one of her breasts; with `cancer` it has one malignant lesion."""
    return make_woman(rng, density, implant, [laterality] if cancer else [])[laterality]


@dataclass
class Film:
    """A film that is being drawn, within its bands.

    Attributes
    ----------
    picture
        float32 (rows, columns) in 0-1, air dark. The chest wall is at the left.
    breast
        True where the breast is.
    foreign
        True where a label, a film's edge or tape is. Neither covers the other: what is drawn over the breast is no
        longer breast.
    band
        Level of the bands beside the film.
    """

    picture: np.ndarray
    breast: np.ndarray
    foreign: np.ndarray
    band: float = 0.0

    def cover(self, where: np.ndarray, value: np.ndarray | float) -> None:
        """Lay something over the film."""
        self.picture[where] = value[where] if isinstance(value, np.ndarray) else value
        self.foreign |= where
        self.breast &= ~where


Change = Callable[[Film, np.random.Generator], None]


def draw_film(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a film, uint8 (1024, 1024), and the masks of its breast and of all that is foreign on it."""
    rng = np.random.default_rng([sorted(KINDS).index(kind), seed])
    film = _bare_film(rng)
    for change in KINDS[kind]:
        change(film, rng)
    flipped = np.s_[:, ::-1] if rng.integers(2) else np.s_[:, :]
    left = int(rng.integers(0, SIDE - film.picture.shape[1] + 1))
    bands = ((0, 0), (left, SIDE - film.picture.shape[1] - left))
    picture = np.pad(film.picture[flipped], bands, constant_values=film.band)
    breast, foreign = (np.pad(mask[flipped], bands) for mask in (film.breast, film.foreign))
    return np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8), breast, foreign


def _bare_film(rng: np.random.Generator) -> Film:
    """Draw a breast on a film that has neither fog nor label."""
    view, density = str(rng.choice(["CC", "MLO"])), str(rng.choice(list(DENSITIES)))
    breast = make_breast(rng, "L", density, False, False)
    look = Look(gain=rng.uniform(0.75, 1.05), gamma=rng.uniform(0.7, 1.1))
    width = int(rng.integers(500, 760))
    pixels, mask = draw_mammogram(breast, view, (SIDE, width), rng, look)
    picture = np.where(mask, pixels, 0).astype(np.float32) * SCALE  # without the marker
    fade = rng.uniform(3, 16)
    inside = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5) / np.float32(4 * fade)
    picture *= np.clip(0.25 + 0.75 * inside, 0, 1)  # the skin is thin, and the bright line of digital images is missing
    return Film(cv2.GaussianBlur(picture, (0, 0), fade / 2), mask, np.zeros_like(mask))


def fog(film: Film, rng: np.random.Generator) -> None:
    """Add the grey of film base: a level, a gradient and noise."""
    rows, columns = film.picture.shape
    y, x = np.mgrid[0 : 1 : rows * 1j, 0 : 1 : columns * 1j].astype(np.float32)
    gradient = rng.uniform(-0.03, 0.03) * (x - 0.5) + rng.uniform(-0.03, 0.03) * (y - 0.5)
    level = np.maximum(rng.uniform(0.02, 0.07) + gradient, 0.004)
    noise = rng.normal(0, rng.uniform(0.002, 0.006), film.picture.shape)
    film.picture = (level + (1 - level) * film.picture + noise).astype(np.float32)


def bright_spot_of_fog(film: Film, rng: np.random.Generator) -> None:
    """Add light that leaked in at the corner away from the chest wall: it joins the label to the breast."""
    rows, columns = film.picture.shape
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    away = np.hypot(x - columns, y - rng.choice([0, 0.15]) * rows) / rng.uniform(200, 400)
    film.picture += np.float32(rng.uniform(0.03, 0.07)) * np.exp(-(away**2))


def grey_bands(film: Film, rng: np.random.Generator) -> None:
    """Pad with grey instead of black."""
    film.band = float(rng.uniform(0.03, 0.2))


def label(film: Film, rng: np.random.Generator) -> None:
    """Lay a white plate with dark letters beside the breast, near the top; it may touch the film's edge."""
    rows, columns = film.picture.shape
    height, width = int(rng.integers(80, 140)), int(rng.integers(50, 90))
    top = int(rng.choice([0, 1]) * rng.integers(5, 60))
    reach = np.flatnonzero(film.breast[top : top + height + 40].any(axis=0))
    start = int(reach[-1]) + 25 if reach.size else columns // 3
    if start + width > columns:  # no room above: lay it below
        top = rows - height - int(rng.integers(0, 30))
        reach = np.flatnonzero(film.breast[top - 40 :].any(axis=0))
        start = int(reach[-1]) + 25 if reach.size else columns // 3
    left = int(rng.integers(start, max(start + 1, columns - width)))
    corners = cv2.boxPoints(((left + width / 2, top + height / 2), (width, height), rng.uniform(-15, 15)))
    plate = np.zeros(film.picture.shape, np.uint8)
    cv2.fillConvexPoly(plate, corners.astype(np.int32), 1)
    letters = np.zeros(film.picture.shape, np.uint8)  # OpenCV writes on 8 bits alone
    for line, text in enumerate((str(rng.choice(["L", "R"])), "ML")):
        at = left + width // 5, top + round(height * (0.45 + 0.4 * line))
        cv2.putText(letters, text, at, cv2.FONT_HERSHEY_SIMPLEX, height / 90, 1, 4)
    paper = rng.uniform(0.85, 1.0) - np.float32(0.8) * letters
    film.cover((plate > 0) & ~film.breast, cv2.GaussianBlur(paper.astype(np.float32), (0, 0), 1.0))


def bright_line_at_the_top(film: Film, rng: np.random.Generator) -> None:
    """Let the scanner's light in along the first rows: they join whatever touches them."""
    rows = int(rng.integers(2, 7))
    film.picture[:rows] = np.maximum(film.picture[:rows], np.float32(rng.uniform(0.1, 0.9)))


def tilted_edge(film: Film, rng: np.random.Generator) -> None:
    """Show the light beside a film that lay askew, as a white wedge away from the chest wall."""
    rows, columns = film.picture.shape
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    where = x > columns - rng.uniform(15, 45) + (y - rows * rng.choice([0.0, 1.0])) * rng.uniform(-0.03, 0.03)
    film.cover(where & ~film.breast, float(rng.uniform(0.85, 1.0)))


def tape(film: Film, rng: np.random.Generator) -> None:
    """Stick a strip of grey tape across a corner away from the chest wall."""
    rows, columns = film.picture.shape
    y, x = np.mgrid[:rows, :columns]
    reach = int(rng.integers(60, 160))
    across = (columns - x) + (y if rng.integers(2) else rows - y)
    film.cover((abs(across - reach) < rng.integers(12, 30)) & ~film.breast, float(rng.uniform(0.35, 0.8)))


def two_borders(film: Film, rng: np.random.Generator) -> None:
    """Show the edge of a second film above the first: a white line and a strip of grey."""
    height = int(rng.integers(10, 40))
    where = np.zeros_like(film.breast)
    where[:height] = True
    film.cover(where, float(rng.uniform(0.25, 0.6)))
    film.picture[height : height + 3] = 1.0


def scratches(film: Film, rng: np.random.Generator) -> None:
    """Scratch the film across: thin bright lines and a hair."""
    rows, columns = film.picture.shape
    drawn = np.zeros(film.picture.shape, np.float32)
    for _ in range(int(rng.integers(1, 5))):
        ends = [(int(rng.integers(columns)), int(rng.integers(rows))) for _ in range(2)]
        cv2.line(drawn, *ends, float(rng.uniform(0.3, 1)), 1, cv2.LINE_AA)
    np.maximum(film.picture, drawn, out=film.picture)


def skin_fold(film: Film, rng: np.random.Generator) -> None:
    """Fold the skin below the breast: a bright triangle of tissue at the chest wall."""
    rows = film.picture.shape[0]
    bottom = int(np.flatnonzero(film.breast.any(axis=1))[-1])
    size = int(rng.integers(40, 110))
    corner = min(bottom + size // 2, rows - 1)
    points = np.array([(0, corner), (0, max(0, corner - 2 * size)), (size, corner)], np.int32)
    fold = np.zeros(film.picture.shape, np.uint8)
    cv2.fillConvexPoly(fold, points, 1)
    bright = cv2.GaussianBlur(fold.astype(np.float32), (0, 0), 4.0) * np.float32(rng.uniform(0.4, 0.8))
    np.maximum(film.picture, bright, out=film.picture)
    film.breast |= fold > 0


KINDS: dict[str, tuple[Change, ...]] = {
    "fog": (fog,),
    "fog and label": (fog, label),
    "leaked light and label": (fog, bright_spot_of_fog, label),
    "grey bands": (fog, label, grey_bands),
    "bright line": (fog, label, bright_line_at_the_top),
    "tilted edge": (fog, tilted_edge),
    "tilted edge and label": (fog, label, tilted_edge),
    "tape": (fog, tape),
    "two borders": (fog, two_borders, label),
    "scratches": (fog, label, scratches),
    "skin fold": (skin_fold, fog, label),
    "no fog": (label, tilted_edge),
}
"""Kind of film -> what is drawn on it, in this order."""
