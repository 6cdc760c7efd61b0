"""Every setting of a run, validated before anything else starts.

`RunConfig` is a pydantic model: one field for each setting, with its type, its range, its default and its help text.
The parameters cell of notebooks/03_train.ipynb has one line for each field; a test keeps the two equal.
"""

import contextlib
import difflib
import json
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, Field, PlainValidator, ValidationError, ValidationInfo, field_validator

from rsna_nb.notebook import Markdown, Parameters
from rsna_nb.system import write_whole

# The names in rsna_nb.backbones.BACKBONES, repeated here because importing that module starts TensorFlow, which takes
# seconds, and a misspelt name should be an error at once. A test keeps the two lists equal.
BACKBONE_NAMES = tuple(
    "small inceptionresnetv2 inceptionv3 mobilenet mobilenetv2 nasnetlarge nasnetmobile resnet50v2 resnet101v2 "
    "resnet152v2 xception densenet121 densenet169 densenet201 resnet50 resnet101 resnet152 vgg16 vgg19 convnexttiny "
    "convnextsmall convnextbase convnextlarge convnextxlarge efficientnetb0 efficientnetb1 efficientnetb2 "
    "efficientnetb3 efficientnetb4 efficientnetb5 efficientnetb6 efficientnetb7 efficientnetv2b0 efficientnetv2b1 "
    "efficientnetv2b2 efficientnetv2b3 efficientnetv2s efficientnetv2m efficientnetv2l mobilenetv3small "
    "mobilenetv3large efficientnet_lite0 efficientnet_lite1 efficientnet_lite2 resnet18 resnet34 "
    "yolo11n yolo11s yolo11m yolo11l yolo11x vit_tiny vit_small vit_base dinov2_tiny dinov2_small dinov2_base "
    "dinov2_with_registers_small dinov2_with_registers_base".split()
)


_SETTINGS_TOO_LATE = (
    "settings was set after the parameters cell had read it, so its file would be ignored: name the file in the cell "
    "itself, or give it to papermill with -f instead of -p settings"
)
_OF_YOUR_OWN = "; if it is your own variable, begin its name with an underscore or set it after from_notebook"


