"""
The coupled family of laws, L = E + [(A/N^alpha)^p + (B/D^beta)^p]^(1/p), and the laws nested in it.

Exact gradients and Hessians of the (weighted, Huber) loss of log residuals for many parameter vectors at once, for the
batched Newton minimiser of huber.py. p = 1 is Hoffmann's law; a large p is max(A/N^alpha, B/D^beta).

Parameters are centred: theta = (c_N, c_D, s_N, s_D, e, q) with x = ln N - mu_N, y = ln D - mu_D and

    ln L = ln(exp(e) + exp(v)),    v = ln(exp(p (c_N - s_N x)) + exp(p (c_D - s_D y))) / p,    p = exp(q)

so that s_N = alpha, s_D = beta, e = ln E, and c_N, c_D are the logs of both terms at the centre of the runs.
"""

from dataclasses import dataclass

import numpy as np

from isoflop.fit.huber import huber
from isoflop.laws import Law
from isoflop.options import UserError

NAMES = ("coupled", "hoffmann")
THETA = ("c_N", "c_D", "alpha", "beta", "ln_E", "ln_p")
NO_FLOOR = -40.0  # e of a law without E: exp(-40) of a nat


@dataclass(frozen=True)
class Family:
    """
    A law nested in the coupled one: theta = map @ phi + fixed, with phi the free parameters.

    Parameters
    ----------
    name : str
    map : (6, F) array
    fixed : (6,) array
    """

    name: str
    map: np.ndarray
    fixed: np.ndarray

    @property
    def free(self):
        return self.map.shape[1]

    def theta(self, phi):
        """(B, F) free parameters -> (B, 6)."""
        return phi @ self.map.T + self.fixed

    def phi(self, theta):
        """The free parameters nearest to theta (B, 6)."""
        return (theta - self.fixed) @ np.linalg.pinv(self.map).T


def family(name="coupled", floor=True, equal_exponents=False):
    """
    A Family by its name and constraints.

    Parameters
    ----------
    name : {"coupled", "hoffmann"}
        "hoffmann" fixes p = 1.
    floor : bool
        False fixes E = 0.
    equal_exponents : bool
        True fixes alpha = beta.

    Raises
    ------
    UserError
        Unknown name.
    """
    if name not in NAMES:
        raise UserError(f"law family {name!r} is not known; known: {', '.join(NAMES)}")
    columns, fixed, words = list(np.eye(6)), np.zeros(6), [name]
    if name == "hoffmann":
        del columns[5]
    if not floor:
        del columns[4]
        fixed[4] = NO_FLOOR
        words.append("E = 0")
    if equal_exponents:
        columns[2] = columns[2] + columns[3]
        del columns[3]
        words.append("alpha = beta")
    return Family(", ".join(words), np.stack(columns, 1), fixed)


class Runs:
    """Centred ln N and ln D of the runs, with the products that every Hessian needs."""

    def __init__(self, n, d, mu):
        self.mu = np.asarray(mu, float)
        self.x, self.y = np.log(n) - self.mu[0], np.log(d) - self.mu[1]
        one, x, y = np.ones_like(self.x), self.x, self.y
        self.powers = np.stack([one, x, y, x * x, x * y, y * y], 1)  # (R, 6)

    def __len__(self):
        return len(self.x)


def terms(theta, runs):
    """
    ln law of every run under B parameter vectors, and what its derivatives are made of.

    Returns
    -------
    ln_law : (B, R)
    share : (B, R)
        Of the reducible part in the law.
    pi : (B, R)
        Of the N term in the reducible part's sum of p-th powers.
    logit : (B, R)
        ln(pi / (1 - pi)).
    mixing : (B, R)
        d v / d ln p: minus the entropy of (pi, 1 - pi) over p.
    """
    p = np.exp(theta[:, 5, None])
    u_n = theta[:, 0, None] - theta[:, 2, None] * runs.x
    u_d = theta[:, 1, None] - theta[:, 3, None] * runs.y
    # both terms into v, with the larger one taken out
    logit = p * (u_n - u_d)
    size = np.abs(logit)
    small = np.exp(-size)
    both = 1.0 + small
    lift = np.log(both)  # p (v - larger)
    minor = small / both  # share of the smaller term
    pi = np.where(logit > 0, 1.0 - minor, minor)
    v = np.maximum(u_n, u_d) + lift / p
    mixing = (lift + minor * size) / -p
    # v and e into ln law
    over = v - theta[:, 4, None]
    small = np.exp(-np.abs(over))
    both = 1.0 + small
    ln_law = np.maximum(v, theta[:, 4, None]) + np.log(both)
    share = np.where(over > 0, 1.0, small) / both
    return ln_law, share, pi, logit, mixing


