"""``penstock init``: commented example files to start from."""

from __future__ import annotations

from pathlib import Path

import typer

from penstock.errors import StorageError


def init(
    directory: Path = typer.Argument(Path("."), help="Folder to write the example files into."),
    force: bool = typer.Option(False, "--force", help="Replace files that exist."),
) -> None:
    """Write commented example files: a cluster and a workload.

    Example: penstock init my-fleet && cd my-fleet && penstock plan cluster.yaml llama2-70b
    """
    from penstock.spec.templates import example_files
    from penstock.storage import write_text

    files = example_files()
    taken = [directory / name for name in files if (directory / name).exists()]
    if taken and not force:
        raise StorageError(f"{taken[0]} exists; use --force to replace it, or name another folder")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StorageError(f"{error.filename}: is not a folder; name another one") from None
    for name, text in files.items():
        write_text(directory / name, text)
        print(f"wrote {directory / name}")
    print(f"next: penstock plan {directory / 'cluster.yaml'} llama2-70b -o plan.yaml")
