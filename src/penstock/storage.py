"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.errors import StorageError


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"{path}: cannot be written ({reason}); free space, or choose another place"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, as ``write_lines`` does."""
    write_lines(path, (text,))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write ``lines`` (each with its line end) to ``path``, replacing it in one step.

    Raises ``StorageError`` (disk full, no permission); the old file is then untouched.
    """
    with _explained(path):
        handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
                stream.writelines(lines)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside ``path`` that takes its place when the block ends well.

    A folder that stood at ``path`` is replaced. Raises ``StorageError`` when the disk refuses.
    """
    with _explained(path):
        path = path.absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield work
            work.chmod(0o777 & ~_umask())
            _swap(work, path)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise


def _swap(new: Path, path: Path) -> None:
    """Put ``new`` at ``path``; what stood there is removed only after the new one is in place."""
    if not path.exists():
        os.replace(new, path)
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
