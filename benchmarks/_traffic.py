"""What operators read and write, counted call by call: what they take at least, whatever computes them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_MOVE_NOTHING = ("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


class Traffic(TorchDispatchMode):
    """Sums, while it is entered, the bytes of every tensor that an operator reads or writes.

    Tta move nothing, and what is only to be written into is counted when it is. A tensor read twice by one operator
    counts once, an expanded one with what it stores.
    """

    def __init__(self, but: Collection[str] = ()) -> None:
        """but: names of operators that are left out."""
        super().__init__()
        self.bytes = 0
        self._but = {*but, *_MOVE_NOTHING}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in self._but and not func.is_view:
            tensors = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)}
            self.bytes += sum(_stored_bytes(tensor) for tensor in tensors.values())
        return out


def _stored_bytes(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
