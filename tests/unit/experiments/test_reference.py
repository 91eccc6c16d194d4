"""Finding and reading the folder of published figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import InputError, SpecError
from penstock.experiments.reference import find_reference, number, optional, read_table


def test_the_named_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option beats the variable, and the variable beats the places beside the work."""
    for name in ("option", "variable", "shared/reference"):
        (tmp_path / name / "helix").mkdir(parents=True)
    inside = tmp_path / "work" / "deep"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    monkeypatch.delenv("PENSTOCK_REFERENCE", raising=False)
    assert find_reference(None, "helix") == tmp_path / "shared" / "reference"
    monkeypatch.setenv("PENSTOCK_REFERENCE", str(tmp_path / "variable"))
    assert find_reference(None, "helix") == tmp_path / "variable"
    assert find_reference(tmp_path / "option", "helix") == tmp_path / "option"


def test_an_absent_folder_is_one_line_with_the_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user learns where we looked and how to say where it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PENSTOCK_REFERENCE", raising=False)
    with pytest.raises(InputError, match="--reference") as caught:
        find_reference(None, "helix")
    assert str(tmp_path / "shared" / "reference" / "helix") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_named_folder_without_the_system_is_refused(tmp_path: Path) -> None:
    """A wrong --reference is not silently replaced by another folder."""
    with pytest.raises(InputError, match=str(tmp_path)):
        find_reference(tmp_path, "helix")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1\n", "line 2"),
        ("a,b\n1,2,3\n", "line 2"),
        ("a\n1\n", "column is missing"),
        ("", "column is missing"),
    ],
)
def test_a_damaged_table_names_its_place(tmp_path: Path, text: str, message: str) -> None:
    """A cut or foreign file is one line with the file and the place."""
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(SpecError, match=message) as caught:
        read_table(path, "a", "b")
    assert str(path) in str(caught.value)


def test_an_absent_table_is_an_input_error(tmp_path: Path) -> None:
    """A missing file of the folder is named."""
    with pytest.raises(InputError, match=r"gone\.csv"):
        read_table(tmp_path / "gone.csv")


def test_numbers_are_finite_or_absent(tmp_path: Path) -> None:
    """Empty means absent where that is allowed; words and infinities are refused."""
    path = tmp_path / "t.csv"
    path.write_text("a,b,c,d\n1.5,,inf,x\n")
    (row,) = read_table(path, "a")
    assert number(row, "a", path) == 1.5
    assert optional(row, "b", path) is None
    for column in ("c", "d"):
        with pytest.raises(SpecError, match="finite"):
            optional(row, column, path)
