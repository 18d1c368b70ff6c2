"""
Batched Newton minimiser of the Huber loss of log residuals, from many starts.

The laws here are ln L = ln(sum_k exp(c_k - s_k x_k) [+ exp(e)]): Hoffmann's law has two terms with x = (ln N, ln D), a
power law of one variable has one. B problems (starts, or bootstrap resamples given by their row weights) are minimised
at once, with exact gradients and Hessians.
"""

from dataclasses import dataclass

import numpy as np

DELTA = 1e-3  # Huber threshold on ln L, Hoffmann et al. 2022, section D.2
RESAMPLES = 4000
AGREE = 1e-6  # two starts agree when their objectives do, relatively
GRADIENT_TOL = 1e-6  # largest gradient at an accepted optimum, as a fraction of the largest it could be
EXPONENT_RANGE = (0.02, 2.0)  # published alpha and beta lie in 0.07..0.6; outside this the fit has run away
E_FLOOR = 1e-3  # E below this share of the lowest loss is pinned at 0
BOOT_ELEMENTS = 4_000_000  # rows x resamples that take about a second; fewer resamples (never under 400) above it
CACHED = 60_000  # rows x problems that are evaluated at once
SANDWICH_ROWS = 10_000  # from here on intervals come from the sandwich covariance
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Refusal:
    """Why a method gives no number (or no interval), and what would change that."""

    method: str
    code: str
    message: str


# ----- objective and derivatives -----


class Regressors:
    """The rows' regressors x (K, n), with the products that every Hessian needs."""

    def __init__(self, x):
        self.x, self.k = x, len(x)
        one = np.ones(x.shape[1])
        self.powers = [np.stack([one, v, v * v], 1) for v in x]  # (n, 3)
        self.cross = {}  # (k, o) -> (n, 4) of 1, x_k, x_o, x_k x_o
        for k in range(self.k):
            for o in range(k):
                self.cross[k, o] = np.stack([one, x[k], x[o], x[k] * x[o]], 1)


def huber(residual, w, delta):
    """
    Huber's loss of residuals (B, n) with weights w (B, n) or None.

    Returns
    -------
    f : (B,)
        Sum over rows of w * Huber_delta(residual).
    wpsi, curvature : (B, n)
        Weighted first derivative, and the weighted second derivative plus wpsi (the form that Hessians need).
    """
    psi = np.minimum(np.maximum(residual, -delta), delta)  # Huber's derivative; its value is psi * (r - psi / 2)
    inside = psi == residual
    if w is None:
        wpsi, curvature = psi, inside + psi
    else:
        wpsi = w * psi
        curvature = w * inside + wpsi
    return (wpsi * (residual - 0.5 * psi)).sum(1), wpsi, curvature


def _shares(theta, rows, z, has_e):
    """Residuals z - ln law (B, n), and each term's share of the law, a list of K arrays (B, n)."""
    x, k_terms = rows.x, rows.k
    u = [theta[:, k, None] - theta[:, k_terms + k, None] * x[k] for k in range(k_terms)]
    reference = theta[:, -1:] if has_e else u[0]
    total, terms = 1.0, []
    for k in range(k_terms):
        if k == 0 and not has_e:
            terms.append(1.0)
            continue
        terms.append(np.exp(np.minimum(u[k] - reference, 600.0)))
        total = total + terms[-1]
    residual = z - reference - np.log(total)
    inverse = 1.0 / total
    return residual, [term * inverse for term in terms]


def evaluate(theta, rows, z, w, delta, has_e):
    """
    Objective, gradient and exact Hessian of sum_i w_i Huber(z_i - ln law_i) for B problems at once.

    Parameters
    ----------
    theta : (B, P) array
        (c_1..c_K, s_1..s_K[, e]), the last one where has_e.
    rows : Regressors
    z : (n,) or (B, n) array
        ln of what is fitted.
    w : (B, n) array or None
    delta : float

    Returns
    -------
    f (B,), gradient (B, P), Hessian (B, P, P)

    Notes
    -----
    With p_k the share of term k and v_k = d u_k / d theta, the Hessian is
    sum_i h_i J_i J_i' - wpsi_i sum_k p_k v_k v_k'. Its sums over rows are matrix products with [1, x, x^2].
    """
    residual, shares = _shares(theta, rows, z, has_e)
    f, wpsi, curvature = huber(residual, w, delta)
    weighted = [curvature * share for share in shares]
    gradient, hess, left = _term_derivatives(theta.shape, rows, shares, weighted, wpsi)
    if has_e:
        _add_constant(gradient, hess, left, weighted, wpsi, curvature)
    return f, gradient, hess