class ConfigError(ValueError):
    """One or more settings are unknown, of the wrong type or out of range, or contradict each other.

    The message has one line for each fault, which names the setting; `args` holds the lines.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def _image_size(value: Any) -> int | list[int]:
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2 or not all(type(side) is int and side >= 32 and side % 32 == 0 for side in sides):
        raise ValueError("must be a multiple of 32, or [height, width], both multiples of 32")
    return value


@dataclass(frozen=True)
class ImageRecipe:
    """The preprocessing that turns a file into an image.

    Attributes
    ----------
    name
        A value of the setting `reading`.
    detector
        The .npz file with the tensors of the breast detector, or None.
    """

    name: str = "breast"
    detector: Path | None = None


class RunConfig(
    BaseModel,
    frozen=True,
    extra="forbid",
    strict=True,
    validate_default=True,
    allow_inf_nan=False,
    use_attribute_docstrings=True,
):
    """The settings of a training run: immutable, and validated when the object is made.

    Values may also be NumPy numbers, paths, and text from papermill whose meaning is clear: "true" for a bool,
    "1e-3" for a float, "[1024, 512]" for a size.

    Raises
    ------
    ConfigError
        If settings are unknown, have the wrong type, are out of range or contradict each other. The message names
        all of them.

    Examples
    --------
    >>> config = RunConfig(img_size=[1024, 512], epochs=3)
    >>> config.image_shape
    (1024, 512)
    >>> RunConfig(epochz=3, dropout=2)
    Traceback (most recent call last):
    rsna_nb.config.ConfigError: dropout must be less than 1, not 2
    epochz is not a setting (did you mean epochs?)
    """

    # Data and folders
    data_dir: str = ""
    """a folder, "kaggle:<owner>/<data set>" or "demo"; "": Kaggle's mounted data, elsewhere the demo set"""
    table: str = ""
    """table of the images, or a folder that contains it, if it is not in data_dir; "" searches for it"""
    store_dir: str = "data/prepared"
    """folder of the prepared images"""
    runs_dir: str = "runs"
    """folder that contains the run folders"""
    run_name: str = ""
    """word that is added to the run's id: letters, digits, - _ ."""
    resume: str = ""
    """id of a stopped run to continue with its own settings"""
    mixed_breasts: Literal["error", "any_positive"] = "error"
    """if a breast's labels disagree: "error" stops, "any_positive" labels the breast positive"""
    leave_out_notes: str = ""
    """leave out files with these notes in ledger.csv ("turned, view", or "all"); "" for none"""
    limit_patients: int = Field(0, ge=0)
    """use about this many women and keep the share with cancer; 0 uses all"""
    img_size: Annotated[int | list[int], PlainValidator(_image_size)] = 512
    """image size in pixels: 512, 1024, another multiple of 32, or [height, width]"""
    reading: Literal["breast", "rsna-first-place"] = "breast"
    """preprocessing: "breast" (this package's) or "rsna-first-place" (the challenge winner's)"""
    roi_detector: str = ""
    """breast detector of "rsna-first-place": an imported run's roi.npz; "": Otsu's threshold"""
    # Network
    backbone: str = "resnet50v2"
    """a name in rsna_nb.backbones.BACKBONES"""
    weights: str = Field("imagenet", min_length=1)
    """initial weights: "imagenet", "none" (random), a file, a run, or a keras-hub preset"""
    freeze_backbone: bool = True
    """train only the head and keep the backbone's weights"""
    feature_bank: bool = True
    """compute the features of a frozen backbone once and reuse them in every epoch"""
    fine_tune_epochs: int = Field(0, ge=0)
    """epochs that train the backbone too, after those of the head; 0 disables fine-tuning"""
    fine_tune_from: str = ""
    """fine-tune from the first layer whose name contains this, such as "conv5"; "" for all layers"""
    fine_tune_learning_rate: float = Field(1e-5, ge=1e-12, lt=10)
    """initial learning rate of Adam in fine-tuning"""
    pooling: Literal["avg", "max"] = "avg"
    """how the last feature map is pooled ("avg" or "max")"""
    dropout: float = Field(0.2, ge=0, lt=1)
    """fraction of the pooled features dropped in training"""
    unit: Literal["image", "breast", "woman"] = "image"
    """a score is of an "image", a "breast" (all its images), or a breast beside the other one ("woman")"""
    combine: Literal["mean", "max", "attention"] = "attention"
    """how "breast" and "woman" combine images: "mean", "max" or gated "attention" of features"""
    images_per_breast: int = Field(2, ge=1, le=8)
    """images of each breast in a training batch, new in each epoch (unused by unit "image")"""
    # Augmentation and class imbalance
    augmentation: Literal["none", "flips", "strong"] = "flips"
    """one of "none", "flips", "strong" (flip, rotate, scale, shift, change exposure, erase)"""
    imbalance: Literal["none", "class_weight", "balanced_batches", "focal"] = "class_weight"
    """treatment of class imbalance ("none", "class_weight", "balanced_batches" or "focal")"""
    positive_fraction: float = Field(0.125, ge=0.001, lt=1)
    """fraction of positives in a balanced batch, at least one"""
    positive_label: float = Field(1.0, ge=0.8, le=1)
    """target for positive labels (label smoothing), 0.8 to 1"""
    focal_gamma: float = Field(2.0, ge=0, lt=10)
    """focusing parameter gamma of the focal loss"""
    # Optimizer
    epochs: int = Field(35, ge=1)
    """passes over the training images"""
    batch_size_per_gpu: int = Field(0, ge=0)
    """images per GPU in a batch; 0: 256, halved (down to 8) until an epoch has 10 steps"""
    gradient_accumulation: int = Field(1, ge=1, lt=65)
    """batches whose gradients make one optimizer step; 1 disables accumulation"""
    learning_rate: float = Field(1e-3, ge=1e-12, lt=10)
    """initial learning rate of Adam"""
    lr_schedule: Literal["plateau", "cosine"] = "plateau"
    """one of "plateau" (reduced when monitor stops improving), "cosine" (decays to 0)"""
    warmup_epochs: int = Field(0, ge=0)
    """epochs in which the learning rate rises linearly from 0"""
    clip_norm: float = Field(0.0, ge=0)
    """clip gradients to this global norm; 0 disables clipping"""
    ema: float = Field(0.0, ge=0, lt=1)
    """momentum of averaged weights (EMA), which are then evaluated and saved, such as 0.999; 0 disables it"""
    # Split
    val_fraction: float = Field(0.2, ge=0.01, lt=0.9)
    """fraction of women for validation, unless fold or leave_out is set"""
    test_fraction: float = Field(0.0, ge=0, lt=0.9)
    """fraction of women held out: unseen by training and by the choice of an epoch"""
    fold: int = Field(-1, ge=-1)
    """-1: a single hold-out; 0 to n_folds - 1: the validation fold"""
    n_folds: int = Field(5, ge=2)
    """number of folds of women"""
    # papermill misreads a comment of the parameters cell that contains "=", so help texts say "an equals sign".
    leave_out: str = ""
    """validation site or machine: its column, an equals sign and its value; "" for none"""
    # Choice of the epoch, and early stopping
    monitor: Literal["val_loss", "val_auc", "val_pf1"] = "val_loss"
    """metric that chooses the best epoch ("val_loss", "val_auc" or "val_pf1")"""
    reduce_lr_patience: int = Field(3, ge=0)
    """epochs without improvement before the learning rate is reduced; 0: never"""
    reduce_lr_factor: float = Field(0.5, ge=0.01, lt=1)
    """the learning rate is multiplied by this when it is reduced"""
    early_stopping_patience: int = Field(10, ge=0)
    """epochs without improvement before training stops; 0: never"""
    # Computing
    mixed_precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """compute precision (float32, bfloat16, float16); "auto": the best for all GPUs"""
    seed: int = Field(42, ge=0, lt=2**31)
    """seeds shuffling, augmentation and weight initialisation"""
    split_seed: int = Field(42, ge=0, lt=2**31)
    """seeds the assignment of women to splits"""
    schema_version: Literal[1] = 1
    """version of the settings' schema; do not edit"""

    def __init__(self, /, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            # pydantic's own message has three lines and a web address for each fault.
            raise ConfigError(*map(_in_words, error.errors())) from None

    @field_validator("*", mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: ValidationInfo) -> Any:
        """Convert values from papermill, YAML and NumPy; others stay as they are and are checked by pydantic."""
        return _as_kind(value, type(DEFAULTS[info.field_name or ""]), info.field_name == "img_size")

    # Rules that annotations cannot express. A field is checked after those above it, so a rule about two settings
    # belongs to the lower one. A validator of the whole model would not do: pydantic runs it only once every field is
    # right, and all faults should be named together. A setting that is itself wrong is missing from `info.data`.
    @field_validator("*")
    @classmethod
    def _is_allowed(cls, value: Any, info: ValidationInfo) -> Any:
        others = DEFAULTS | info.data
        epochs = min(others["epochs"], others["fine_tune_epochs"] or others["epochs"])
        match info.field_name:
            case "run_name" if not is_folder_name(value):
                raise ValueError("must be letters, digits, - _ . and must not begin with a dot")
            case "freeze_backbone" if value and others["weights"] == "none":
                raise ValueError('must be false if weights is "none": the head would learn from random features')
            case "roi_detector" if value and others["reading"] != "rsna-first-place":
                raise ValueError('must be empty unless reading is "rsna-first-place"')
            case "fine_tune_epochs" if value and not others["freeze_backbone"]:
                raise ValueError("must be 0 if freeze_backbone is false: the backbone is trained from the start")
            case "warmup_epochs" if value and value >= epochs:
                raise ValueError(f"must be fewer than epochs and fine_tune_epochs, so fewer than {epochs}")
            case "test_fraction" if others["val_fraction"] + value >= 1:
                raise ValueError(f"must be less than 1 - val_fraction ({1 - others['val_fraction']:g})")
            case "n_folds" if value <= others["fold"]:
                raise ValueError(f"must be above fold {others['fold']}")
            case "leave_out" if value and not all(value.partition("=")):
                raise ValueError('must be empty, or column=value, such as "machine_id=49"')
            case "leave_out" if value and others["fold"] >= 0:
                raise ValueError(f"must be empty when fold is set (fold {others['fold']})")
        return value

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """The settings in a JSON file, which `to_json` or a person wrote; missing ones take their defaults.

        Raises
        ------
        ConfigError
            If the file does not exist, is not JSON, or holds unknown or wrong settings. Each line of the message
            names the file.
        """
        settings = _read_settings(Path(path))
        try:
            return cls(**settings)
        except ConfigError as error:
            raise ConfigError(*(f"{path}: {fault}" for fault in error.args)) from None

    @staticmethod
    def begin_parameters(namespace: MutableMapping[str, Any]) -> None:
        """Begin the parameters cell of a notebook: forget what its last run in the same kernel left.

        `namespace` is the notebook's `globals()`. Without this a line deleted from the cell would still count.
        """
        Parameters.begin(namespace, DEFAULTS)

    @staticmethod
    def end_parameters(namespace: MutableMapping[str, Any], file: str | Path = "") -> None:
        """End the parameters cell of a notebook: set the variables that the JSON file `file` names.

        papermill inserts the values of -f and -p in a cell below, so they win over the file, and so does a line that
        a person writes there. A faulty file is an error of `from_notebook`, together with all other faults.
        """
        values: dict[str, Any] = {}
        faults: list[str] = []
        try:
            values = _read_settings(resolve(file)) if file else {}
        except ConfigError as error:
            faults += error.args
        faults += [f"{file}: {_unknown(name)}" for name in values if name not in DEFAULTS]
        known = {name: value for name, value in values.items() if name in DEFAULTS}
        Parameters.of(namespace).end(namespace, known, file, faults)

    @classmethod
    def from_notebook(cls, namespace: MutableMapping[str, Any], *own: str) -> Self:
        """The settings in the variables of a notebook.

        A later line wins, as in Python: the lines of the parameters cell, the file that it names, and then what
        papermill's -f and -p or a person set below the cell.

        Parameters
        ----------
        namespace
            The notebook's `globals()`. If its parameters cell lies between `begin_parameters` and
            `end_parameters`, a variable that was set since then and is neither a setting nor one of `own` counts as
            misspelt, unless its name begins with an underscore.
        own
            Names of the notebook's own parameters. Each is converted to the type that it has in the parameters cell,
            since papermill reads an id of digits as a number.

        Returns
        -------
        RunConfig
            With `resume` set: the settings of that run, as `resumed` returns them.

        Raises
        ------
        ConfigError
            If names are misspelt, values are wrong, or the file or the backbone does not exist: all in one message.
        """
        parameters = Parameters.of(namespace)
        values = parameters.read(namespace, DEFAULTS)
        settings = {name: value for name, value in values.items() if name in DEFAULTS}
        faults = [*parameters.faults, *_faults_of_own(parameters, namespace, values, own)]
        if "settings" in own and values.get("settings", "") != parameters.file:
            faults.append(_SETTINGS_TOO_LATE)
        try:
            given = {name: settings[name] for name in settings if parameters.is_given(name, DEFAULTS[name])}
            config = cls.resumed(given) if settings.get("resume") else cls(**settings)
        except ConfigError as error:
            faults += [parameters.with_file(fault) for fault in error.args]
        if fault := _unknown_backbone(settings.get("backbone")):
            faults.append(parameters.with_file(fault))
        if faults:
            raise ConfigError(*faults)
        parameters.is_read = True
        return config

    @classmethod
    def resumed(cls, given: Mapping[str, Any]) -> Self:
        """The settings of the run `given["resume"]` in the folder `given["runs_dir"]`.

        Raises
        ------
        ConfigError
            If there is no such run, or another setting in `given` differs from the run's.
        """
        # Only these two, because the run may have other values than the defaults of the rest.
        asked = cls(**{name: given[name] for name in ("resume", "runs_dir") if name in given})
        path = resolve(asked.runs_dir) / asked.resume / "config" / "config.json"
        if not path.is_file():
            raise ConfigError(f"resume: there is no run {asked.resume} in {resolve(asked.runs_dir)}")
        folders = {name: value for name, value in given.items() if name in FOLDERS}
        own = cls.from_json(path).replace(**folders | {"resume": asked.resume, "runs_dir": asked.runs_dir})
        wanted = own.replace(**given)
        faults = [
            f"{name} {getattr(wanted, name)!r} (the run has {getattr(own, name)!r})"
            for name in given
            if getattr(wanted, name) != getattr(own, name)
        ]
        if faults:
            raise ConfigError(f"run {asked.resume} continues with its own settings: remove " + ", ".join(faults))
        return own

    def replace(self, **changes: Any) -> Self:
        """A copy with other values, validated like a new object.

        >>> RunConfig(epochs=3).replace(dropout=0.5).epochs
        3
        """
        return type(self)(**(vars(self) | changes))  # pydantic's model_copy would not validate

    def to_json(self, path: str | Path) -> None:
        """Write every setting, with defaults filled in: a file for `from_json` and for papermill's -f.

        `resume` is written as empty, so that the file repeats the run and does not continue it.
        """
        content = self.model_dump() | {"resume": ""}
        write_whole(Path(path), (json.dumps(content, indent=2) + "\n").encode())

    def origins(self, namespace: MutableMapping[str, Any]) -> Markdown:
        """A table for the notebook: each setting that does not have its default, and what set it."""
        parameters = Parameters.of(namespace)
        rows = [
            f"| `{name}` | `{json.dumps(value)}` | `{json.dumps(DEFAULTS[name])}` "
            f"| {f'run {self.resume}' if self.resume else parameters.origin(name)} |"
            for name, value in self.model_dump().items()
            if value != DEFAULTS[name]
        ]
        head = ["| setting | value | default | set by |", "|---|---|---|---|"]
        return Markdown("\n".join([*head, *rows]) if rows else "All settings have their defaults.")

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of the prepared images in pixels."""
        height, width = self.img_size if isinstance(self.img_size, list) else (self.img_size, self.img_size)
        return height, width

    @property
    def image_recipe(self) -> ImageRecipe:
        """How files become images, by the settings `reading` and `roi_detector`."""
        return ImageRecipe(self.reading, resolve(self.roi_detector) if self.roi_detector else None)


# Settings that may differ when a run is resumed: folders have other names on another computer. What is in them is
# compared by fingerprints.
FOLDERS = ("data_dir", "store_dir", "runs_dir", "resume")
DEFAULTS: dict[str, Any] = {name: field.default for name, field in RunConfig.model_fields.items()}


def is_folder_name(name: str) -> bool:
    """Whether `name` has only letters, digits, - _ . and does not begin with a dot."""
    return all(character.isalnum() or character in "-_." for character in name) and not name.startswith(".")


def resolve(folder: str | Path) -> Path:
    """`folder` as an absolute path: relative to the project's root inside a checkout, else to the working folder.

    JupyterLab starts a notebook in notebooks/ and papermill in the shell's folder; both find the same data. So
    notebooks/ that was copied from an installed package (`rsna_nb.notebook`) stands for the folder that contains it.
    """
    folder, working = Path(folder).expanduser(), Path.cwd()
    for candidate in (working, *working.parents):
        if (candidate / "rsna_nb" / "config.py").is_file() and (candidate / "pyproject.toml").is_file():
            return candidate / folder
    if working.name == "notebooks" and (working / "03_train.ipynb").is_file():
        working = working.parent
    return working / folder


def settings_table() -> str:
    """Every setting, its default and its help text as a Markdown table: docs/settings.md contains it."""
    rows = [
        f"| `{name}` | `{json.dumps(field.default)}` | {field.description} |".replace("<", "\\<")
        for name, field in RunConfig.model_fields.items()
    ]
    return "\n".join(["| setting | default | |", "|---|---|---|", *rows])


def _as_kind(value: Any, kind: type, is_size: bool = False) -> Any:
    """Convert `value` to `kind` if its meaning is clear; otherwise return it unchanged."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if is_size and isinstance(value, list | tuple):
        return [side.item() if isinstance(side, np.generic) else side for side in value]
    if kind is str and isinstance(value, Path):
        return str(value)
    if not isinstance(value, str):
        return value
    with contextlib.suppress(ValueError):
        if kind is float:  # YAML, and so papermill's -f, reads 1e-3 as text
            return float(value)
        if kind is bool or is_size:
            return json.loads(value.lower())
    return value


def _in_words(fault: Any) -> str:
    """One line about one of the faults that pydantic found."""
    name, value = str(fault["loc"][0]), fault["input"]
    if fault["type"] == "extra_forbidden":
        return _unknown(name)
    # pydantic says "Input should be ..." or "String should have ...", and puts our own errors into `ctx`.
    rule = str(fault.get("ctx", {}).get("error", "")) or fault["msg"].partition(" ")[2].replace("should", "must", 1)
    hint = f"; papermill keeps text as it is with -r {name} <text>" if fault["type"] == "string_type" else ""
    return f"{name} {rule}, not {value!r:.100}{hint}"


def _unknown(name: str, own: Iterable[str] = ()) -> str:
    close = difflib.get_close_matches(name, [*own, *DEFAULTS], n=1)
    return f"{name} is not a setting" + (f" (did you mean {close[0]}?)" if close else "")


def _unknown_backbone(name: Any) -> str | None:
    """The fault of a backbone's name, or None; names that a user has registered are known too.

    Called for notebooks only. The settings of an old run may name a network that this process has not registered.
    """
    registered = getattr(sys.modules.get("rsna_nb.backbones"), "BACKBONES", ())
    if not isinstance(name, str) or name in BACKBONE_NAMES or name in registered:
        return None
    close = difflib.get_close_matches(name, [*BACKBONE_NAMES, *registered], n=3) or BACKBONE_NAMES
    return f"backbone {name} is not known; the nearest names are {', '.join(close)}"


def _faults_of_own(
    parameters: Parameters, namespace: MutableMapping[str, Any], values: Mapping[str, Any], own: Iterable[str]
) -> list[str]:
    """Convert a notebook's own parameters to the types of its cell; return their faults and the misspelt names."""
    faults = [_unknown(name, own) for name in values if name not in own and name not in DEFAULTS]
    faults = [fault + ("" if "(" in fault else _OF_YOUR_OWN) for fault in faults]
    if parameters.is_begun and not parameters.is_ended:
        faults.append("the parameters cell stopped before its end: run it again first")
    for name in own:
        kind = parameters.kind(name)
        # papermill reads an id of digits as a number, and 1 as a whole number where the cell has 1.0.
        if kind and isinstance(values.get(name), bool | int | float | str | Path):  # else a later cell took the name
            value = _as_kind(values[name], kind)
            if type(value) is int and kind in (str, float):
                value = kind(value)
            if type(value) is not kind:
                faults.append(f"{name} must be of type {kind.__name__}, not {type(value).__name__} {value!r}")
            elif (
                name == "draws" and isinstance(value, int) and value < 2
            ):  # a later cell would find that out after hours of training
                faults.append(f"draws must be 2 or more bootstrap samples, not {value}")
            namespace[name] = value
    return faults


def _read_settings(path: Path) -> dict[str, Any]:
    """The object in a JSON file, with or without a byte-order mark."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once_each)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: must hold an object of settings, not {type(settings).__name__}")
    return settings


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object as a dictionary; json alone would silently keep the last of two equal names."""
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} occurs more than once")
    return dict(pairs)


if __name__ == "__main__":
    print(settings_table())
