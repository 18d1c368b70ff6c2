"""
The laws: loss surfaces, their closed-form optima, what the literature has published, and runs drawn from them.

Only arithmetic and numpy; nothing here reads a file or fits anything.

    python -c "from isoflop import laws; print(laws.PUBLISHED['hoffmann'].optimum(1e21))"

N is a number of parameters, D a number of training tokens, C training FLOPs, L a loss in nats per token. A law says
which N it was fitted with; the optimum of a law fitted in one convention is no answer in another.
"""

from dataclasses import dataclass, replace

import numpy as np

from isoflop.options import UserError

LETTERS = ("E", "A", "B", "alpha", "beta")
ABOVE_UNIFORM = 0.1  # nats per token above ln V: a short run on text that is noise ends within it, and is no failure
PF_DAY = 1e15 * 86400.0  # FLOPs in one petaflop/s-day, the unit of compute in Kaplan et al. 2020


@dataclass(frozen=True)
class Cost:
    """
    Training compute of a run, C = kappa * N**(1 + rho) * D FLOPs.

    The usual C = 6ND is kappa 6 and rho 0. Where C counts weights that N leaves out (or attention), their ratio drifts
    with size; a power of N keeps every optimum below in closed form.
    """

    kappa: float = 6.0
    rho: float = 0.0

    def flops(self, n, d):
        return self.kappa * np.asarray(n, float) ** (1.0 + self.rho) * np.asarray(d, float)

    def tokens(self, n, c):
        """D that spends C at size N."""
        return np.asarray(c, float) / (self.kappa * np.asarray(n, float) ** (1.0 + self.rho))


SIX_ND = Cost()


def cost_of(n, d, c):
    """The Cost of runs whose C is not 6ND: ln(C / ND) regressed on ln N; SIX_ND where all are within 1%."""
    ln_n, ln_r = np.log(n), np.log(c) - np.log(n) - np.log(d)
    if np.abs(ln_r - np.log(6.0)).max() < 0.01:
        return SIX_ND
    if np.ptp(ln_n) < 0.1:
        return Cost(float(np.exp(ln_r.mean())))
    rho, k = np.polyfit(ln_n, ln_r, 1)
    return Cost(float(np.exp(k)), float(rho))


