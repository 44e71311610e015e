"""A small memory of what was made last."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Keeps the `capacity` values that were asked for last, of at most `max_bytes` together, and
    the last one whatever it takes. Safe to use from several threads.
    """

    def __init__(
        self,
        capacity: int,
        *,
        max_bytes: int = 0,
        num_bytes: Callable[[Value], int] = lambda value: 0,
    ) -> None:
        self._capacity = capacity
        self._max_bytes, self._num_bytes = max_bytes, num_bytes
        self._lock = threading.Lock()
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of `key`, made if it is not remembered. What `make` raises is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()  # without the lock: two threads may make the same value, and that is fine
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > 1 and self._is_over():
                self._values.popitem(last=False)
        return value

    def _is_over(self) -> bool:
        total = sum(map(self._num_bytes, self._values.values()))
        return len(self._values) > self._capacity or total > self._max_bytes

    def drop(self, unwanted: Callable[[Value], bool]) -> None:
        """Forget the values of which `unwanted` is true."""
        with self._lock:
            for key in [key for key, value in self._values.items() if unwanted(value)]:
                del self._values[key]
