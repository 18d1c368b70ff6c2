"""
JSON, and dicts as Python prints them -> flat rows: by row or column, nested or wrapped, and cells that hold an object.

    >>> json_rows('{"meta": 1, "runs": [{"config": {"lr": 1}}, {"config": {"lr": 2}}]}', "runs.json")
    [{'config.lr': 1}, {'config.lr': 2}]
"""

import ast
import itertools
import re

from isoflop.files import parse_json
from isoflop.fit.names import is_known
from isoflop.options import UserError


def json_rows(text, path):
    """The rows of a JSON text as flat dicts: objects in a list or lines, by column, by name, split, or wrapped."""
    try:
        data = parse_json(text)
    except (ValueError, RecursionError):
        data = python_literal(text)
        if data is None:
            data = _lines(text, path)
    rows = _objects(data)
    if not rows:
        raise UserError(f"{path}: expected a JSON list of objects, one per run")
    return [flat(row) for row in rows]


def _lines(text, path):
    """The objects of JSON lines; UserError names the line that is none."""
    out = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            out.append(parse_json(line))
        except (ValueError, RecursionError) as error:
            where = f": {error}" if number == 1 else f" in line {number} ({error}); mend or remove that line"
            raise UserError(f"{path} starts like JSON but cannot be parsed{where}") from None
    return out


def python_literal(text):
    """What a dict or list as Python prints it holds ({'n_params': 1, 'loss': nan}); None for another text."""
    try:
        return ast.literal_eval(re.sub(r"(?<=[:,\[ ])\s*(nan|inf|-inf)\b", " None", text))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _objects(data):
    """The list of objects in JSON data of any usual shape, or None."""
    if isinstance(data, list):
        if len(data) > 1 and all(isinstance(row, list) and len(row) == len(data[0]) for row in data):
            if all(isinstance(name, str) for name in data[0]):  # a header, then rows
                return [dict(zip(data[0], row, strict=True)) for row in data[1:]]
        return data if data and all(isinstance(one, dict) for one in data) else None
    if not isinstance(data, dict) or not data:
        return None
    if isinstance(data.get("columns"), list) and isinstance(data.get("data"), list):  # split, or a table of W&B
        names = [str(name) for name in data["columns"]]
        rows = [dict(zip(names, row, strict=False)) for row in data["data"] if isinstance(row, list)]
        return rows or None
    values = list(data.values())
    if all(isinstance(one, dict) and one for one in values) and len({tuple(one) for one in values}) == 1:
        found = _of_equal_objects(data)
        if found:
            return found
    if all(isinstance(one, list) for one in values) and len({len(one) for one in values}) == 1 and len(values) > 1:
        return [dict(zip(data, row, strict=True)) for row in zip(*values, strict=True)]
    inner = [one for one in map(_objects, values) if one and len(one) > 1]
    if inner:  # {"meta": .., "runs": [..]}: the longest list
        return max(inner, key=len)
    return [data]


def _of_equal_objects(data):
    """Rows of {column: {row: cell}}, or of {row: {column: cell}} where the inner keys are names."""
    inner = list(next(iter(data.values())))
    if all(re.fullmatch(r"\d+", key) for key in inner) or not all(isinstance(one, str) for one in inner):
        return [{name: cells[row] for name, cells in data.items()} for row in inner]
    if len(data) == 1:
        return None
    if sum(map(is_known, data)) > sum(map(is_known, inner)):
        return [{"name": row, **{name: cells[row] for name, cells in data.items()}} for row in inner]
    return [{"name": name, **cells} for name, cells in data.items()]


def flat(row, prefix=""):
    """A nested object with dotted keys: {"config": {"lr": 1}} is {"config.lr": 1}."""
    out = {}
    for key, value in row.items():
        if isinstance(value, dict) and value and prefix.count(".") < 8:
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + str(key)] = value
    return out


def unpack(header, rows):
    """
    (header, iterator of rows) with columns that hold objects, {"lr": 1} or {'lr': 1}, as columns of their own.

    W&B's documented export of runs (name, config, summary) is of this kind. The first row decides.
    """
    first = next(rows, None)
    if first is None:
        return header, rows
    rows = itertools.chain([first], rows)
    packed = [i for i, cell in enumerate(first[: len(header)]) if _is_packed(cell) and _object(cell)]
    if not packed:
        return header, rows
    data = []
    for row in rows:
        one = dict(zip(header, row, strict=False))
        for i in packed:
            one[header[i]] = _object(row[i]) if i < len(row) else None
        data.append(flat(one))
    header = list(dict.fromkeys(key for one in data for key in one))
    return header, ([one.get(key) for key in header] for one in data)


def _is_packed(cell):
    return isinstance(cell, dict) or (isinstance(cell, str) and cell.strip()[:1] == "{" and cell.strip()[-1:] == "}")


def _object(cell):
    """The dict in a cell, or the cell itself where there is none."""
    if isinstance(cell, dict) or not _is_packed(cell):
        return cell
    try:
        found = parse_json(cell)
    except (ValueError, RecursionError):
        found = python_literal(cell)
    return found if isinstance(found, dict) else cell
