"""Corrections of a model's answers: from the page's ZIP into a data folder, all or none.

They go where training finds them, but every fifth, by its content, is kept out of training and
validation, to judge models by.
"""

import re
import shutil
import zipfile
import zlib
from collections import Counter, defaultdict
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from simplestack.serving.errors import StackError, printable
from simplestack.serving.formats import SUFFIXES
from simplestack.training.folders import files_in, is_ignored, scan

ONE_OF = 5  # corrections is kept out; one of so many of a new class is for validation
MAX_RATIO = 10  # bytes of photos for each byte of the archive: photos hardly compress
# CLASS/PHOTO, or PHOTO if it is none of the classes
NAME = re.compile(rf"(?i)(?!\.\.)([^/\\]+/)?[^/\\]+({'|'.join(map(re.escape, SUFFIXES))})\Z")
LINK = 0o12  # the kind of file, in the highest bits of a member's attributes


def beside(data_dir: Path) -> tuple[Path, Path]:
    """Return the folders for corrections that are kept out, and for photos of none of the classes.

    Neither is trained on. The first has a folder for each class.
    """
    return Path(f"{data_dir}.held-out"), Path(f"{data_dir}.none")


def add(archive: Path, data_dir: Path) -> None:
    """Put the photos of an archive into a data folder and beside it; print where they are now.

    Photos that are there already, by content, are not added. Raises StackError, and changes
    nothing, if the archive has anything but photos, or a new class has too few.
    """
    data, (held_out, none) = scan(data_dir), beside(data_dir)
    known, counts = {"", *data.classes()}, Counter[tuple[str, str]]()
    new: dict[str, dict[str, Path]] = defaultdict(dict)  # files of each class, by SHA-256
    with TemporaryDirectory(prefix=".", dir=data_dir) as work, ExitStack() as undo:
        there = [*(data_dir / x for x in data.sizes), *files_in(held_out), *files_in(none)]
        copies = {sha256(path.read_bytes()).hexdigest(): path for path in there}
        for path, label in unpack(archive, Path(work)).items():
            copy = copies.setdefault(digest := sha256(path.read_bytes()).hexdigest(), path)
            if copy == path:
                new[label][digest] = path
            else:
                counts[label, f"already there: {copy.parent if label in copy.parts else copy}"] += 1
        if taken := data.taken(new):
            reason = f"in {data_dir}, a class can't be called {taken.pop()}"
            raise StackError(f"{archive} isn't added: {reason}")
        for label, files in new.items():
            learned = sorted(digest for digest in files if label and int(digest, 16) % ONE_OF)
            validate = [] if label in known else learned[: max(1, len(learned) // ONE_OF)]
            if label not in known and learned == validate:
                reason = f"the new class {label} needs two photos besides those that are kept out"
                raise StackError(f"{archive} isn't added: {reason}")
            for digest, path in files.items():
                root = data.roots[-1 if digest in validate else 0]
                root = root if digest in learned else held_out if label else none
                target = root / label / f"{digest[:16]}{path.suffix.lower()}"
                if not target.parent.exists():
                    target.parent.mkdir(parents=True)
                    undo.callback(shutil.rmtree, target.parent)
                undo.callback(target.unlink, missing_ok=True)
                shutil.move(path, target)
                counts[label, f"added to {root}"] += 1
        undo.pop_all()  # all are in place
    for (label, where), count in sorted(counts.items()):
        name = label or "none of these"
        print(printable(f"{name}{' (new)' if label not in known else ''}: {count} {where}"))


def unpack(archive: Path, folder: Path) -> dict[Path, str]:
    """Unpack an archive into a folder; return its photos, each with its class, or "" if none.

    Raises StackError if it has unsafe members, other files, or more bytes than photos have.
    """
    try:
        with zipfile.ZipFile(archive, metadata_encoding="utf-8") as file:
            members = [x for x in file.infolist() if not is_left_out(x)]
            for x in members:
                if x.flag_bits & 1 or x.external_attr >> 28 == LINK or not NAME.match(x.filename):
                    reason = f"{x.filename} is no plain photo in the folder of a class"
                    raise StackError(f"{archive} isn't added: {reason}")
            if sum(x.file_size for x in members) > MAX_RATIO * archive.stat().st_size:
                raise StackError(f"{archive} isn't added: it unpacks to more than photos do")
            file.extractall(folder, members)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise StackError(f"{archive} is not a whole ZIP archive: download it again") from error
    return {folder / x.filename: x.filename.rpartition("/")[0] for x in members}


def is_left_out(info: zipfile.ZipInfo) -> bool:
    """Return whether a member is a folder, the table, or a file that is ignored everywhere."""
    parts = [x for x in info.filename.split("/") if x[:2] != ".."]
    return info.is_dir() or parts == ["corrections.csv"] or any(map(is_ignored, parts))
