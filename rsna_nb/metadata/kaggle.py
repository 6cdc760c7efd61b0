"""Data on Kaggle: mounted in its notebooks, fetched by kagglehub elsewhere.

A setting `kaggle:competition` means RSNA's competition, and `kaggle:<owner>/<data set>[/<folder>]` a data set or a
folder in it. What is mounted or already in kagglehub's cache is taken from there, without a network: otherwise a newer
version of a data set could replace the one that a project's models were trained on.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from rsna_nb.system import locked

log = logging.getLogger(__name__)

COMPETITION = "rsna-breast-cancer-detection"
RULES = f"https://www.kaggle.com/competitions/{COMPETITION}/rules"
INPUT = Path("/kaggle/input")
PREFIX = "kaggle:"
SHOWN = 20  # folders in a message

_NAME, _FOLDER = r"[A-Za-z0-9][\w.-]*", r"(?!\.)[^/]+"  # a folder's name does not begin with a dot, so it is never ".."
SETTING = re.compile(rf"{PREFIX}(competition|{_NAME}/{_NAME})(?:/({_FOLDER}(?:/{_FOLDER})*))?")
FORM = f"write {PREFIX}competition or {PREFIX}<owner>/<data set>, and /<folder> after it for a folder of the data set"
NO_CREDENTIALS = (
    "no valid Kaggle credentials: make an API token at https://www.kaggle.com/settings, then set KAGGLE_API_TOKEN "
    "(or KAGGLE_USERNAME and KAGGLE_KEY), or put its kaggle.json into ~/.kaggle"
)
REFUSED = f"Kaggle refuses {COMPETITION}: open {RULES} with your account, accept the rules, and try again"
NO_KAGGLEHUB = "kagglehub is not installed: pip install 'rsna_nb[kaggle]'"


class KaggleError(RuntimeError):
    """The data cannot be found on Kaggle or fetched from it. The message says what to do."""


def is_here() -> bool:
    """Whether this process runs in a Kaggle notebook."""
    return "KAGGLE_KERNEL_RUN_TYPE" in os.environ or INPUT.is_dir()


def mounted() -> Path | None:
    """The competition's folder in a Kaggle notebook with the data attached, else None."""
    return next((mount for mount in _mounts(_place("competition")) if (mount / "train.csv").is_file()), None)


def mounts() -> Iterator[Path]:
    """The folders of what is attached to a Kaggle notebook, in the newer places and in the older one."""
    for folder in sorted(INPUT.glob("*/")):
        inner = {"competitions": "*/", "datasets": "*/*/"}.get(folder.name)  # datasets/<owner>/<data set>
        yield from sorted(folder.glob(inner)) if inner else [folder]


def find(setting: str, fetch: bool = True) -> Path:
    """The folder that a setting `kaggle:...` means.

    Parameters
    ----------
    setting
        "kaggle:competition", or "kaggle:<owner>/<data set>" with an optional folder of the data set behind it.
    fetch
        Whether to download what is neither mounted nor in kagglehub's cache. The environment variable KAGGLEHUB_CACHE
        moves the cache.

    Raises
    ------
    KaggleError
        If the setting has another form, the folder does not exist, or the data are not here and cannot be fetched:
        without kagglehub, credentials, accepted rules or a network.
    """
    form = SETTING.fullmatch(setting)
    if not form:
        raise KaggleError(f"data_dir {setting!r}: {FORM}")
    what, inside = form[1], form[2] or ""
    mount = mounted() if what == "competition" else next(_mounts(_place(what)), None)
    root = mount or _cached(what) or (_fetched(what) if fetch else None)
    if root is None:
        raise KaggleError(f"{setting} is not on this computer yet: notebooks/00_prepare.ipynb and 03_train fetch it")
    if not (root / inside).is_dir():
        found = ", ".join(sorted(_folders(root))[:SHOWN]) or "no folders"
        raise KaggleError(f"data_dir {setting!r}: there is no folder {inside} in {what}, which has {found}")
    return root / inside


def _place(what: str) -> Path:
    """Where Kaggle's newer mounts and kagglehub's cache have the competition or a data set."""
    return Path("competitions", COMPETITION) if what == "competition" else Path("datasets", what)


def _mounts(place: Path) -> Iterator[Path]:
    """The folders in which a Kaggle notebook has mounted something: its newer place, and the older one."""
    return (mount for mount in (INPUT / place, INPUT / place.name) if mount.is_dir())


