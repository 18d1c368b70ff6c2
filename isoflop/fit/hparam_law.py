"""
The best learning rate and batch of a model, from runs of equal (N, D) that differ in both.

    >>> found = fit_hparams(n, d, c, loss, lr, batch)
    >>> found.lr.at(1e9, 2e10), found.batch.at(1e9, 2e10)    # the best rate, the best batch

Per cell (one N, one D) ln loss is a quadratic in ln lr and ln B near its bottom. Which runs are near it the quadratic
itself says, not their own losses: choosing the lucky runs would bend it. Over cells ln lr* and ln B* are linear in
ln N and ln D, or in ln C; the form is chosen by leaving out each cell in turn.
"""

from dataclasses import dataclass, field

import numpy as np

from isoflop.options import UserError

BAND = 0.0075  # rise of ln loss above the bottom, up to which a quadratic is trusted: valleys are lopsided (LOG.md)
MOST_BAND = 0.1  # of runs whose scatter asks for more
D_TOL = 0.02  # relative steps of D within one cell: whole steps of different batches
LEAST_VALUES = 3  # distinct rates, and batches, that a cell needs
LEAST_RUNS = {1: 4, 2: 8}  # runs near the bottom, of a quadratic in so many variables
MORE_RUNS = {1: 5, 2: 12}  # so many are taken, however far they lie above the bottom
LEAST_CELLS = 3
LEAST_SIZES = 4  # three have two degrees of freedom: how much their cells err together can't be told
DRAWS = 1000
ROUNDS = 20  # of choosing the runs near the bottom
FAR = 4.0  # robust standard deviations from which a run is no part of the quadratic
SPREADS = 3.0  # the band, where losses scatter: so many robust standard deviations
LEAST_SPREAD = 0.002  # of ln loss, below which no run is called far
WIDEST = np.log(10.0)  # half of an optimum's interval from which it says nothing
CLOSE = 1.05  # forms whose held-out error is so near the least are equal: the one of fewest letters is taken
SETTINGS = ("rate", "batch")
FORMS = ("", "C", "D", "N", "ND")  # letters of the forms; "" is a constant


# ----- one cell -----


@dataclass
class Cell:
    """The runs of one (N, D) and their best setting; status "ok", or why there is none."""

    n: float
    d: float
    c: float
    runs: int
    rates: int
    batches: int
    rows: np.ndarray  # indices of its runs
    best: int  # of the run of lowest loss
    status: str = ""
    used: int = 0  # runs near the bottom
    x: np.ndarray | None = None  # (k,) ln lr* [, ln B*]
    ci95: np.ndarray | None = None  # (2, k)
    se: np.ndarray | None = None  # (k,)
    loss: float = np.nan  # at the optimum
    noise: float = np.nan  # scatter of ln loss about the quadratic
    curvature: np.ndarray | None = None  # (k, k) second derivatives of ln loss


def _design(u):
    """Columns 1, u_i, u_i u_j (j >= i) of points (..., k)."""
    k = u.shape[-1]
    columns = [np.ones(u.shape[:-1])] + [u[..., i] for i in range(k)]
    for i in range(k):
        columns += [u[..., i] * u[..., j] for j in range(i, k)]
    return np.stack(columns, -1)


def _bottom(beta, k):
    """Minimum (..., k) and second derivatives (..., k, k) of quadratics with coefficients (..., p)."""
    hessian = np.zeros((*beta.shape[:-1], k, k))
    at = k + 1
    for i in range(k):
        for j in range(i, k):
            hessian[..., i, j] += beta[..., at]
            hessian[..., j, i] += beta[..., at]
            at += 1
    singular = np.abs(np.linalg.det(hessian)) < 1e-12
    safe = np.where(singular[..., None, None], np.eye(k), hessian)
    minimum = -np.linalg.solve(safe, beta[..., 1 : k + 1, None])[..., 0]
    return np.where(singular[..., None], np.nan, minimum), hessian


