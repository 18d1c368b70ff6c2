"""
A curve through few runs: Huber's loss of the residuals and weak priors on the parameters, all draws at once.

    >>> problem = Problem(law, z, mean, sd)        # law(theta (B, P)) -> values (B, R), derivatives (B, P, R)
    >>> theta, noise = problem.fit()
    >>> draws = problem.draws(theta, noise, 300, rng)
"""

import numpy as np

from isoflop.fit.huber import huber, newton, resample_counts

NOISE = 0.02  # scatter of z at first
LEAST_NOISE = 1e-4
FEW_ROWS = 60  # from here on draws resample the runs; below it their values are perturbed
MOVES = ((2, 1.0), (3, 1.0), (5, 1.5), (4, -1.5))  # starts beside the prior's mean: parameter, standard deviations


class Problem:
    """
    Minimises sum Huber_s(z - law) + s^2/2 sum ((theta - mean) / sd)^2, s the scatter of the runs, estimated twice.

    Parameters
    ----------
    law : callable
        theta (B, P) -> values (B, R) and derivatives (B, P, R).
    z : (R,) array
    mean, sd : (P,) arrays
        Of the priors.
    moves : pairs
        Of a parameter's index and standard deviations: one more start each.
    """

    def __init__(self, law, z, mean, sd, moves=MOVES):
        self.law, self.z, self.moves = law, z, moves
        self.mean, self.sd = np.asarray(mean, float), np.asarray(sd, float)

    def minimise(self, starts, noise, w=None, z=None, mean=None, max_iter=80, tol=1e-5):
        """theta (B, P) and objective (B,) from starts (B, P); w, z (B, R) and mean (B, P) of each problem."""
        z = self.z if z is None else z
        precision = (noise / self.sd) ** 2
        middle = self.mean if mean is None else mean

        def objective(theta, which):
            some_z = z if z.ndim == 1 else z[which]
            some_w = np.ones((len(theta), len(self.z))) if w is None else w[which]
            law, j = self.law(theta)
            off = theta - (middle if middle.ndim == 1 else middle[which])
            f, wpsi, curvature = huber(some_z - law, some_w, noise)
            hess = (j * (curvature - wpsi)[:, None]) @ j.swapaxes(1, 2) + np.diag(precision)
            gradient = -(j @ wpsi[..., None])[..., 0] + off * precision
            return f + 0.5 * (off**2 @ precision), gradient, hess

        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # wild steps are not accepted
            scale = noise * np.sqrt(len(self.z))
            return newton(starts, objective, np.diag(precision), scale, max_iter, tol)[:2]

    def starts(self):
        """A few starts about the prior's mean: (up to 5, P)."""
        moved = [self.mean]
        for k, size in self.moves:
            if k < len(self.mean):
                one = self.mean.copy()
                one[k] += size * self.sd[k]
                moved.append(one)
        return np.array(moved)

    def residuals(self, theta):
        """z - law of one theta (P,): (R,)."""
        return self.z - self.law(theta[None])[0][0]

    def fit(self, w=None, starts=None):
        """theta (P,) and the scatter of the runs about it, with weights w (R,) of 0 or 1."""
        noise, starts = NOISE, self.starts() if starts is None else starts
        rows = len(self.z) if w is None else int(w.sum())
        used = np.ones(len(self.z), bool) if w is None else w > 0
        for _ in range(3):
            all_w = None if w is None else np.broadcast_to(w, (len(starts), len(w)))
            found, f = self.minimise(starts, noise, all_w)
            theta = found[int(np.nanargmin(f))]
            off = np.abs(self.residuals(theta))[used]
            spare = max(rows - len(theta), 0.25 * rows)
            noise, starts = max(1.2533 * off.mean() * np.sqrt(rows / spare), LEAST_NOISE), theta[None]
        return theta, float(noise)

    def draws(self, theta, noise, count, rng):
        """(count, P) draws about theta: the priors' means drawn anew, the runs resampled or, where few, perturbed."""
        shape = count, len(self.z)
        mean, w, z = self.mean + self.sd * rng.standard_normal((count, len(theta))), None, None
        if shape[1] >= FEW_ROWS:
            w = resample_counts(rng, shape[1], count)
        else:
            z = self.z + noise * rng.standard_normal(shape)
        starts = np.repeat(theta[None], count, 0)
        found = self.minimise(starts, noise, w, z, mean, 30, 1e-3)[0]
        return found[np.isfinite(found).all(1)]
