"""Batches on the device, prepared while the step before them runs.

    for idx, targets in Batches(loader, first, stride, count, steps, device): ...

On CUDA a thread reads the tokens into pinned memory and copies them on a stream of its own, so that a batch is on the
device before its step. On a CPU a batch takes microseconds, and a thread would take them from the cores that compute:
there it is made when it is requested.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import torch

AHEAD = 3  # batches that are ready or on their way


class Batches:
    """Iterator over `steps` pairs (idx, targets), int64 of shape (count, T) on `device`.

    Step i has the loader's sequences first + i*stride to first + i*stride + count - 1. Rank r of W with B sequences
    each: first = r*B, plus the sequences before a resume; stride = W*B. close() or the last batch ends the thread.
    """

    def __init__(self, loader, first: int, stride: int, count: int, steps: int, device, threaded: bool | None = None):
        self.loader, self.first, self.stride, self.count, self.steps = loader, first, stride, count, steps
        self.device = torch.device(device)
        cuda = self.device.type == "cuda"
        self.threaded = cuda if threaded is None else threaded
        self.stream = torch.cuda.Stream(self.device) if cuda else None
        self.closed, self.at = threading.Event(), 0
        self.ready: queue.Queue = queue.Queue(AHEAD)
        if self.threaded:
            threading.Thread(target=self.work, daemon=True).start()

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.at == self.steps or self.closed.is_set():
            raise StopIteration
        self.at += 1
        if not self.threaded:
            return self.make(self.at - 1)[:2]
        idx, targets, copied = self.ready.get()
        if isinstance(copied, BaseException):
            self.close()
            raise copied
        if copied is not None:
            now = torch.cuda.current_stream(self.device)
            now.wait_event(copied)
            # the memory belongs to the copying stream, which must not reuse it before the step is done
            idx.record_stream(now)
            targets.record_stream(now)
        return idx, targets

    def make(self, step: int) -> tuple:
        """(idx, targets, event of the copy or None) of a step."""
        chunk = torch.from_numpy(self.loader.sequences(self.first + step * self.stride, self.count))  # (count, T + 1)
        if self.stream is None:
            chunk = chunk.to(self.device)
            return chunk[:, :-1].contiguous(), chunk[:, 1:].contiguous(), None
        with torch.cuda.stream(self.stream):
            chunk = chunk.pin_memory().to(self.device, non_blocking=True)
            idx, targets = chunk[:, :-1].contiguous(), chunk[:, 1:].contiguous()
            return idx, targets, self.stream.record_event()

    def work(self) -> None:
        """The thread: every batch in its order."""
        try:
            for step in range(self.steps):
                self.put(self.make(step))
                if self.closed.is_set():
                    return
        except BaseException as error:  # raised again in the thread that takes the batch
            self.put((None, None, error))

    def put(self, item) -> None:
        """Queue an item; gives up once closed, when nobody will take one."""
        while not self.closed.is_set():
            try:
                return self.ready.put(item, timeout=0.1)
            except queue.Full:
                pass

    def close(self) -> None:
        self.closed.set()