def _term_derivatives(shape, rows, shares, hp, wpsi):
    """
    Gradient and Hessian in c and s, with hp[k] = h p_k.

    Returned beside them, for each term: sum h p_k p_e [1, x_k], by subtraction, since the shares add up to 1.
    """
    (b, p_dim), k_terms = shape, rows.k
    g, hess = np.empty((b, p_dim)), np.zeros((b, p_dim, p_dim))
    left = []
    for k in range(k_terms):
        # the term with itself
        powers, i, j = rows.powers[k], k, k_terms + k
        m, q = (wpsi * shares[k]) @ powers, (hp[k] * shares[k]) @ powers
        left.append(hp[k] @ powers[:, :2] - q[:, :2])
        g[:, i], g[:, j] = -m[:, 0], m[:, 1]
        q -= m
        hess[:, i, i], hess[:, j, j] = q[:, 0], q[:, 2]
        hess[:, i, j] = hess[:, j, i] = -q[:, 1]
        # the term with those before it
        for o in range(k):
            c, jo = (hp[k] * shares[o]) @ rows.cross[k, o], k_terms + o
            hess[:, o, k] = hess[:, k, o] = c[:, 0]
            hess[:, jo, j] = hess[:, j, jo] = c[:, 3]
            hess[:, o, j] = hess[:, j, o] = -c[:, 1]
            hess[:, k, jo] = hess[:, jo, k] = -c[:, 2]
            left[k] -= c[:, :2]
            left[o] -= c[:, [0, 2]]
    return g, hess, left


def _add_constant(gradient, hess, left, hp, wpsi, curvature):
    """Fill in the last row and column, those of e."""
    k_terms = len(hp)
    gradient[:, -1] = -wpsi.sum(1) - gradient[:, :k_terms].sum(1)
    own = curvature.sum(1)
    for k in range(k_terms):
        hess[:, k, -1] = hess[:, -1, k] = left[k][:, 0]
        hess[:, k_terms + k, -1] = hess[:, -1, k_terms + k] = -left[k][:, 1]
        own = own - hp[k].sum(1) - left[k][:, 0]  # ends as sum h p_e^2
    hess[:, -1, -1] = own + gradient[:, -1]


def jacobian(theta, x, has_e):
    """d ln law / d theta of each row at one theta (P,): (n, P)."""
    k_terms = len(x)
    u = theta[:k_terms, None] - theta[k_terms : 2 * k_terms, None] * x
    if has_e:
        u = np.vstack([u, np.full(x.shape[1], theta[-1])])
    p = np.exp(u - u.max(0))
    p /= p.sum(0)
    return np.vstack([p[:k_terms], -p[:k_terms] * x, p[k_terms:]]).T


# ----- minimiser -----


def newton(theta, objective, metric, scale, max_iter=200, tol=0.1 * GRADIENT_TOL):
    """
    Minimise B problems from B starts by damped Newton steps (Levenberg-Marquardt on the exact Hessian).

    A step solves (H + lambda * metric) step = -gradient and is kept only if the objective falls. Convergence is the
    gradient in the metric's own norm, relative to `scale`, nothing else.

    Parameters
    ----------
    theta : (B, P) array
        Starts.
    objective : callable
        (theta (b, P), which (b,) indices into the B problems) -> f (b,), gradient (b, P), Hessian (b, P, P).
    metric : (P, P) array
    scale : float
        Norm of the largest gradient that the objective can have.
    tol : float
        Relative norm of the gradient at which a problem is done.

    Returns
    -------
    theta (B, P), f (B,), gradient (B,) relative norm
    """
    theta = np.array(theta, float)
    inverse = np.linalg.inv(metric)

    def norm(g):
        return np.sqrt(np.maximum(((g @ inverse) * g).sum(1), 0.0)) / scale

    f, g, hess = objective(theta, np.arange(len(theta)))
    gn, lam = norm(g), np.full(len(theta), 1e-2)
    live = np.flatnonzero(gn > tol)
    for _ in range(max_iter):
        if not len(live):
            break
        # propose
        step = -np.linalg.solve(hess[live] + lam[live, None, None] * metric, g[live][..., None])[..., 0]
        slope = (step * g[live]).sum(1)
        predicted = -slope - 0.5 * (step * (hess[live] @ step[..., None])[..., 0]).sum(1)
        sound = (slope < 0) & (predicted > 0)
        lam[live[~sound]] = np.maximum(8 * lam[live[~sound]], 1e-3)
        at = live[sound]
        if len(at):
            # accept what falls, to within rounding
            new = theta[at] + step[sound]
            f1, g1, h1 = objective(new, at)
            gn1 = norm(g1)
            ratio = (f[at] - f1) / predicted[sound]
            rounding = np.abs(f1 - f[at]) <= 1e-12 * np.abs(f[at]) + 1e-300
            good = ((ratio > 1e-4) | (rounding & (gn1 < gn[at]))) & np.isfinite(f1)
            i = at[good]
            theta[i], f[i], g[i], hess[i], gn[i] = new[good], f1[good], g1[good], h1[good], gn1[good]
            # damp by how well the step was predicted
            shrink = np.where(ratio > 0.75, 0.125, np.where(ratio < 0.25, 2.0, 1.0))
            lam[at] = np.where(good, lam[at] * shrink, np.maximum(4 * lam[at], 1e-6))
        live = live[(gn[live] > tol) & (lam[live] < 1e12)]
    return theta, f, gn