@dataclass(frozen=True)
class Law:
    """
    L(N, D) = E + [(A / N**alpha)**p + (B / D**beta)**p]**(1/p).

    p = 1 is Hoffmann's law (Hoffmann et al. 2022, eq. 2); other p couple the two terms. Fields may be numpy arrays of
    one shape (bootstrap draws); every method then broadcasts over them.

    Parameters
    ----------
    E, A, B, alpha, beta : float or array
        Nats per token; A and B carry the units of N**alpha and D**beta.
    convention : str
        Which N it was fitted with.
    source : str
        Where the numbers come from.
    p : float or array
        Coupling of the terms: the larger, the nearer is the reducible loss to max(A/N^alpha, B/D^beta).

    Notes
    -----
    The reducible loss is a monotone function of A^p / N^(alpha p) + B^p / D^(beta p), so every closed form is
    Hoffmann's with A^p, B^p, alpha p, beta p; the exponents a and b do not depend on p.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    convention: str = ""
    source: str = ""
    p: float = 1.0

    @property
    def params(self):
        """The fitted letters: E, A, B, alpha, beta, and p unless the law is Hoffmann's."""
        values = {k: getattr(self, k) for k in LETTERS}
        if not self._hoffmann:
            values["p"] = self.p
        return values

    @property
    def _hoffmann(self):
        return np.ndim(self.p) == 0 and self.p == 1.0

    def each(self, f):
        """The law with f applied to every letter: law.each(lambda v: v[:, None]) for draws against many runs."""
        return replace(self, **{k: f(v) for k, v in self.params.items()})

    def loss(self, n, d):
        """Loss in nats at size n (parameters) and d (tokens)."""
        term_n, term_d = self.A * np.asarray(n, float) ** -self.alpha, self.B * np.asarray(d, float) ** -self.beta
        if self._hoffmann:
            return self.E + term_n + term_d
        larger = np.maximum(term_n, term_d)  # taken out, so that a power of a small term can't underflow
        smaller = np.minimum(term_n, term_d)
        return self.E + larger * (1.0 + (smaller / larger) ** self.p) ** (1.0 / self.p)

    def _tilt(self, q):
        """(1/p - 1) ln(alpha / (q beta)): what p adds to ln of the ratio of the terms at the optimum; 0 at p = 1."""
        return (1.0 / self.p - 1.0) * (np.log(self.alpha) - np.log(q * self.beta))

    def exponents(self, cost=SIX_ND):
        """(a, b) of N_opt ~ C**a, D_opt ~ C**b; a = beta / (alpha + beta) when C = 6ND (Hoffmann et al., eq. 4)."""
        a = self.beta / (self.alpha + self.beta * (1.0 + cost.rho))
        return a, 1.0 - (1.0 + cost.rho) * a

    def optimum(self, c, cost=SIX_ND):
        """
        The N and D of least loss at compute c.

        Parameters
        ----------
        c : float or array
            FLOPs.

        Returns
        -------
        n, d : arrays
            Minimiser of loss(N, D) under cost.flops(N, D) = c: with q = 1 + rho,
            N**(alpha + q beta) = (alpha / (q beta))**(1/p) * A / B * (c / kappa)**beta.
        """
        q = 1.0 + cost.rho
        ln_ratio = np.log(self.alpha * self.A) - np.log(q * self.beta * self.B) + self._tilt(q)
        n = np.exp((ln_ratio + self.beta * np.log(c / cost.kappa)) / (self.alpha + q * self.beta))
        return n, cost.tokens(n, c)

    def frontier_loss(self, c, cost=SIX_ND):
        """Least loss at compute c (FLOPs), in nats."""
        return self.loss(*self.optimum(c, cost))

    def tokens_for(self, n, cost=SIX_ND):
        """D_opt of a model of n parameters: the D at whose compute n is the optimum (Chinchilla in reverse)."""
        q = 1.0 + cost.rho
        n = np.asarray(n, float)
        ln_ratio = np.log(q * self.beta * self.B) - np.log(self.alpha * self.A) - self._tilt(q)
        return np.exp((ln_ratio + self.alpha * np.log(n)) / self.beta)

    def tokens_to_reach(self, n, loss):
        """D at which n parameters reach `loss` (nats); inf where they never do."""
        gap = np.asarray(loss, float) - self.E
        term_n = self.A * np.asarray(n, float) ** -self.alpha
        with np.errstate(divide="ignore", invalid="ignore"):
            term_d = gap - term_n if self._hoffmann else gap * (1.0 - (term_n / gap) ** self.p) ** (1.0 / self.p)
            return np.where((gap > term_n) & (gap > 0), (self.B / term_d) ** (1.0 / self.beta), np.inf)

    def compute_for(self, loss, cost=SIX_ND):
        """
        Compute at which the frontier reaches `loss`; inf where loss <= E.

        On the frontier both terms are powers of C with one exponent g = alpha a, so L - E = (L(1) - E) * C**-g.
        """
        a, _ = self.exponents(cost)
        g = self.alpha * a
        excess = self.frontier_loss(1.0, cost) - self.E
        gap = np.asarray(loss, float) - self.E
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.where(gap > 0, (excess / np.where(gap > 0, gap, 1.0)) ** (1.0 / g), np.inf)


