"""The memory of kernels: a piece of its own for each thread, which grows and stays."""

from __future__ import annotations

import threading

from components.scratch import KEPT, Scratch, scratch


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


def test_what_is_large_is_given_back_when_the_work_is_done() -> None:
    memory = Scratch()
    while len(memory.out) <= KEPT:
        memory.grow_out()
    memory.append(0, bytes(KEPT + 1))
    memory.out[:3] = 7
    assert memory.written(3) == b"\7\7\7"
    assert len(memory.out) == len(memory.heap) == KEPT
    memory.out[:1] = 8
    assert memory.written(1) == b"\x08"  # of the new one
    out, heap = memory.out, memory.heap
    memory.trim()
    assert memory.out is out
    assert memory.heap is heap


def test_carriers_are_as_many_as_are_asked_for() -> None:
    memory = Scratch()
    few = memory.carriers(1)
    assert memory.carriers(len(few)) is few
    assert len(memory.carriers(len(few) + 1)) > len(few)
