"""The picture folders of THINGS-EEG2: `training_images` and `test_images`, one folder per concept, in one fixed order.

The recordings name no picture. Their condition i is the i-th picture of these folders, sorted by name, so a picture too
few would shift every label after it: counts and, where given, the names in `image_metadata.npy` are compared first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eegvision.ingest import unpickle
from eegvision.ingest.pictures import read_picture
from eegvision.vocab import InputError, Stimulus

Partition = Literal["training", "test"]

_FOLDERS = {"training": ("training_images", "train_images"), "test": ("test_images",)}
_METADATA_KEY = {"training": "train", "test": "test"}
_SUFFIXES = (".jpg", ".jpeg", ".png")
_CONCEPT = re.compile(r"\d{5}_(.+)")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture: `name` is CONCEPT_FOLDER/FILE; `image_id` adds the partition and leaves the suffix out."""

    image_id: str
    name: str
    concept: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """The pictures of one partition, in the order of the conditions."""

    partition: Partition
    folder: Path
    pictures: tuple[Picture, ...]

    @property
    def concepts(self) -> tuple[str, ...]:
        """Concepts by name, in the order of their folders."""
        return tuple(dict.fromkeys(picture.concept for picture in self.pictures))

    @property
    def per_concept(self) -> int:
        return len(self.pictures) // len(self.concepts)


def read_sets(images: Path, partitions: Sequence[Partition], metadata: Path | None = None) -> dict[Partition, ImageSet]:
    """Find the pictures of the partitions, and compare them with `image_metadata.npy` where it is given.

    Args:
        images: the folder that holds `training_images` and `test_images` (or a folder `image_set` that does).
        partitions: which of them are wanted.
        metadata: the publisher's `image_metadata.npy`: names of files and concepts in the order of the conditions.
    Raises:
        InputError: a folder is missing or empty; a concept's folder is not called NNNNN_name or holds more or fewer
            pictures than the others; names or order in the metadata differ; a picture is a link to outside.
    """
    images = Path(images)
    roots = [root for root in (images, images / "image_set") if root.is_dir()]
    if not roots:
        raise InputError(f"there is no folder {images} with the pictures; give the folder of training_images")
    sets = {partition: _read_set(roots, partition) for partition in partitions}
    if metadata is not None:
        listed = _read_metadata(Path(metadata))
        for image_set in sets.values():
            _compare(image_set, listed, Path(metadata))
    return sets


def stimuli(sets: dict[Partition, ImageSet], classes: Sequence[str], shown: set[str]) -> Iterator[Stimulus]:
    """Yield the pictures whose `image_id` was shown."""
    label_of = {name: label for label, name in enumerate(classes)}
    for image_set in sets.values():
        for picture in image_set.pictures:
            if picture.image_id in shown:
                yield Stimulus(
                    image_id=picture.image_id,
                    label=label_of[picture.concept],
                    label_name=picture.concept,
                    encoded=read_picture(picture.path),
                )


def _read_set(roots: Sequence[Path], partition: Partition) -> ImageSet:
    folders = [root / name for root in roots for name in _FOLDERS[partition] if (root / name).is_dir()]
    if len(folders) != 1:
        found = " and ".join(map(str, folders)) or "none"
        raise InputError(
            f"one folder {_FOLDERS[partition][0]} is expected under {roots[0]}, there is {found}; "
            "give the folder that holds training_images and test_images, unpacked"
        )
    pictures: list[Picture] = []
    counts: dict[str, int] = {}
    for concept in sorted(entry.name for entry in folders[0].iterdir() if not entry.name.startswith(".")):
        folder = folders[0] / concept
        if not folder.is_dir() or not (match := _CONCEPT.fullmatch(concept)):
            raise InputError(f"{folder} is not a folder called NNNNN_concept; move it out of {folders[0]}")
        before = len(pictures)
        pictures += _pictures_of(folder, partition, match[1], folders[0])
        counts[concept] = len(pictures) - before
    if not pictures:
        raise InputError(f"{folders[0]} holds no folder NNNNN_concept with pictures; unpack the image set there")
    usual = max(set(counts.values()), key=list(counts.values()).count)
    for concept, count in counts.items():
        if count != usual:
            raise InputError(
                f"{folders[0] / concept} holds {count} pictures, the other concepts hold {usual}: every picture after "
                "it would get a wrong label; unpack the image set again"
            )
    names = [picture.concept for picture in pictures[::usual]]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{folders[0]} holds two folders of the concept {twice!r}; keep the publisher's one")
    return ImageSet(partition=partition, folder=folders[0], pictures=tuple(pictures))


def _pictures_of(folder: Path, partition: Partition, concept: str, root: Path) -> Iterator[Picture]:
    stems: set[str] = set()
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith(".") or path.suffix.lower() not in _SUFFIXES:
            continue
        if path.stem in stems:
            raise InputError(f"picture {path.stem} is in {folder} twice, under two suffixes; remove one")
        if not path.resolve().is_relative_to(root.resolve()):
            raise InputError(f"picture {path} is a link to outside {root}; copy the file to where the link is")
        stems.add(path.stem)
        yield Picture(
            image_id=f"{partition}/{folder.name}/{path.stem}",
            name=f"{folder.name}/{path.name}",
            concept=concept,
            path=path,
        )


def _read_metadata(path: Path) -> dict[str, Any]:
    loaded = unpickle.load(path)
    if not isinstance(loaded, dict):
        raise InputError(f"{path} holds a {type(loaded).__name__}, not the dict of image_metadata.npy")
    return loaded


def _compare(image_set: ImageSet, listed: dict[str, Any], path: Path) -> None:
    key = _METADATA_KEY[image_set.partition]
    columns = []
    for name in (f"{key}_img_concepts", f"{key}_img_files"):
        column = unpickle.array(listed.get(name))
        values = listed.get(name) if column is None else column.tolist()
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise InputError(f"{path} has no list of names `{name}`; give the publisher's image_metadata.npy")
        columns.append(values)
    concepts, files = columns
    if not len(concepts) == len(files) == len(image_set.pictures):
        raise InputError(
            f"{path} lists {len(files)} files and {len(concepts)} concepts for {image_set.partition}, "
            f"{image_set.folder} holds {len(image_set.pictures)} pictures; take both from one release"
        )
    for condition, (concept, file, picture) in enumerate(zip(concepts, files, image_set.pictures, strict=True), 1):
        if f"{concept}/{file}" != picture.name:
            raise InputError(
                f"condition {condition} of {image_set.partition} is {concept}/{file} in {path}, but picture "
                f"{condition} of {image_set.folder} is {picture.name}; take both from one release, unrenamed"
            )