def _cached(what: str) -> Path | None:
    """The complete download in kagglehub's cache, of the highest version there; None if there is none."""
    folder = _cache() / _place(what)
    if what == "competition":  # which has no versions
        return folder if folder.is_dir() and folder.with_name(f"{folder.name}.complete").is_file() else None
    versions = sorted((int(mark.stem) for mark in folder.glob("*.complete") if mark.stem.isdigit()), reverse=True)
    found = (folder / "versions" / str(version) for version in versions)
    return next((path for path in found if path.is_dir()), None)


def _cache() -> Path:
    return Path(os.environ.get("KAGGLEHUB_CACHE") or Path.home() / ".cache" / "kagglehub")


def _folders(root: Path) -> Iterator[str]:
    """The folders in a data set, two levels deep, as a setting names them."""
    for folder in (each for each in root.iterdir() if each.is_dir()):
        yield folder.name
        yield from (f"{folder.name}/{each.name}" for each in folder.iterdir() if each.is_dir())


def _fetched(what: str) -> Path:
    """Download into kagglehub's cache and return the folder."""
    try:
        import kagglehub  # here: an optional dependency, which nothing else needs
    except ImportError as error:
        raise KaggleError(NO_KAGGLEHUB) from error
    log.info("fetching %s from Kaggle into %s, which must hold the archive and its content", what, _cache())
    with locked(_cache()):  # kagglehub would let two processes write into one archive
        if ready := _cached(what):
            return ready
        if what == "competition":
            return Path(_explained(lambda: kagglehub.competition_download(COMPETITION), COMPETITION))
        return Path(_explained(lambda: kagglehub.dataset_download(what), what))


def archive_url() -> str:
    """The address of the competition's zip archive, which is valid for a limited time.

    Raises
    ------
    KaggleError
        As `find`.
    """
    try:
        from kagglehub.clients import build_kaggle_client
        from kagglehub.exceptions import handle_call
        from kagglehub.handle import parse_competition_handle
        from kagglesdk.competitions.types.competition_api_service import ApiDownloadDataFilesRequest
    except ImportError as error:
        raise KaggleError(NO_KAGGLEHUB) from error
    request = ApiDownloadDataFilesRequest()
    request.competition_name = COMPETITION

    def ask() -> str:
        # As kagglehub does before it downloads. The answer is the archive, of which nothing is read here.
        with build_kaggle_client() as client:
            api = client.competitions.competition_api_client
            answer = handle_call(lambda: api.download_data_files(request), parse_competition_handle(COMPETITION))
            answer.close()
            return answer.url

    return _explained(ask, COMPETITION)


def _explained(call: Callable[[], str], what: str) -> str:
    """Call kagglehub and return its answer.

    Parameters
    ----------
    call
        The call.
    what
        The competition or data set that it asks for.

    Raises
    ------
    KaggleError
        One sentence for each reason that a person can do something about.
    """
    import requests  # of kagglehub
    from kagglehub import exceptions as hub

    others = (hub.BackendError, hub.CredentialError, hub.KaggleEnvironmentError, hub.DataCorruptionError)
    try:
        return call()
    except hub.UnauthenticatedError as error:
        raise KaggleError(NO_CREDENTIALS) from error
    except hub.KaggleApiHTTPError as error:
        raise KaggleError(_refusal(error.response, what) or f"Kaggle answered with an error: {_line(error)}") from error
    except requests.RequestException as error:
        raise KaggleError(f"Kaggle cannot be reached to fetch {what}: {_line(error)}") from error
    except OSError as error:
        raise KaggleError(f"{what} cannot be written: {error}") from error
    except (*others, ValueError) as error:
        raise KaggleError(f"{what} cannot be fetched: {_line(error)}") from error


def _refusal(response: object, what: str) -> str:
    """What to do about an error's status code; "" for other codes."""
    status = getattr(response, "status_code", None)  # a requests.Response that is an error is false
    if status == 401:  # credentials that exist, but are wrong
        return NO_CREDENTIALS
    if status == 403 and what == COMPETITION:  # the account has not accepted the competition's rules
        return REFUSED
    if status in (403, 404):
        return (
            f"Kaggle has no data set {what} that your account may read: compare the name with the address of its page, "
            "and accept its terms there if it has any"
        )
    return ""


def _line(error: Exception) -> str:
    """An error's text on one line: kagglehub's have several."""
    return " ".join(str(error).split())
