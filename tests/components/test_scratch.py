"""The memory of kernels: a piece of its own for each thread, which grows and stays."""

from __future__ import annotations

import threading

from components.scratch import Scratch, scratch


def test_each_thread_has_its_own() -> None:
    found: list[Scratch] = []
    both = threading.Barrier(2)  # nobody is given the number of a thread that has ended

    def work() -> None:
        both.wait()
        mine = scratch()
        found.append(mine)
        assert scratch() is mine
        both.wait()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in (*found, scratch())}) == 3
    assert scratch() is scratch()


def test_memory_grows_and_what_was_appended_stays() -> None:
    memory = Scratch()
    out, heap = len(memory.out), len(memory.heap)
    assert len(memory.grow_out()) == len(memory.out) == 2 * out
    end = memory.append(0, b"abc")
    end = memory.append(end, bytes(heap) + b"z")
    assert memory.heap[:end].tobytes() == b"abc" + bytes(heap) + b"z"
    assert len(memory.grow_heap()) == len(memory.heap) == 4 * heap


def test_carriers_are_as_many_as_are_asked_for() -> None:
    memory = Scratch()
    few = memory.carriers(1)
    assert memory.carriers(len(few)) is few
    assert len(memory.carriers(len(few) + 1)) > len(few)
