"""
The warnings and refusals of a fit for people: those of one reason in one line. fit.json has each for itself.

    >>> warned, refused = notes_of(result)
"""

from isoflop.fit.result import METHODS


def notes_of(result):
    """Warnings and refusals as two lists of (method, code, message)."""
    warned = []
    for method in ("input", *METHODS):
        for warning in (result.get(method) or {}).get("warnings") or []:
            warned.append((method, warning["code"], warning["message"]))
    refused = []
    for refusal in result.get("refusals") or []:
        refused.append((refusal["method"], refusal["code"], refusal["message"]))
    return warned, _in_few_words(refused, (result.get("input") or {}).get("rows_used"))


TAKES = {  # method, as refused -> what it takes
    "parametric": "Hoffmann's law fitted to them alone takes 6, and 15 for a useful interval",
    "isoflop": "exponents of isoFLOP minima 4 sizes at each of 2 budgets",
    "envelope": "an envelope training curves",
    "power laws": "a law of one variable 3 points, 4 with E",
}
POWER_LAWS = {"compute_law": "C", "kaplan.L_N": "N", "kaplan.L_D": "D"}


def _in_few_words(refused, rows):
    """The refusals with those together that have one reason: too few runs for any method, points for any power law."""
    laws, others = {}, []
    for method, code, text in refused:
        letter = POWER_LAWS.get(method.rpartition(".")[0])
        if letter and code == "too_few_points":
            laws.setdefault(letter, []).append(text.partition(" ")[0])
        else:
            others.append((method, code, text))
    if len(refused) - len(others) == 1:  # it says all there is
        others = list(refused)
    elif laws:
        said = []
        for letter, counts in laws.items():  # with E and without E were refused, or with E alone
            said.append(f"L({letter}) has {counts[0]}" + (", enough without E" if len(counts) == 1 else ""))
        text = f"too few losses at different x for y = E + k x^-g (4) or y = k x^-g (3): {'; '.join(said)}"
        others.append(("power laws", "too_few_points", text))
    if ("parametric", "too_few_rows") not in [one[:2] for one in others]:
        return others
    takes = [TAKES[one[0]] for one in others if one[0] in TAKES]
    text = f"{rows} runs are too few: {'; '.join(takes)}"
    return [("other methods", "too_few_rows", text), *[one for one in others if one[0] not in TAKES]]
