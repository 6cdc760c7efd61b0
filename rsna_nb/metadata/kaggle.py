"""The RSNA competition's data on Kaggle: mounted in its notebooks, downloaded elsewhere."""

from pathlib import Path

COMPETITION = "rsna-breast-cancer-detection"
RULES = f"https://www.kaggle.com/competitions/{COMPETITION}/rules"
INPUT = Path("/kaggle/input")
MOUNTS = (INPUT / COMPETITION, INPUT / "competitions" / COMPETITION)
"""Where a Kaggle notebook finds a competition's data. Newer notebooks use the second path."""

NO_CREDENTIALS = (
    "no valid Kaggle credentials: make an API token at https://www.kaggle.com/settings, then set KAGGLE_API_TOKEN "
    "(or KAGGLE_USERNAME and KAGGLE_KEY), or put its kaggle.json into ~/.kaggle"
)


class KaggleError(RuntimeError):
    """The data cannot be fetched from Kaggle. The message says what to do."""


def mounted() -> Path | None:
    """The competition's folder in a Kaggle notebook with the data attached, else None."""
    return next((mount for mount in MOUNTS if (mount / "train.csv").is_file()), None)


def download() -> Path:
    """Fetch the competition's data (271 GB) into kagglehub's cache and return their folder, a `data_dir`.

    A finished download is not fetched again. The environment variable KAGGLEHUB_CACHE moves the cache.

    Raises
    ------
    KaggleError
        Without kagglehub, credentials, accepted rules or a network.
    """
    try:
        import kagglehub  # here: an optional dependency, which nothing else needs
        from kagglehub.exceptions import KaggleApiHTTPError, UnauthenticatedError
    except ImportError as error:
        raise KaggleError("kagglehub is not installed: pip install 'rsna_nb[kaggle]'") from error
    try:
        return Path(kagglehub.competition_download(COMPETITION))
    except UnauthenticatedError as error:
        raise KaggleError(NO_CREDENTIALS) from error
    except KaggleApiHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status == 401:  # credentials that exist, but are wrong
            raise KaggleError(NO_CREDENTIALS) from error
        if status == 403:  # the account has not accepted the competition's rules
            raise KaggleError(
                f"Kaggle refuses {COMPETITION}: open {RULES} with your account, accept the rules, and try again"
            ) from error
        raise KaggleError(f"Kaggle answered with an error: {error}") from error
    except OSError as error:  # the disk's, and requests', whose exceptions are OSErrors too
        raise KaggleError(f"Kaggle cannot be reached or the disk cannot take the data: {error}") from error