@dataclass(frozen=True)
class KaplanLaw:
    """
    L(N, D) = ((Nc / N)**(alpha_N / alpha_D) + Dc / D)**alpha_D (Kaplan et al. 2020, eq. 1.5), no irreducible loss.

    The paper gives its compute-optimal sizes as separate power laws of C_min (figure 14, table 6), which are
    the published answer and are what `optimum` returns: n_coef * (C / PF-day)**n_exp, with D = C / 6N.
    """

    Nc: float
    alpha_N: float
    Dc: float
    alpha_D: float
    n_coef: float
    n_exp: float
    convention: str = ""
    source: str = ""

    def loss(self, n, d):
        n, d = np.asarray(n, float), np.asarray(d, float)
        return ((self.Nc / n) ** (self.alpha_N / self.alpha_D) + self.Dc / d) ** self.alpha_D

    def exponents(self, cost=SIX_ND):
        return self.n_exp, 1.0 - self.n_exp

    def optimum(self, c, cost=SIX_ND):
        n = self.n_coef * (np.asarray(c, float) / PF_DAY) ** self.n_exp
        return n, SIX_ND.tokens(n, c)

    def frontier_loss(self, c, cost=SIX_ND):
        return self.loss(*self.optimum(c))

    def tokens_for(self, n, cost=SIX_ND):
        c = PF_DAY * (np.asarray(n, float) / self.n_coef) ** (1.0 / self.n_exp)
        return SIX_ND.tokens(n, c)

    def tokens_to_reach(self, n, loss):
        """D at which n parameters reach `loss` (nats); inf where they never do."""
        with np.errstate(divide="ignore", invalid="ignore"):
            gap = loss ** (1.0 / self.alpha_D) - (self.Nc / np.asarray(n, float)) ** (self.alpha_N / self.alpha_D)
            return np.where(gap > 0, self.Dc / gap, np.inf)

    def compute_for(self, loss, cost=SIX_ND):
        """Compute at which its own frontier reaches `loss`, by bisection in ln C (the frontier falls monotonically)."""
        loss = np.atleast_1d(np.asarray(loss, float))
        lo, hi = np.full(loss.shape, np.log(1e6)), np.full(loss.shape, np.log(1e40))
        for _ in range(100):
            mid = 0.5 * (lo + hi)
            above = self.frontier_loss(np.exp(mid)) > loss
            lo, hi = np.where(above, mid, lo), np.where(above, hi, mid)
        return np.exp(0.5 * (lo + hi))


# What has been published. Losses are not comparable across data and tokenizers; the optima are what one compares.
PUBLISHED = {
    "hoffmann": Law(
        1.69,
        406.4,
        410.7,
        0.34,
        0.28,
        "total, with embeddings",
        "Hoffmann et al. 2022, arXiv 2203.15556, eq. 10 (rounded)",
    ),
    "hoffmann_unrounded": Law(
        float(np.exp(0.5267228)),
        float(np.exp(6.0073404)),
        float(np.exp(6.0179186)),
        0.33917084,
        0.2849083,
        "total, with embeddings",
        "Hoffmann et al. 2022: digits in the TeX source of arXiv 2203.15556, quoted by Besiroglu et al. 2024",
    ),
    "besiroglu": Law(
        1.8169,
        482.01,
        2085.43,
        0.3478,
        0.3658,
        "total, with embeddings",
        "Besiroglu et al. 2024, arXiv 2404.10102, table 1: Hoffmann's figure 4 refitted",
    ),
    "muennighoff": Law(
        float(np.exp(0.6254804)),
        float(np.exp(6.255414)),
        float(np.exp(7.3049974)),
        0.3526596,
        0.3526596,
        "total, on C4",
        "Muennighoff et al. 2023, arXiv 2305.16264: 1.87 + 521/N^.353 + 1488/D^.353; digits from the authors' code",
    ),
    "kaplan": KaplanLaw(
        6.4e13,
        0.076,
        1.8e13,
        0.103,
        1.3e9,
        0.73,
        "non-embedding",
        "Kaplan et al. 2020, arXiv 2001.08361, table 2 (joint fit), figure 14 (N_opt = 1.3e9 * C_min**0.73)",
    ),
}


