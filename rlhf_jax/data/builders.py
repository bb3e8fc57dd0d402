"""Published feedback as a data set of TensorFlow Datasets, from files that a user has.

Built once by ``python -m rlhf_jax.data build hh FOLDER``, or ``build_dataset``; then
``read_rows("tfds:local_feedback/hh", split="train")`` reads ArrayRecord. Nothing is
downloaded, and TensorFlow is not needed.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from rlhf_jax.data.files import KINDS, scan_file
from rlhf_jax.data.formats import record_values
from rlhf_jax.data.quarantine import adapt
from rlhf_jax.data.row import DataError, Fault
from rlhf_jax.data.sources import terse_tfds

MOST_QUARANTINED = 0.01  # share of the rows; beyond it something else is wrong
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev"), "validation"
)

_TEXT = tfds.features.Text()
_PAIR = {name: _TEXT for name in ("prompt", "chosen", "rejected", "origin")}
FEATURES: dict[str, dict[str, Any]] = {
    "hh": _PAIR,
    "summarize_from_feedback": _PAIR | {"annotator": tfds.features.Scalar(np.int32)},
    "ultrafeedback": {
        "prompt": _TEXT,
        "completions": tfds.features.Sequence(_TEXT),
        "ranks": tfds.features.Sequence(np.int32),
        "origin": _TEXT,
    },
}


class LocalFeedback(tfds.core.GeneratorBasedBuilder):
    """Judgements that others have published, from a user's copy of their files.

    No reference for the whole; the three configs are Bai et al. 2022, arXiv:2204.05862
    (``hh``), Stiennon et al. 2020, arXiv:2009.01325 (``summarize_from_feedback``), and
    Cui et al. 2023, arXiv:2310.01377 (``ultrafeedback``). Columns are those that
    ``preferences`` and ``rankings`` read, with ``origin``, the file and line. A file
    belongs to the split that its path spells (train, test, validation, valid, val,
    dev), else to train; rows of comparisons name their own.
    """

    VERSION = tfds.core.Version("1.0.0")  # other columns: another version
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="hh", description="Pairs of dialogues."),
        tfds.core.BuilderConfig(
            name="summarize_from_feedback", description="Pairs of summaries."
        ),
        tfds.core.BuilderConfig(name="ultrafeedback", description="Rankings."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "python -m rlhf_jax.data build CONFIG FOLDER"
    url_infos = None  # looking for a list of downloads needs a further package

    def _info(self) -> tfds.core.DatasetInfo:
        assert self.builder_config is not None
        return tfds.core.DatasetInfo(
            builder=self,
            description="Published feedback, built from local files.",
            features=tfds.features.FeaturesDict(FEATURES[self.builder_config.name]),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # rows stay in the order of the files
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        assert self.builder_config is not None
        found = read_folder(Path(dl_manager.manual_dir), self.builder_config.name)
        metadata: Any = self.info.metadata
        metadata["quarantined"] = [[f.origin, f.reason] for f in found.quarantined]
        return {
            split: self._generate_examples(examples)
            for split, examples in found.splits.items()
        }

    def _generate_examples(
        self, examples: list[dict[str, Any]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(examples)


class Folder(NamedTuple):
    """What the files of a folder hold."""

    splits: dict[str, list[dict[str, Any]]]  # examples by split
    quarantined: list[Fault]


def read_folder(folder: Path, config: str) -> Folder:
    """Every row of every data file in a folder, in the order of names. No reference.

    Args:
      folder: looked through with all that is in it.
      config: of ``LocalFeedback``, which is also the rows' format.

    Returns:
      Examples by split, and the rows that could not be used.

    Raises:
      DataError: no data file is there, or more than 1 % of the rows are faulty.
    """
    paths = [p for p in sorted(folder.rglob("*")) if {*p.suffixes[-2:]} & {*KINDS}]
    if not paths:
        raise DataError(
            f"{folder}: no data file in it; expected files of {', '.join(KINDS)}, "
            f"plain or with .gz"
        )
    unsaid = {"annotator": -1} if config == "summarize_from_feedback" else {}
    splits: dict[str, list[dict[str, Any]]] = {}
    faults: list[Fault] = []
    num_rows = 0
    for path in paths:
        for row in scan_file(path):
            num_rows += 1
            if isinstance(row, Fault):
                faults.append(row)
                continue
            found = adapt(row, config)
            if isinstance(found, Fault):
                faults.append(found)
                continue
            named = row.values.get("split") if unsaid else None
            split = str(named or _split_of(path.relative_to(folder)))
            origin = {"origin": f"{path.relative_to(folder)}:{row.line}"}
            splits.setdefault(split, []).extend(
                unsaid | record_values(record) | origin for record in found
            )
    if len(faults) > MOST_QUARANTINED * num_rows:
        raise DataError(
            f"{folder}: {len(faults):,} of {num_rows:,} rows are faulty, more than "
            f"{MOST_QUARANTINED:.0%}; the first is {faults[0].origin}: "
            f"{faults[0].reason}"
        )
    return Folder(splits, faults)


def _split_of(path: Path) -> str:
    words = re.split(r"[\W_]+", str(path).lower())
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), "train")


def build_dataset(
    config: str, folder: str | Path, *, data_dir: str | Path | None = None
) -> dict[str, int]:
    """Writes a config of ``LocalFeedback`` as ArrayRecord. No reference.

    Args:
      config: ``"hh"``, ``"summarize_from_feedback"`` or ``"ultrafeedback"``.
      folder: holds the files as their authors publish them, at any depth.
      data_dir: where it is written; None is TensorFlow Datasets' own default.

    Returns:
      Examples by split, and ``"quarantined"``: rows left out, whose origins and
      reasons are in ``metadata.json`` beside the data.

    Raises:
      DataError: there is no such config, it is there already, the folder holds no data
        file, or more than 1 % of the rows are faulty.
    """
    if config not in FEATURES:
        raise DataError(f"no config {config!r}; expected {' or '.join(FEATURES)}")
    name = f"local_feedback/{config}"
    with terse_tfds():
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    if Path(builder.data_path).exists():
        raise DataError(f"{builder.data_path}: is there already; remove it to rebuild")
    if not Path(folder).is_dir() or not any(Path(folder).iterdir()):
        raise DataError(f"{folder}: no folder with files in it; check the path")
    with terse_tfds():
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                manual_dir=folder, try_download_gcs=False
            )
        )
    counts = Counter({s: info.num_examples for s, info in builder.info.splits.items()})
    metadata: Any = builder.info.metadata
    return dict(counts) | {"quarantined": len(metadata["quarantined"])}
