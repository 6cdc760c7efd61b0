"""Every setting of a run, validated before anything else starts.

The parameters cell of notebooks/03_train.ipynb holds one line for each field of `RunConfig`,
with the same default and the same help text.
"""

import ast
import difflib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from rsna_nb.setting import (
    INFINITY,
    ConfigError,
    coerce,
    is_folder_name,
    is_group,
    is_image_size,
    number,
    one_of,
    setting,
)
from rsna_nb.system import write_whole

SCHEMA_VERSION = 1
KINDS = {kind.__name__: kind for kind in (bool, int, float, str)}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of a training run: immutable, validated on construction.

    Raises `ConfigError` where a value has the wrong type or is out of range. Text as papermill
    passes it is understood where it is unambiguous: "true" for a bool, "[1024, 512]" for a size.
    """

    # data and folders
    data_dir: str = setting(
        "", 'folder with train.csv and train_images; "" makes the demo set (on Kaggle: the mounted data)'
    )
    store_dir: str = setting("data/prepared", "where prepared pictures are kept")
    runs_dir: str = setting("runs", "where run folders are made")
    run_name: str = setting("", "a word added to the run id", "letters, digits, - _ .", is_folder_name)
    resume: str = setting("", "id of a stopped run to go on with; it has its settings")
    mixed_breasts: str = one_of(
        "error",
        ("error", "any_positive"),
        'a breast whose images disagree on cancer: "error", or "any_positive" labels all its images positive',
    )
    limit_patients: int = number(0, 0, INFINITY, "0: all women; else about so many, the share with cancer kept")
    img_size: int | list[int] = setting(
        512,
        "512 or 1024, any multiple of 32, or [height, width]",
        "a multiple of 32, or [height, width] of such",
        is_image_size,
    )
    # network
    backbone: str = setting("resnet50v2", "a name in rsna_nb.backbones.BACKBONES")
    weights: str = setting(
        "imagenet", '"imagenet", "none", a weights file or the folder of a preset of keras-hub', "not empty", bool
    )
    freeze_backbone: bool = setting(True, "train the head alone")
    feature_bank: bool = setting(True, "pass each picture through a frozen backbone once, not in every epoch")
    fine_tune_epochs: int = number(0, 0, INFINITY, "epochs that train the backbone too, after those of the head")
    fine_tune_from: str = setting("", 'first layer that then learns, by a part of its name, as "conv5"; "" for all')
    fine_tune_learning_rate: float = number(1e-5, 1e-12, 10, "of Adam, when the backbone learns")
    pooling: str = one_of("avg", ("avg", "max"), '"avg" or "max", over the backbone\'s last feature map')
    dropout: float = number(0.2, 0, 1, "share of pooled features dropped in training")
    # pictures and class imbalance
    augmentation: str = one_of(
        "flips",
        ("none", "flips", "strong"),
        '"none", "flips" or "strong" (flipped, turned, scaled, shifted, exposed, erased)',
    )
    imbalance: str = one_of(
        "class_weight",
        ("none", "class_weight", "balanced_batches", "focal"),
        '"none", "class_weight", "balanced_batches" or "focal"',
    )
    positive_fraction: float = number(0.125, 0.001, 1, "share of positives in balanced batches, one at least")
    positive_label: float = setting(
        1.0, "what a positive is to be scored as, 0.8 to 1", "0.8 to 1", lambda value: 0.8 <= value <= 1
    )
    focal_gamma: float = number(2.0, 0, 10, "how little the focal loss weighs what is right already")
    # optimizer
    epochs: int = number(35, 1, INFINITY, "passes over the training images")
    batch_size_per_gpu: int = number(256, 1, INFINITY, "the global batch is this times the GPUs")
    gradient_accumulation: int = number(1, 1, 65, "times batch_size_per_gpu that make one step of the optimizer")
    learning_rate: float = number(1e-3, 1e-12, 10, "of Adam, at the start")
    lr_schedule: str = one_of(
        "plateau", ("plateau", "cosine"), '"plateau" (falls without gain) or "cosine" (to 0 at the last epoch)'
    )
    warmup_epochs: int = number(0, 0, INFINITY, "in which the learning rate rises from 0")
    clip_norm: float = number(0.0, 0, INFINITY, "longest gradient, all weights together; 0 for any")
    ema: float = number(0.0, 0, 1, "momentum of averaged weights, which are then judged and kept, as 0.999; 0 for none")
    # split
    val_fraction: float = number(0.2, 0.01, 0.9, "share of women for validation, unless fold asks for one")
    test_fraction: float = number(0.0, 0, 0.9, "share of women set aside, unseen by training and checkpoint choice")
    fold: int = number(-1, -1, INFINITY, "-1: one hold-out; else this fold is the validation")
    n_folds: int = number(5, 2, INFINITY, "folds of women, of which fold names one")
    leave_out: str = setting(
        "",
        'the site or machine that validates: its column, an equals sign, its value; "" for none',
        'empty, or a column and a value as "machine_id=49"',
        is_group,
    )
    # which epoch is kept, and when to stop
    monitor: str = one_of(
        "val_loss", ("val_loss", "val_auc", "val_pf1"), '"val_loss", "val_auc" or "val_pf1": picks the best epoch'
    )
    reduce_lr_patience: int = number(3, 0, INFINITY, "epochs without gain before the rate falls; 0: never")
    reduce_lr_factor: float = number(0.5, 0.01, 1, "what the learning rate is multiplied by then")
    early_stopping_patience: int = number(10, 0, INFINITY, "epochs without gain before the end; 0: never")
    # computing
    mixed_precision: str = one_of(
        "auto",
        ("auto", "float32", "bfloat16", "float16"),
        '"auto" (bfloat16 where the GPU has it), "float32", "bfloat16", "float16"',
    )
    seed: int = number(42, 0, 2**31, "of the order, the flips and the weights")
    split_seed: int = number(42, 0, 2**31, "of who is in which split")
    schema_version: int = setting(
        SCHEMA_VERSION,
        "of these settings; not to be changed",
        f"{SCHEMA_VERSION}",
        lambda value: value == SCHEMA_VERSION,
    )

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = coerce(entry.name, getattr(self, entry.name), type(entry.default))
            if not entry.metadata["check"](value):
                raise ConfigError(f"{entry.name} must be {entry.metadata['rule']}, not {value!r}")
            object.__setattr__(self, entry.name, value)
        if self.val_fraction + self.test_fraction >= 1:
            raise ConfigError(
                f"val_fraction {self.val_fraction} and test_fraction {self.test_fraction} leave no women to train on"
            )
        if self.fold >= self.n_folds:
            raise ConfigError(f"fold must be below n_folds {self.n_folds}, not {self.fold}")
        if self.fold >= 0 and self.leave_out:
            raise ConfigError(f"fold {self.fold} and leave_out {self.leave_out} both say who validates: give one")
        if self.freeze_backbone and self.weights == "none":
            raise ConfigError(
                'freeze_backbone with weights "none" would keep random features: '
                "set freeze_backbone to false, or give weights"
            )
        if self.fine_tune_epochs and not self.freeze_backbone:
            raise ConfigError("fine_tune_epochs come after those with a frozen backbone: set freeze_backbone to true")
        if self.warmup_epochs >= min(self.epochs, self.fine_tune_epochs or self.epochs) and self.warmup_epochs:
            raise ConfigError(f"warmup_epochs {self.warmup_epochs} must be fewer than epochs and fine_tune_epochs")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """From names and values; raises `ConfigError` that names every unknown key."""
        refuse_unknown(settings)
        return cls(**settings)

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """From a file that `to_json` or a person wrote; settings that it leaves out take their defaults."""
        try:
            settings = json.loads(Path(path).read_text())
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}: not valid JSON: {error}") from error
        if not isinstance(settings, dict):
            raise ConfigError(f"{path}: must hold an object of settings, not {type(settings).__name__}")
        try:
            return cls.from_dict(settings)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any], *own: str) -> Self:
        """From `globals()` of a notebook, after its parameters cell and the one that papermill injects.

        `own` are parameters of the notebook that are no settings of a run. Where "settings" is one of them it names a
        file of settings, as notebooks/params/demo.json; over it wins what papermill was given, and what the
        notebook's own cell sets to another value than the default, as it may have a line for each setting.

        papermill only warns of a misspelt `-p`; here it is an error. The names come from the source of
        the cells that begin with "# Parameters", the last run of each, as IPython's `In` holds it.
        """
        cells = {cell.splitlines()[0]: cell for cell in namespace.get("In", []) if cell.startswith("# Parameters")}
        kinds: dict[str, type | None] = {}
        for cell in cells.values():
            kinds |= {name: kind or kinds.get(name) for name, kind in assigned_names(cell).items()}
        names = kinds or [name for name in (*own, *DEFAULTS) if name in namespace]
        refuse_unknown(names, own)
        for name in own:
            if (kind := kinds.get(name)) and kind is not str:  # papermill makes a number of an id of digits
                coerce(name, namespace[name], kind)
        given = {name: namespace[name] for name in names if name not in own}
        if given.get("resume"):
            return cls.resumed(given)
        if "settings" not in own or not namespace.get("settings"):
            return cls(**given)
        by_papermill = assigned_names(cells.get("# Parameters", ""))
        changed = {name: value for name, value in given.items() if name in by_papermill or value != DEFAULTS[name]}
        return replace(cls.from_json(resolve(namespace["settings"])), **changed)

    @classmethod
    def resumed(cls, given: Mapping[str, Any]) -> Self:
        """The settings of the run that `given` names as `resume`; any other that is given has to be the run's own.

        A default that is given counts as not given: a notebook has a line for each.
        """
        asked = cls(resume=given["resume"], runs_dir=given.get("runs_dir", DEFAULTS["runs_dir"]))
        path = resolve(asked.runs_dir) / asked.resume / "config" / "config.json"
        if not path.is_file():
            raise ConfigError(f"resume: there is no run {asked.resume} in {resolve(asked.runs_dir)}")
        own = replace(cls.from_json(path), resume=asked.resume, runs_dir=asked.runs_dir)
        refuse_unknown(given)
        values = {name: coerce(name, value, type(DEFAULTS[name])) for name, value in given.items()}
        wrong = [
            f"{name} {value!r} (the run has {getattr(own, name)!r})"
            for name, value in values.items()
            if value not in (DEFAULTS[name], getattr(own, name))
        ]
        if wrong:
            raise ConfigError(f"run {asked.resume} goes on with its own settings: leave out " + ", ".join(wrong))
        return own

    def to_json(self, path: str | Path) -> None:
        """Write every setting, defaults filled in: a file for `from_json` and for papermill's -f.

        `resume` is left empty, so that the file repeats a run and does not go on with it.
        """
        write_whole(Path(path), (json.dumps(asdict(self) | {"resume": ""}, indent=2) + "\n").encode())

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.img_size if isinstance(self.img_size, list) else (self.img_size, self.img_size)
        return height, width


DEFAULTS = {entry.name: entry.default for entry in fields(RunConfig)}


def refuse_unknown(settings: Iterable[str], own: Collection[str] = ()) -> None:
    names = [*own, *DEFAULTS]
    faults = []
    for name in settings:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            faults.append(f"{name} is not a setting" + (f" (did you mean {close[0]}?)" if close else ""))
    if faults:
        raise ConfigError("; ".join(faults))


def assigned_names(source: str) -> dict[str, type | None]:
    """Names that the top-level assignments in `source` bind, and the types in their annotations, None without."""
    names: dict[str, type | None] = {}
    for statement in ast.parse(source).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        kind = KINDS.get(ast.unparse(statement.annotation)) if isinstance(statement, ast.AnnAssign) else None
        names |= {target.id: kind for target in targets if isinstance(target, ast.Name)}
    return names


def resolve(folder: str | Path) -> Path:
    """`folder` as an absolute path: from the project's root inside a checkout, else from the working folder.

    JupyterLab starts a notebook in notebooks/ and papermill in the shell's folder: both find the same data.
    """
    folder, working = Path(folder).expanduser(), Path.cwd()
    for candidate in (working, *working.parents):
        if (candidate / "rsna_nb" / "config.py").is_file() and (candidate / "pyproject.toml").is_file():
            return candidate / folder
    return working / folder


def settings_table() -> str:
    """Every setting, its default and what it does, as Markdown: README has it."""
    rows = [
        f"| `{entry.name}` | `{json.dumps(entry.default)}` | {entry.metadata['help']} |" for entry in fields(RunConfig)
    ]
    return "\n".join(["| setting | default | |", "|---|---|---|", *rows])


if __name__ == "__main__":
    print(settings_table())