def fit_cell(cell: Cell, x, y, rng):
    """
    Fill in a cell's optimum.

    Parameters
    ----------
    x : (R, k) array
        ln lr, or ln lr and ln B.
    y : (R,) array
        ln loss.
    """
    k = x.shape[1]
    centre = np.median(x, axis=0)
    features = _design(x - centre)
    taken = y <= np.sort(y)[min(len(y), max(len(y) // 2, MORE_RUNS[k])) - 1]
    for _ in range(ROUNDS):
        beta = np.linalg.lstsq(features[taken], y[taken], rcond=None)[0]
        residual = y - features @ beta
        share = max(taken.sum() - features.shape[1], 1) / taken.sum()
        spread = 1.4826 * np.median(np.abs(residual[taken])) / np.sqrt(share) + 1e-12
        minimum, hessian = _bottom(beta, k)
        inside = np.linalg.eigvalsh(hessian)[0] > 0
        lowest = (features @ beta)[taken].min()
        if inside:
            lowest = _design(minimum) @ beta
        height = features @ beta - lowest
        band = np.clip(SPREADS * spread, BAND, MOST_BAND)
        good = np.abs(residual) < FAR * max(spread, LEAST_SPREAD)
        enough = np.sort(height[good])[min(good.sum(), MORE_RUNS[k]) - 1]
        new = good & (height <= max(band, enough))
        if (new == taken).all() or new.sum() < LEAST_RUNS[k]:
            break
        taken = new
    cell.used, cell.status = int(taken.sum()), _unfit(taken, features, inside, x, y)
    if cell.status:
        return
    rows = features[taken]
    freedom = len(rows) - rows.shape[1]
    beta, residual = _solve(rows, y[taken])
    cell.noise = float(np.sqrt(residual @ residual / freedom))
    minimum, hessian = _bottom(beta, k)
    draws = beta + rng.multivariate_normal(np.zeros(len(beta)), np.linalg.inv(rows.T @ rows), DRAWS) * (
        cell.noise / np.sqrt(rng.chisquare(freedom, (DRAWS, 1)) / freedom)
    )
    drawn, _ = _bottom(draws, k)
    low, high = np.nanpercentile(drawn, (2.5, 97.5), axis=0)
    cell.x, cell.ci95 = minimum + centre, np.stack([low, high]) + centre
    cell.se = (high - low) / 3.92
    cell.loss, cell.curvature = float(np.exp(_design(minimum) @ beta)), hessian
    cell.status = _edge(cell, x, np.linalg.eigvalsh(hessian)[0] > 0)


def _solve(rows, y):
    beta = np.linalg.lstsq(rows, y, rcond=None)[0]
    return beta, y - rows @ beta


def _unfit(taken, features, inside, x, y):
    """Why the runs near the bottom give no quadratic, "" where they do."""
    k, lowest = x.shape[1], x[np.argmin(y)]
    if taken.sum() < LEAST_RUNS[k]:
        return f"{int(taken.sum())} runs near the bottom, fewer than {LEAST_RUNS[k]}"
    if np.linalg.matrix_rank(features[taken]) < features.shape[1]:
        return "the rates and batches near the bottom are no grid"
    if inside:
        return ""
    for i, name in enumerate(SETTINGS[:k]):
        if lowest[i] in (x[:, i].min(), x[:, i].max()):
            return f"edge: the run of lowest loss has the lowest or highest {name} tried"
    return "no minimum among the runs"


def _edge(cell, x, minimum):
    """Which end of what was tried the optimum lies at, or that it can't be told; else ok."""
    if not minimum:
        return "no minimum among the runs"
    for i, name in enumerate(SETTINGS[: x.shape[1]]):
        if cell.x[i] <= x[:, i].min():
            return f"edge: the best {name} is the lowest tried or below"
        if cell.x[i] >= x[:, i].max():
            return f"edge: the best {name} is the highest tried or above"
        if cell.se[i] * 1.96 > WIDEST:
            return f"the best {name} is known to no better than a factor of ten"
    return "ok"


# ----- over cells -----


@dataclass
class PowerForm:
    """ln y = ln k + sum of exponents x ln (N, D or C): one form with its held-out error (rms of ln y)."""

    letters: str
    k: float
    exponents: dict
    k_ci95: tuple
    ci95: dict  # exponent -> interval
    held_out: float
    spread: float  # rms of ln y of the cells themselves

    def at(self, n, d, c=None):
        """The value at N, D and C (6ND without)."""
        c = 6.0 * np.asarray(n, float) * np.asarray(d, float) if c is None else c
        values = {"N": n, "D": d, "C": c}
        out = self.k
        for letter, power in self.exponents.items():
            out = out * np.asarray(values[letter], float) ** power
        return out


def _features(letters, n, d, c):
    values = {"N": n, "D": d, "C": c}
    columns = [np.ones(len(n))]
    for letter in letters:
        columns.append(np.log(values[letter]))
    return np.stack(columns, 1)


def _weights(features, y, se):
    """1 / (se^2 + tau^2), tau the scatter of cells about the law beyond their own errors (Paule and Mandel 1982)."""
    freedom = len(y) - features.shape[1]
    se = np.maximum(se, np.median(se))  # of a dozen runs: the least errors are the most uncertain ones
    low, high = 0.0, float(np.var(y)) + 1e-12
    for _ in range(60):
        tau2 = 0.5 * (low + high)
        w = 1 / (se**2 + tau2 + 1e-12)
        root = np.sqrt(w)
        residual = (
            root * y - (root[:, None] * features) @ np.linalg.lstsq(root[:, None] * features, root * y, rcond=None)[0]
        )
        if residual @ residual > freedom:
            low = tau2
        else:
            high = tau2
    return 1 / (se**2 + 0.5 * (low + high) + 1e-12)


def _weighted(features, y, w):
    """Coefficients and their covariance without its scale."""
    covariance = np.linalg.pinv(features.T @ (w[:, None] * features))
    return covariance @ (features.T @ (w * y)), covariance


def _by_size(features, residual, w, covariance, n):
    """
    Standard errors (P,) where the cells of one N err together, and how many N there are; None below LEAST_SIZES.

    Notes
    -----
    Sandwich by sizes, each size's residuals divided by the root of what its own cells leave of them (CR2: Bell and
    McCaffrey 2002): a rate that is too high for one model is so at all of its D, which cells taken alone don't show.
    """
    sizes = np.unique(n)
    if len(sizes) < LEAST_SIZES:
        return None
    meat = np.zeros_like(covariance)
    for size in sizes:
        mine = n == size
        root = np.sqrt(w[mine])
        rows = root[:, None] * features[mine]
        left, axes = np.linalg.eigh(np.eye(len(rows)) - rows @ covariance @ rows.T)
        spread = np.where(left > 1e-6, 1.0 / np.sqrt(np.maximum(left, 1e-6)), 0.0)
        score = rows.T @ ((axes * spread) @ axes.T @ (root * residual[mine]))
        meat += np.outer(score, score)
    return np.sqrt(np.diag(covariance @ meat @ covariance)), len(sizes)


def fit_form(letters, n, d, c, y, se) -> PowerForm | None:
    """
    One form by weighted least squares; None where the cells can't tell its letters.

    Intervals by Student's t, the wider of two for each letter: cells that err one by one, and those of a size together.
    """
    from scipy.special import stdtrit  # scipy.stats takes seconds to load

    features = _features(letters, n, d, c)
    freedom = len(y) - features.shape[1]
    centred = features[:, 1:] - features[:, 1:].mean(0)
    if freedom < 1 or (letters and np.linalg.svd(centred, compute_uv=False)[-1] < 0.1):
        return None
    w = _weights(features, y, se)
    beta, covariance = _weighted(features, y, w)
    residual = y - features @ beta
    scale = (w * residual**2).sum() / freedom
    half = stdtrit(freedom, 0.975) * np.sqrt(scale * np.diag(covariance))
    together = _by_size(features, residual, w, covariance, n)
    if together is not None:
        errors, sizes = together
        half = np.maximum(half, stdtrit(sizes - 1, 0.975) * errors)
    held = []
    for i in range(len(y)):
        rest = np.arange(len(y)) != i
        without, _ = _weighted(features[rest], y[rest], w[rest])
        held.append(y[i] - features[i] @ without)
    held = float(np.sqrt(np.average(np.square(held), weights=w)))
    ends = [(float(b - h), float(b + h)) for b, h in zip(beta, half, strict=True)]
    return PowerForm(
        letters, float(np.exp(beta[0])), dict(zip(letters, beta[1:].tolist(), strict=True)),
        tuple(np.exp(ends[0]).tolist()), dict(zip(letters, ends[1:], strict=True)),
        held, float(np.sqrt(np.average(residual**2, weights=w))),
    )  # fmt: skip


def fit_forms(cells, i) -> list[PowerForm]:
    """All forms of a best setting (0: rate, 1: batch) over cells, the chosen one first."""
    n, d, c = (np.array([getattr(cell, name) for cell in cells]) for name in "ndc")
    y, se = np.array([cell.x[i] for cell in cells]), np.array([cell.se[i] for cell in cells])
    forms = []
    for letters in FORMS:
        form = fit_form(letters, n, d, c, y, se)
        if form is not None:
            forms.append(form)
    least = min(form.held_out for form in forms)
    close = [form for form in forms if form.held_out <= CLOSE * least]
    chosen = min(close, key=lambda form: (len(form.letters), form.held_out))
    forms.sort(key=lambda form: (form is not chosen, form.held_out))
    return forms


# ----- the whole -----


@dataclass
class HParamFit:
    """The law of the best rate (and batch), the cells it is made of, and what a miss costs."""

    cells: list
    lr_forms: list  # PowerForm, the chosen one first
    batch_forms: list  # none where every cell has one batch
    flat: dict = field(default_factory=dict)  # what is off -> rise of the loss (share), median over cells
    lr_of_batch: float = np.nan  # the best rate goes as (B / B*)^this
    held_out: list = field(default_factory=list)  # of each cell: rise of its loss at the setting that the others give
    held_out_at: list = field(default_factory=list)  # that setting, ln lr [and ln B]

    @property
    def lr(self):
        return self.lr_forms[0]

    @property
    def batch(self):
        return self.batch_forms[0] if self.batch_forms else None

    @property
    def ok(self):
        return [cell for cell in self.cells if cell.status == "ok"]


def cells_of(n, d) -> list[np.ndarray]:
    """Indices of the runs of each (N, D); D within D_TOL steps of each other is one."""
    order = np.lexsort((d, n))
    breaks = (np.diff(n[order]) != 0) | (np.diff(np.log(d[order])) > D_TOL)
    return np.split(order, np.flatnonzero(breaks) + 1)


def fit_hparams(n, d, c, loss, lr, batch=None, seed=0) -> HParamFit:
    """
    The law of the best learning rate and batch.

    Parameters
    ----------
    n, d, c, loss : (R,) arrays
        Parameters, tokens, FLOPs, loss in nats per token.
    lr, batch : (R,) arrays
        Peak rate, and tokens per step (any unit: the law is in it). Without a batch the rate alone is fitted.

    Raises
    ------
    UserError
        The runs determine no law of the rate: one rate a cell, edges everywhere, too few cells.

    References
    ----------
    Li et al. 2025, Predictable Scale: Part I (Step Law), arXiv:2503.04715. Bi et al. 2024, DeepSeek LLM,
    arXiv:2401.02954: powers of C alone.
    """
    rng = np.random.default_rng(seed)
    groups = cells_of(n, d)
    two = batch is not None and any(len(np.unique(batch[rows])) >= LEAST_VALUES for rows in groups)
    cells = []
    for rows in groups:
        rates, batches = len(np.unique(lr[rows])), 1 if batch is None else len(np.unique(batch[rows]))
        best = rows[np.argmin(loss[rows])]
        cell = Cell(float(n[best]), float(d[best]), float(c[best]), len(rows), rates, batches, rows, int(best))
        cells.append(cell)
        if rates < LEAST_VALUES or (two and batches < LEAST_VALUES):
            cell.status = f"{rates} rates and {batches} batches, fewer than {LEAST_VALUES}"
            continue
        if not two and batches > 1:  # two batches are no curve: that of the lowest loss
            rows = rows[batch[rows] == batch[best]]
        if len(rows) < LEAST_RUNS[1 + two]:
            cell.status = f"{len(rows)} runs, fewer than {LEAST_RUNS[1 + two]}"
            continue
        x = np.log(lr[rows])[:, None]
        if two:
            x = np.stack([np.log(lr[rows]), np.log(batch[rows])], 1)
        fit_cell(cell, x, np.log(loss[rows]), rng)
    _refuse(cells)
    ok = [cell for cell in cells if cell.status == "ok"]
    found = HParamFit(cells, fit_forms(ok, 0), fit_forms(ok, 1) if two else [])
    _flatness(found)
    found.held_out, found.held_out_at = _held_out(found)
    return found


def _refuse(cells):
    """UserError in one line where no law can be had."""
    most = max(cell.rates for cell in cells)
    if most < LEAST_VALUES:
        raise UserError(
            f"--law_of hparams: at most {most} learning rates at one (N, D), {LEAST_VALUES} are needed; repeat some "
            "(N, D) at other rates (sweep.py --lrs)"
        )
    ok = [cell for cell in cells if cell.status == "ok"]
    if len(ok) >= LEAST_CELLS:
        return
    edges = [cell.status for cell in cells if cell.status.startswith("edge")]
    if edges and len(edges) >= len(cells) - len(ok):
        raise UserError(
            f"--law_of hparams: {len(edges)} of {len(cells)} (N, D) have their best setting at an edge "
            f"({edges[0].removeprefix('edge: ')}); add runs beyond it"
        )
    why = next((cell.status for cell in cells if cell.status != "ok"), f"there are {len(cells)}")
    raise UserError(
        f"--law_of hparams: {len(ok)} (N, D) with a best setting, {LEAST_CELLS} are needed ({why}); "
        "sweep rates and batches at more sizes or token counts"
    )


def _flatness(found):
    """What being off by a factor of 2 costs: half of the curvature times (ln 2)^2."""
    curvature = np.array([cell.curvature for cell in found.ok])
    square = 0.5 * np.log(2.0) ** 2
    found.flat["lr 2x off"] = float(np.median(square * curvature[:, 0, 0]))
    if found.batch is None:
        return
    across = curvature[:, 0, 1]
    found.flat["batch 2x off"] = float(np.median(square * curvature[:, 1, 1]))
    along = curvature[:, 1, 1] - across**2 / curvature[:, 0, 0]
    found.flat["batch 2x off, lr moved with it"] = float(np.median(square * along))
    found.lr_of_batch = float(np.median(-across / curvature[:, 0, 0]))


def _held_out(found):
    """The loss of each cell at the setting that the others' forms give, over its least, minus 1; these settings."""
    ok, out, at = found.ok, [], []
    for i, cell in enumerate(ok):
        rest = ok[:i] + ok[i + 1 :]
        n, d, c = (np.array([getattr(one, name) for one in rest]) for name in "ndc")
        x = []
        for j, form in enumerate([found.lr, found.batch][: len(cell.x)]):
            y, se = np.array([one.x[j] for one in rest]), np.array([one.se[j] for one in rest])
            features = _features(form.letters, n, d, c)
            beta, _ = _weighted(features, y, _weights(features, y, se))
            here = _features(form.letters, np.array([cell.n]), np.array([cell.d]), np.array([cell.c]))
            x.append(float((here @ beta)[0]))
        at.append(np.array(x))
        out.append(rise(cell, at[-1] - cell.x))
    return out, at


def rise(cell: Cell, off) -> float:
    """Loss over that of the cell's optimum, minus 1, `off` (k,) from it in ln lr [and ln B], by its quadratic."""
    return float(np.expm1(0.5 * off @ cell.curvature @ off))
