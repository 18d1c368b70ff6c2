"""The sum of the gradients over processes, bucket by bucket, while the backward pass still runs."""

import math

import torch
import torch.distributed as dist

# Newer releases of torch have the same two collectives under new names, and warn of the old ones.
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class GradientSync:
    """Starts the sum of a bucket as soon as the last micro-batch's backward pass has made all its gradients.

    Buckets are started in one order on all ranks, the last in the forward pass first, whatever the order in which they
    fill: collectives pair up by it.

    Parameters
    ----------
    model : its parameters give the order of the forward pass.
    buckets : of buckets.lay_out().
    grad : flat float32 gradients, of all buckets.
    collect : collect(bucket) moves a bucket's gradients from the parameters to `grad`.
    micro_batches : backward passes per step; only the last one's gradients complete the sum.
    sharded : True for reduce-scatter, after which each process has the sum of its own part alone.
    """

    def __init__(self, model, buckets, grad, collect, micro_batches: int, sharded: bool):
        self.grad, self.collect, self.micro_batches, self.sharded = grad, collect, micro_batches, sharded
        place = {p: i for i, p in enumerate(model.parameters())}
        self.queue = sorted(buckets, key=lambda bucket: -min(place[p] for p in bucket.params))
        self.reset()
        for bucket in buckets:
            for p in bucket.params:
                p.register_post_accumulate_grad_hook(lambda p, bucket=bucket: self._arrived(bucket))

    def reset(self):
        """Before a step: nothing collected, nothing under way."""
        self.done, self.works = 0, []  # micro-batches collected, sums started
        for bucket in self.queue:
            bucket.missing = len(bucket.params)

    def _arrived(self, bucket):
        if self.done < self.micro_batches - 1:
            return
        bucket.missing -= 1
        while len(self.works) < len(self.queue) and not self.queue[len(self.works)].missing:
            ready = self.queue[len(self.works)]
            self.collect(ready)
            self.works.append(self._start(ready))

    def _start(self, bucket):
        if self.sharded:
            return reduce_scatter(self.grad[bucket.mine], self.grad[bucket.span], async_op=True)
        return dist.all_reduce(self.grad[bucket.span], async_op=True)

    def wait(self):
        """Until every sum has arrived."""
        complete = self.done == self.micro_batches and len(self.works) == len(self.queue)
        assert complete, "a micro-batch was not summed"
        for work in self.works:
            work.wait()

    def norm(self) -> torch.Tensor:
        """Norm of the summed gradient, on the device."""
        if not self.sharded:
            return self.grad.norm()
        squares = torch.stack([self.grad[bucket.mine].norm().square() for bucket in self.queue]).sum()
        dist.all_reduce(squares)
        return squares.sqrt()

    def mute(self):
        """Send nothing from here on."""
        self.micro_batches = math.inf
        self.reset()


def gather_parts(owned, buckets, out):
    """Fill the flat buffer `out` from the parts that each process owns; v has no part of Muon's buckets."""
    works = []
    for bucket in buckets:
        if bucket.own.stop <= len(owned):
            out[bucket.mine].copy_(owned[bucket.own])
            works.append(all_gather(out[bucket.span], out[bucket.mine], async_op=True))
    for work in works:
        work.wait()
    return out
