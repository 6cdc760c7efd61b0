"""The RSNA competition's data on Kaggle: mounted there, downloaded elsewhere."""

from pathlib import Path

COMPETITION = "rsna-breast-cancer-detection"
RULES = f"https://www.kaggle.com/competitions/{COMPETITION}/rules"
MOUNT = Path("/kaggle/input") / COMPETITION


class KaggleError(RuntimeError):
    """The data cannot be fetched from Kaggle; the message says what to do."""


def mounted(mount: Path = MOUNT) -> Path | None:
    """The competition's folder where this runs on Kaggle with the data attached, else None."""
    return mount if (mount / "train.csv").is_file() else None


def download(force: bool = False) -> Path:
    """Fetch the competition's data (271 GB) into kagglehub's cache and return its folder, a `data_dir`.

    A finished download is not fetched again. The environment variable KAGGLEHUB_CACHE moves the cache.

    Raises
    ------
    KaggleError
        Without kagglehub, without credentials, without the accepted rules or without a network.
    """
    try:
        import kagglehub
        from kagglehub.exceptions import KaggleApiHTTPError, UnauthenticatedError
    except ImportError as error:
        raise KaggleError("kagglehub is not installed: pip install 'rsna_nb[kaggle]'") from error
    try:
        return Path(kagglehub.competition_download(COMPETITION, force_download=force))
    except UnauthenticatedError as error:
        raise KaggleError(no_credentials()) from error
    except KaggleApiHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status == 401:
            raise KaggleError(no_credentials()) from error
        if status == 403:
            raise KaggleError(
                f"Kaggle refuses {COMPETITION}: open {RULES} with your account, accept the rules, and try again"
            ) from error
        raise KaggleError(f"Kaggle answered with an error: {error}") from error
    except OSError as error:  # requests' exceptions are OSErrors
        raise KaggleError(f"Kaggle cannot be reached or the disk cannot take the data: {error}") from error


def no_credentials() -> str:
    return (
        "no valid Kaggle credentials: make an API token at https://www.kaggle.com/settings, then set KAGGLE_API_TOKEN "
        "(or KAGGLE_USERNAME and KAGGLE_KEY), or put its kaggle.json into ~/.kaggle"
    )