def evaluate(theta, runs, z, w, delta):
    """
    Objective, gradient and exact Hessian of sum_i w_i Huber(z_i - ln law_i) for B problems at once.

    Parameters
    ----------
    theta : (B, 6) array
    runs : Runs
    z : (R,) or (B, R) array
        ln loss.
    w : (B, R) array or None
    delta : float

    Returns
    -------
    f (B,), gradient (B, 6), Hessian (B, 6, 6)

    Notes
    -----
    With g = (pi, 1-pi, -pi x, -(1-pi) y, -1, h) for h = d v / d ln p, P the share of the reducible part, and
    m = (1, -1, -x, y, 0, l) for l = logit / p: J = P g + (0, 0, 0, 0, 1, 0), and the Hessian of ln law is
    P (1 - P) g g' + P (pi (1 - pi) p m m' - h q q') with q the unit vector of ln p.
    """
    ln_law, share, pi, logit, mixing = terms(theta, runs)
    f, wpsi, curvature = huber(z - ln_law, w, delta)
    p = np.exp(theta[:, 5, None])
    gradient = _gradient(runs, wpsi, share, pi, mixing)
    second = curvature - wpsi  # weighted second derivative of Huber's loss
    outer = share * (second * share - wpsi * (1.0 - share))
    hess = _outer_products(runs, outer, pi, mixing)
    _add_constant(hess, runs, second * share, pi, mixing)
    hess[:, 4, 4] += second.sum(1)
    _subtract_mixing(hess, runs, wpsi * share * pi * (1.0 - pi) * p, logit / p)
    hess[:, 5, 5] += (wpsi * share * mixing).sum(1)
    return f, gradient, hess


def _gradient(runs, wpsi, share, pi, mixing):
    part = wpsi * share
    m_n, m_d = (part * pi) @ runs.powers[:, :2], (part * (1.0 - pi)) @ runs.powers[:, [0, 2]]
    constant, mixed = (wpsi - part).sum(1), (part * mixing).sum(1)
    return np.stack([-m_n[:, 0], -m_d[:, 0], m_n[:, 1], m_d[:, 1], -constant, -mixed], 1)


def _outer_products(runs, a, pi, h):
    """sum_i a_i g_i g_i' (B, 6, 6)."""
    hess = np.zeros((len(a), 6, 6))
    a_n, a_d = a * pi, a * (1.0 - pi)
    nn, nd, dd = (v @ runs.powers for v in (a_n * pi, a_n - a_n * pi, a_d - a_n + a_n * pi))
    n1, d1 = (v @ runs.powers[:, :3] for v in (a_n, a_d))
    hn, hd = (v @ runs.powers[:, :3] for v in (a_n * h, a_d * h))
    rows = (
        (nn[:, 0], nd[:, 0], -nn[:, 1], -nd[:, 2], -n1[:, 0], hn[:, 0]),
        (dd[:, 0], -nd[:, 1], -dd[:, 2], -d1[:, 0], hd[:, 0]),
        (nn[:, 3], nd[:, 4], n1[:, 1], -hn[:, 1]),
        (dd[:, 5], d1[:, 2], -hd[:, 2]),
        (a.sum(1), -(a * h).sum(1)),
        ((a * h * h).sum(1),),
    )
    for i, row in enumerate(rows):
        for j, value in enumerate(row, start=i):
            hess[:, i, j] = hess[:, j, i] = value
    return hess


def _add_constant(hess, runs, a, pi, h):
    """Add sum_i a_i (g_i e' + e g_i') with e the unit vector of ln E."""
    n1, d1 = (a * pi) @ runs.powers[:, :2], (a * (1.0 - pi)) @ runs.powers[:, [0, 2]]
    total = a.sum(1)
    column = (n1[:, 0], d1[:, 0], -n1[:, 1], -d1[:, 1], -total, (a * h).sum(1))
    for i, value in enumerate(column):
        hess[:, i, 4] += value
        hess[:, 4, i] += value


def _subtract_mixing(hess, runs, b, tilt):
    """Subtract sum_i b_i m_i m_i'."""
    s, t = b @ runs.powers, (b * tilt) @ runs.powers[:, :3]
    rows = (
        (0, (s[:, 0], -s[:, 0], -s[:, 1], s[:, 2])),
        (1, (s[:, 0], s[:, 1], -s[:, 2])),
        (2, (s[:, 3], -s[:, 4])),
        (3, (s[:, 5],)),
    )
    for i, row in rows:
        for j, value in enumerate(row, start=i):
            hess[:, i, j] -= value
            if i != j:
                hess[:, j, i] -= value
    for i, value in enumerate((t[:, 0], -t[:, 0], -t[:, 1], t[:, 2])):
        hess[:, i, 5] -= value
        hess[:, 5, i] -= value
    hess[:, 5, 5] -= (b * tilt * tilt).sum(1)


def jacobian(theta, runs):
    """d ln law / d theta of each run at one theta (6,): (R, 6)."""
    _, share, pi, _, mixing = (v[0] for v in terms(theta[None], runs))
    other = 1.0 - pi
    columns = [share * pi, share * other, -share * pi * runs.x, -share * other * runs.y, 1.0 - share, share * mixing]
    return np.stack(columns, 1)


def law_of(theta, mu, scalar=False):
    """Centred (B, 6) parameters -> Law of arrays, or of floats for one row."""
    with np.errstate(over="ignore"):
        floor = np.where(theta[:, 4] <= NO_FLOOR, 0.0, np.exp(theta[:, 4]))
        a, b = np.exp(theta[:, 0] + theta[:, 2] * mu[0]), np.exp(theta[:, 1] + theta[:, 3] * mu[1])
        values = (floor, a, b, theta[:, 2], theta[:, 3])
        p = np.exp(theta[:, 5])
    if scalar:
        return Law(*(float(v[0]) for v in values), p=float(p[0]))
    return Law(*values, p=p)
