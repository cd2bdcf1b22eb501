"""A function is captured as it is when `submit` returns, however much of it is remembered from the call before."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

from aiocluster import Cluster

from . import work

FACTOR = 1


class Box:
    """An object with state, and methods that tell it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def get(self) -> Any:
        return self.value

    def __call__(self) -> Any:
        return self.value


async def before_and_after(cluster: Cluster, function: Callable[[], Any], change: Callable[[], object]) -> tuple[Any, Any]:
    """What it gives when it is submitted before a change, and when it is submitted after it."""
    first = cluster.submit(function)
    change()
    second = cluster.submit(function)
    return await first, await second


async def test_the_object_of_a_bound_method(cluster: Cluster) -> None:
    box = Box(1)
    assert await before_and_after(cluster, box.get, lambda: setattr(box, "value", 2)) == (1, 2)
    nested = Box([1])
    assert await before_and_after(cluster, nested.get, lambda: nested.value.append(2)) == ([1], [1, 2])


async def test_an_object_that_is_called(cluster: Cluster) -> None:
    box = Box(1)
    assert await before_and_after(cluster, box, lambda: setattr(box, "value", 2)) == (1, 2)


async def test_the_arguments_of_a_partial(cluster: Cluster) -> None:
    values = [1]
    assert await before_and_after(cluster, functools.partial(work.echo, values), lambda: values.append(2)) == ([1], [1, 2])


async def test_a_builtin_method_of_something_mutable(cluster: Cluster) -> None:
    values = [1]
    assert await before_and_after(cluster, values.copy, lambda: values.append(2)) == ([1], [1, 2])


async def test_defaults_of_arguments(cluster: Cluster) -> None:
    values = [1]

    def look(seen: list[int] = values, *, also: list[int] = values) -> tuple[list[int], list[int]]:
        return seen, also

    assert await before_and_after(cluster, look, lambda: values.append(2)) == (([1], [1]), ([1, 2], [1, 2]))

    def plain(seen: int = 1) -> int:
        return seen

    assert await before_and_after(cluster, plain, lambda: setattr(plain, "__defaults__", (2,))) == (1, 2)


async def test_attributes_of_the_function(cluster: Cluster) -> None:
    def look() -> Any:
        return look.value  # type: ignore[attr-defined]

    look.value = 1  # type: ignore[attr-defined]
    assert await before_and_after(cluster, look, lambda: setattr(look, "value", 2)) == (1, 2)


async def test_a_function_that_the_function_calls(cluster: Cluster) -> None:
    values = {"number": 1}

    def inner() -> int:
        return values["number"]

    def outer() -> int:
        return inner()

    assert await before_and_after(cluster, outer, lambda: values.update(number=2)) == (1, 2)

    def replace() -> None:
        nonlocal inner

        def other() -> int:
            return 3

        inner = other

    assert await before_and_after(cluster, outer, replace) == (2, 3)


async def test_its_code(cluster: Cluster) -> None:
    def one() -> int:
        return 1

    def two() -> int:
        return 2

    assert await before_and_after(cluster, one, lambda: setattr(one, "__code__", two.__code__)) == (1, 2)


async def test_the_class_of_an_object(cluster: Cluster) -> None:
    class Local:
        value = 1

        def get(self) -> int:
            return self.value

    thing = Local()
    assert await cluster.submit(thing.get) == 1

    class Other:
        value = 2

        def get(self) -> int:
            return self.value

    thing.__class__ = Other  # type: ignore[assignment]
    assert await cluster.submit(thing.get) == 2


async def test_functions_made_in_a_loop_are_told_apart(cluster: Cluster) -> None:
    numbers = [cluster.submit(functools.partial(lambda seen: seen, number)) for number in range(500)]
    assert await asyncio.gather(*numbers) == list(range(500))

    def make(number: int) -> Callable[[int], int]:
        return lambda x: x + number

    futures = [cluster.submit(make(number), 1000) for number in range(500)]
    assert await asyncio.gather(*futures) == list(range(1000, 1500))


async def test_functions_of_the_same_name_are_told_apart(cluster: Cluster) -> None:
    def versions() -> list[Callable[[], int]]:
        def function() -> int:
            return 1

        first = function

        def function() -> int:  # type: ignore[no-redef]  # as in a notebook's cell that is run again
            return 2

        return [first, function]

    first, second = versions()
    assert await asyncio.gather(*[cluster.submit(one) for one in (first, second, first)]) == [1, 2, 1]


async def test_a_map_captures_its_function_once_and_its_items_as_they_are_pulled(cluster: Cluster) -> None:
    values = [1]
    results = await cluster.map(lambda _item: len(values), range(10))
    assert results == [1] * 10


async def test_the_same_large_object_can_be_sent_again_after_a_change(cluster: Cluster) -> None:
    import numpy as np

    array = np.zeros(500_000)
    futures = []
    for number in range(5):
        array[:] = number
        futures.append(cluster.submit(np.sum, array))
    assert await asyncio.gather(*futures) == [number * 500_000 for number in range(5)]


async def test_many_different_functions_do_not_pile_up_trouble(cluster: Cluster) -> None:
    for number in range(0, 3000, 1000):
        futures = [cluster.submit(eval(f"lambda: {index}")) for index in range(number, number + 1000)]
        assert await asyncio.gather(*futures) == list(range(number, number + 1000))