# What each published surface was fitted to: (least, most) N and D of its runs; None where the paper does not say.
RANGES = {
    "hoffmann": {"N": (70e6, 16e9), "D": (5e9, 500e9)},  # abstract
    "hoffmann_unrounded": {"N": (70e6, 16e9), "D": (5e9, 500e9)},
    "besiroglu": {"N": (70e6, 16e9), "D": (5e9, 500e9)},  # the same runs
    "muennighoff": {"N": (None, 9e9), "D": (None, 900e9)},  # abstract
    "kaplan": {"N": (768, 1.5e9), "D": (22e6, 23e9)},  # section 1.1: non-embedding N
}

# Hoffmann et al. 2022, table A3, approach 2 (isoFLOP minima): N, and the D that it is the best size for.
CHINCHILLA_TABLE = (
    (400e6, 7.7e9), (1e9, 20.0e9), (10e9, 219.5e9), (67e9, 1.7e12), (175e9, 4.3e12), (280e9, 7.1e12), (520e9, 13.4e12),
    (1e12, 26.5e12), (10e12, 292.0e12),
)  # fmt: skip


def chinchilla_tokens(n):
    """D for a model of n parameters by CHINCHILLA_TABLE, between its rows straight in ln N and ln D; NaN beyond."""
    ln_n, ln_d = np.log(np.array(CHINCHILLA_TABLE)).T
    return np.exp(np.interp(np.log(n), ln_n, ln_d, np.nan, np.nan))


# Repeated data, Muennighoff et al. 2023, arXiv 2305.16264, section 3 (digits from the authors' code).
R_D, R_N = 15.387756, 5.309743


def effective_tokens(tokens, unique):
    """
    Worth of `tokens` tokens of which `unique` are different, in tokens that are all different.

    U + U R* (1 - exp(-R / R*)) with R = tokens / unique - 1 repetitions and R* = 15.39: each epoch is worth a little
    less than the one before, and all repetitions together at most 15.39 times the text (their equation 5).
    """
    tokens, unique = np.asarray(tokens, float), np.minimum(unique, tokens)
    return unique + unique * R_D * -np.expm1(-(tokens / unique - 1.0) / R_D)


def repeated_loss(n, tokens, unique, law=None):
    """
    Loss of n parameters on `tokens` tokens of which `unique` are different (their equation 6).

    Parameters beyond the optimum of the unique text lose worth in the same way, with R* = 5.31. The law is theirs:
    both constants were fitted with it.
    """
    law = law or PUBLISHED["muennighoff"]
    unique = np.minimum(unique, tokens)
    ln_ratio = np.log(law.alpha * law.A / (law.beta * law.B) * unique**law.beta) + law._tilt(1.0)
    useful = np.minimum(n, np.exp(ln_ratio / law.alpha))
    excess = useful + useful * R_N * -np.expm1(-(n / useful - 1.0) / R_N)
    return law.loss(excess, effective_tokens(tokens, unique))


def tokens_to_reach(law, n, loss):
    """D at which n parameters reach `loss` under a law; inf where they never do."""
    return law.tokens_to_reach(n, loss)


def lifetime_optimum(law, loss, inference):
    """
    The N and D that reach `loss` for the least 6 N D + 2 N D_inference (Sardana et al. 2023, arXiv 2401.00448, eq. 2).

    Parameters
    ----------
    loss : float
        Nats; UserError where no model reaches it under this law.
    inference : float
        Tokens that the model will read and write in its life.

    Returns
    -------
    n, d, flops : floats
    """
    lo, hi = np.log(1e3), np.log(1e18)
    for _ in range(4):  # a grid of 2,000 sizes, four times finer about the best: N to 1e-9
        ln_n = np.linspace(lo, hi, 2000)
        d = tokens_to_reach(law, np.exp(ln_n), loss)
        flops = np.exp(ln_n) * (6.0 * d + 2.0 * inference)
        best = int(np.argmin(flops))
        if not np.isfinite(flops[best]):
            raise UserError(f"no model reaches a loss of {loss:g} under this law")
        lo, hi = ln_n[max(0, best - 2)], ln_n[min(len(ln_n) - 1, best + 2)]
    return float(np.exp(ln_n[best])), float(d[best]), float(flops[best])