def descend(theta, rows, z, w, delta, has_e, metric, max_iter=200):
    """
    newton() on evaluate(), for a small delta by way of larger ones: towards least absolute deviations Newton fails.

    The gradient is relative to the largest that Huber's bounded derivative allows.
    """
    size = max(16, CACHED // rows.x.shape[1])
    stages = [delta]
    while stages[-1] < 3e-4:
        stages.append(4 * stages[-1])
    for stage in stages[::-1]:
        scale = min(stage, float(np.std(z)) or 1.0) * np.sqrt(rows.x.shape[1])

        def objective(theta, which, stage=stage):
            parts = []
            for i in range(0, len(which), size):
                some = which[i : i + size]
                some_z = z if z.ndim == 1 else z[some]
                some_w = None if w is None else w[some]
                parts.append(evaluate(theta[i : i + size], rows, some_z, some_w, stage, has_e))
            return [np.concatenate(part) for part in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]

        theta, f, gn = newton(theta, objective, metric, scale, max_iter)
    return theta, f, gn


def grid_starts(x, z, exponents):
    """
    Variable projection: for fixed exponents the law is linear in its coefficients; solve them, in relative loss.

    x (K, n) centred, z (n,) ln loss. Returns (len(exponents)**K, 2K + 1) starts; coefficients that come out
    negative are put at 1% of the loss.
    """
    k_terms, n = x.shape
    s = np.stack(np.meshgrid(*[exponents] * k_terms, indexing="ij"), -1).reshape(-1, k_terms)  # (S, K)
    loss = np.exp(z)
    columns = [np.exp(-s[:, k, None] * x[k]) / loss for k in range(k_terms)]
    columns.append(np.broadcast_to(1 / loss, (len(s), n)))
    design = np.stack(columns, -1)  # (S, n, K + 1)
    gram = np.swapaxes(design, 1, 2) @ design
    gram = gram + 1e-9 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(k_terms + 1)
    coef = np.linalg.solve(gram, design.sum(1)[..., None])[..., 0]
    coef = np.log(np.maximum(coef, 0.01 * np.exp(z.min())))
    return np.concatenate([coef[:, :k_terms], s, coef[:, k_terms:]], 1)


def best_of(starts, x, z, w, delta, has_e, tries=None, patience=60):
    """
    All starts (or the best `tries` of them) minimised: theta, f, gradient, how many agree with the best.

    A start that has not arrived after `patience` steps is given up; the winner is polished until its gradient vanishes.
    """
    rows = Regressors(x)
    if tries is not None:
        f = evaluate(starts, rows, z, None, delta, has_e)[0]
        starts = starts[np.argsort(f)[:tries]]
    metric = np.eye(starts.shape[1]) * 1e-9 * x.shape[1]
    some = starts[:: max(1, len(starts) // 8)]
    for theta in some:
        j = jacobian(theta, x, has_e)
        metric += 0.1 * j.T @ j / len(some)
    all_w = None if w is None else np.broadcast_to(w, (len(starts), len(z)))
    theta, f, gn = descend(starts, rows, z, all_w, delta, has_e, metric, patience)
    i = int(np.nanargmin(f))
    if gn[i] > 0.1 * GRADIENT_TOL:
        one_w = None if w is None else w[None]
        polished = descend(theta[i : i + 1], rows, z, one_w, delta, has_e, metric)
        theta[i], f[i], gn[i] = polished[0][0], polished[1][0], polished[2][0]
    agree = f <= f[i] * (1 + AGREE) + 1e-15
    i = int(np.flatnonzero(agree)[np.argmin(gn[agree])])
    return theta[i], float(f[i]), float(gn[i]), int(agree.sum())


# ----- bootstrap -----


def resample_counts(rng, n, b):
    """Case bootstrap as counts: (b, n) float, rows summing to n."""
    draw = rng.integers(n, size=(b, n)) + np.arange(b)[:, None] * n
    return np.bincount(draw.ravel(), minlength=b * n).reshape(b, n).astype(float)


def resample_budget(n_rows, asked):
    """How many resamples fit the time budget: `asked` up to BOOT_ELEMENTS rows in all, at least 400."""
    return int(min(asked, max(400, BOOT_ELEMENTS // max(n_rows, 1))))
