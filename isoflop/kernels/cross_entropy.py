"""LM head and cross-entropy in one piece: the logits of a whole batch are never held at once."""

import math

import torch
import torch.nn.functional as F


def head_loss(x, weight, targets, reduction="mean", softcap=None, z_loss=0.0):
    """Cross-entropy of x @ weight.T, in nats: the mean (float32), or with reduction="none" one number per target.

    x (..., C); weight (V, C); targets (...) int64. softcap bends the logits to softcap * tanh(logits / softcap).
    z_loss * mean(log(Z)^2), Z the sum of the exponentials, is added to the mean and keeps it near one (PaLM,
    Chowdhery et al. 2022, section 5). The logits of a whole batch are never held at once where fused() says so.
    """
    if softcap or x.device.type not in ("cpu", "cuda") or torch.compiler.is_compiling():
        return plain_head_loss(x, weight, targets, reduction, softcap, z_loss)
    if torch.is_autocast_enabled(x.device.type):
        x, weight = (a.to(torch.get_autocast_dtype(x.device.type)) for a in (x, weight))
    rows = x.reshape(-1, x.size(-1))
    if reduction == "mean" and torch.is_grad_enabled():
        return HeadLoss.apply(rows, weight, targets.reshape(-1), z_loss)
    R = max(1, head_rows(len(weight), x.device) // 4)  # here logits are float32, and so are their log-softmax
    pieces = zip(rows.split(R), targets.reshape(-1).split(R), strict=True)
    each = torch.cat([plain_head_loss(a, weight, b, "none", None, z_loss) for a, b in pieces])
    return each.view(targets.shape) if reduction == "none" else each.mean()


def plain_head_loss(x, weight, targets, reduction="mean", softcap=None, z_loss=0.0):
    logits = F.linear(x, weight)
    logits = logits.float() if logits.dtype != torch.float64 else logits
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.view(-1, logits.size(-1))
    loss = F.cross_entropy(logits, targets.reshape(-1), reduction=reduction)
    if z_loss and reduction == "mean":
        loss = loss + z_loss * logits.logsumexp(-1).square().mean()
    return loss.view(targets.shape) if reduction == "none" else loss


def head_rows(vocab_size: int, device) -> int:
    """Rows whose logits are made at a time. On a CPU a million logits, and those of 512 rows at least, stay in caches.

    Where they stay in none at any sensible number, larger products win (2 to 6% at 50,304). A GPU gets 2^28 logits.
    """
    if device.type != "cpu":
        return max(1, 2**28 // vocab_size)
    return max(512, 2**20 // vocab_size) if vocab_size <= 2**14 else 1024


LOG2E = math.log2(math.e)  # powers of two are cheaper than powers of e, and a product takes a factor for free
SAFE = 1e30  # sums of exponentials beyond this, or below its inverse, are too near the ends of float32's range
TINY = torch.finfo(torch.float32).tiny


class HeadLoss(torch.autograd.Function):
    """Mean cross-entropy of x @ weight.T, its gradients made chunk by chunk while the exponentials are at hand.

    With E = exp(x W^T), s its sums over each row and Y the one-hot targets, the softmax is E / s, and
    dx = (E - s Y) W / (s n), dW = (E - s Y)^T (x / (s n)) over n rows: what is divided is as wide as x, not as the
    vocabulary. E takes the place of the logits and E - s Y that of E, in one buffer, which is passed over by three
    products, one exponential and one sum. No maximum is subtracted: where a sum says that float32's range does not
    hold the exponentials, the chunk is made again with one. With the z-loss, a factor 1 + 2 z log(s) goes with E.
    """

    @staticmethod
    def forward(ctx, x, weight, targets, z_loss=0.0):
        n, V, R = len(x), len(weight), head_rows(len(weight), x.device)
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        dx, dW, loss = torch.empty_like(x), torch.empty_like(weight), x.new_zeros((), dtype=exact)
        buffer, first = x.new_empty(min(n, R), V), torch.arange(0, min(n, R) * V, V, device=x.device)
        for at in range(0, n, R):
            xc, yc = x[at : at + R], targets[at : at + R]
            e, here = buffer[: len(xc)], first[: len(xc)] + yc  # where each row's target lies
            if x.is_cpu:
                torch.addmm(e, xc, weight.t(), beta=0, alpha=LOG2E, out=e).exp2_()
                s = e.sum(-1)
            if x.is_cpu and in_range(s):  # a GPU would have to be waited for
                log_z, target = s.to(exact).log(), e.take(here).to(exact).clamp(min=TINY).log()
            else:
                torch.mm(xc, weight.t(), out=e)
                target, most = e.take(here).to(exact), e.amax(-1, keepdim=True)
                s = e.sub_(most).exp_().sum(-1)
                log_z = s.to(exact).log() + most.flatten()
            loss += (log_z - target).sum()
            rows = (n * s.to(exact)).reciprocal_()
            if z_loss:
                loss += z_loss * log_z.square().sum()
                s, rows = s / (1 + 2 * z_loss * log_z).to(s.dtype), rows * (1 + 2 * z_loss * log_z)
            e.put_(here, e.take(here) - s)
            rows = rows.to(x.dtype)[:, None].expand_as(xc).contiguous()  # see elementwise.wide()
            torch.mm(e, weight, out=dx[at : at + R]).mul_(rows)
            torch.addmm(dW, e.t(), rows.mul_(xc), beta=float(at > 0), out=dW)
        ctx.save_for_backward(dx, dW)
        return loss / n

    @staticmethod
    def backward(ctx, grad):
        dx, dW = ctx.saved_tensors
        return dx * grad, dW * grad, None, None


def in_range(sums) -> bool:
    low, high = sums.aminmax()
    return bool(low > 1 / SAFE and high < SAFE)