def highest_loss(vocab_size):
    """
    The loss (nats per token) above which a run is no result of training: ln V of a uniform guess, and ABOVE_UNIFORM.

    Not the unigram entropy, though that is lower (5.34 for the embedded text, ln V 6.24): honest runs of few steps end
    between the two. At the default rates those of 5 to 50 steps had losses of 5.46 to 6.17 (LOG.md, 2026-11-26).
    vocab_size may be an array.
    """
    return np.log(vocab_size) + ABOVE_UNIFORM


OTHER_NAMES = {"chinchilla": "hoffmann", "epoch": "besiroglu"}


def published_name(text: str) -> str:
    """A law's key in PUBLISHED, where `text` is another name of it; any other text as it is."""
    return OTHER_NAMES.get(text.lower(), text)


def parse_law(text):
    """
    A law from its published name, or from 'E=1.69,A=406.4,B=410.7,alpha=0.34,beta=0.28' (and p=.. for a coupled one).

    Raises
    ------
    UserError
        Unknown name (lists the known ones), missing or unknown letter, or a value that is not a positive number.
    """
    if "=" not in text:
        text = published_name(text)
        if text not in PUBLISHED:
            known = f"{', '.join(PUBLISHED)}, or E=..,A=..,B=..,alpha=..,beta=.. (p=.. for a coupled law)"
            raise UserError(f"law {text!r} is not known; known: {known}")
        return PUBLISHED[text]
    values = {}
    for part in text.split(","):
        key, _, value = (s.strip() for s in part.partition("="))
        if key not in (*LETTERS, "p"):
            raise UserError(f"law {text!r}: {key!r} is not one of {', '.join(LETTERS)}, p")
        try:
            values[key] = float(value)
        except ValueError:
            raise UserError(f"law {text!r}: {key}={value!r} is not a number") from None
        lowest_ok = values[key] > 0 or (key == "E" and values[key] == 0)
        if not lowest_ok or not np.isfinite(values[key]):
            raise UserError(f"law {text!r}: {key} must be positive and finite")
    missing = [k for k in LETTERS if k not in values]
    if missing:
        raise UserError(f"law {text!r}: {', '.join(missing)} missing")
    return Law(**values, convention="as given", source="given on the command line")


def isoflop_grid(law, budgets, n_sizes=9, span=16.0, cost=SIX_ND):
    """
    Sizes for a sweep: n_sizes per budget, log-spaced over a factor `span` about the law's own optimum.

    Returns
    -------
    n, d, c : (len(budgets) * n_sizes,) arrays
    """
    budgets = np.asarray(budgets, float)
    steps = np.exp(np.linspace(-0.5, 0.5, n_sizes) * np.log(span))
    n = np.concatenate([law.optimum(c, cost)[0] * steps for c in budgets])
    c = np.repeat(budgets, n_sizes)
    return n, cost.tokens(n, c), c


def simulate(law, n, d, noise=0.0, seed=0):
    """
    Losses of runs drawn from a law: law.loss(n, d) * exp(noise * standard normal).

    Parameters
    ----------
    n, d : arrays
        Parameters and tokens of each run.
    noise : float
        Standard deviation of ln L, run to run (0.005 is a typical seed-to-seed plus schedule spread of small runs).
    seed : int

    Returns
    -------
    array of losses in nats
    """
    loss = law.loss(n, d)
    return loss * np.exp(noise * np.random.default_rng(seed).standard_normal(loss.shape)) if noise else loss
