"""Events from one thread to coroutines of another."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

from worker.core.contract import Piece
from worker.engine.event_bridge import EventBridge, woken_together


async def on_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    await asyncio.to_thread(thread.join)


def test_those_of_a_step_are_woken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> tuple[int, list[list[Any]]]:
        loop, wakes = asyncio.get_running_loop(), []
        bridges = [EventBridge(wakes_for_pieces=True) for _ in range(5)]
        takers = [asyncio.create_task(bridge.take()) for bridge in bridges]
        await asyncio.sleep(0)
        call = loop.call_soon_threadsafe

        def counted(callback: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            wakes.append(threading.current_thread().name)
            return call(callback, *arguments, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)

        def step() -> None:
            threading.current_thread().name = "step"
            with woken_together():
                for index, bridge in enumerate(bridges):
                    bridge.emit(Piece(text=str(index), index=0))
                    bridge.emit(Piece(text="!", index=0))

        await on_a_thread(step)
        return wakes.count("step"), [await taker for taker in takers]

    wakes, taken = asyncio.run(run())
    assert wakes == 1
    assert [[piece.text for piece in pieces] for pieces in taken] == [[str(index), "!"] for index in range(5)]


def test_an_event_outside_of_a_step_wakes_by_itself_and_a_closed_loop_is_left_alone() -> None:
    async def run(bridges: list[EventBridge]) -> list[Any]:
        bridge = EventBridge(wakes_for_pieces=True)
        bridges.append(bridge)

        def tell() -> None:
            with contextlib.suppress(ZeroDivisionError), woken_together():
                bridge.emit(Piece(text="a", index=0))
                raise ZeroDivisionError
            bridge.emit(Piece(text="b", index=0))

        await on_a_thread(tell)
        return await bridge.take()

    bridges: list[EventBridge] = []
    assert "".join(piece.text for piece in asyncio.run(run(bridges))) == "ab"
    with woken_together():
        bridges[0].emit(Piece(text="late", index=0))
