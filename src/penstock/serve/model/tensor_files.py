"""Named tensors in one or many safetensors files, read in parts, with errors that name both."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from penstock.errors import SpecError
from penstock.serve.model.checkpoint import weight_map

_ALL = slice(None)
_FLOATS = ("F64", "F32", "F16", "BF16")


class TensorFiles:
    """Opens files as they are needed; a context manager that closes them.

    Names are looked up as written, then without a leading ``model.``: some checkpoints were saved
    from the inner model.
    """

    def __init__(
        self, folder: Path, files: Sequence[Path], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._folder = folder
        self._files = files
        self._dtype = dtype
        self._device = device
        self._stack = ExitStack()
        self._open: dict[Path, Any] = {}
        self._where: dict[str, Path] = {}

    def __enter__(self) -> TensorFiles:
        mapped = weight_map(self._folder)
        if mapped is not None:
            self._where = {name: self._folder / file for name, file in mapped.items()}
        else:
            for file in self._files:
                self._where.update((name, file) for name in self._handle(file).keys())  # noqa: SIM118
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._open.clear()

    def read(
        self, name: str, shape: tuple[int, ...], rows: slice = _ALL, columns: slice = _ALL
    ) -> torch.Tensor:
        """Return ``[rows, columns]`` of tensor ``name``, which must have ``shape`` as a whole.

        Always a copy in the dtype and on the device of the slice: files may go away.
        """
        known = name if name in self._where else name.removeprefix("model.")
        file = self._where.get(known)
        if file is None:
            where = self._files[0] if len(self._files) == 1 else self._folder
            raise SpecError(
                f"tensor {name} is missing", source=where, fix="the checkpoint is not complete"
            )
        handle = self._handle(file)
        try:
            part = handle.get_slice(known)
            found, dtype = tuple(part.get_shape()), part.get_dtype()
        except SafetensorError as error:
            raise SpecError(f"tensor {known} cannot be read: {error}", source=file) from None
        if found != shape:
            raise SpecError(
                f"tensor {known} has shape {list(found)}, config.json asks for {list(shape)}",
                source=file,
            )
        if dtype not in _FLOATS:
            raise SpecError(f"tensor {known} is of dtype {dtype}, not a float", source=file)
        try:
            content = part[rows] if len(shape) == 1 else part[rows, columns]
        except (SafetensorError, OSError) as error:
            raise SpecError(f"tensor {known} cannot be read: {error}", source=file) from None
        copied: torch.Tensor = content.to(self._device, self._dtype, copy=True).contiguous()
        return copied

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            try:
                opened = safe_open(str(file), framework="pt")
                self._open[file] = self._stack.enter_context(opened)
            except (SafetensorError, OSError) as error:
                raise SpecError(
                    f"not a readable safetensors file: {error}",
                    source=file,
                    fix="download it again",
                ) from None
        return self._open[file]
