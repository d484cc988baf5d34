"""Names: which published tensor is which of our parameters, both ways.

A table is a tuple of `Rule`s. One of our parameters corresponds to one published tensor, or, where layers are
stacked on a leading axis, to one published tensor a layer; between the two lie only transposes, reshapes and padding.
So a checkpoint can be read, and written, one tensor at a time, and a round trip is exact to the bit.

The order of the work is: `flat_params` (our side) -> `survey` (which tensor goes where, all complaints at once) ->
`load_tensors` / `export_tensors` (move the numbers).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seedstory_jax.errors import UserError

BLOCK = 32  # columns that a transposing copy takes at a time, so that what it touches stays in the cache
SHOWN = 20  # names of each sort that an error spells out; the rest is counted


@dataclass(frozen=True)
class Transform:
    """A change of layout between a published tensor and ours; `inverse(forward(x))` is x, to the bit."""

    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]


def _same(x: np.ndarray) -> np.ndarray:
    return x


IDENTITY = Transform(_same, _same)
LINEAR = Transform(lambda x: x.T, lambda x: x.T)  # torch [out, in] <-> [in, out]
CONV = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO


def reshaped(published: Sequence[int], ours: Sequence[int]) -> Transform:
    """The same numbers in the same order under another shape."""
    return Transform(lambda x: _reshape(x, published, ours), lambda x: _reshape(x, ours, published))


def _reshape(x: np.ndarray, before: Sequence[int], after: Sequence[int]) -> np.ndarray:
    # A tensor of another shape passes unchanged, so that the caller's shape check names what is really there.
    return x.reshape(tuple(after)) if x.shape == tuple(before) else x


def chained(first: Transform, second: Transform) -> Transform:
    """`first`, then `second`, on the way in; undone in the other order on the way out."""
    return Transform(lambda x: second.forward(first.forward(x)), lambda x: first.inverse(second.inverse(x)))


_GROUP = re.compile(r"\(\?P<(\w+)>((?:[^()\\]|\\.)*)\)")  # a named group without groups inside
_META = re.compile(r"[()\[\]{}*+?|^$\\]|(?<!\\)\.")


@dataclass(frozen=True)
class Rule:
    r"""One line of a table.

    Args:
      source: regular expression that a published name must match in full. The named group `layer` is the index into
        the stacked leading axis of our parameter; other named groups can be used in `target` as `\g<name>`.
      target: dotted path of our parameter, e.g. `layers.self_attn.q_proj.kernel`.
      transform: change of layout (of one layer's tensor, where layers are stacked).
      template: published name to write on export, with `{layer}` and the other groups in braces. Left empty it is
        derived from `source`, which then may hold nothing but literal text and simple named groups.
      shared: several published tensors may meet in this target (a tied matrix, stored twice); the last one read wins.

    Where several rules have the same target (older and newer naming), all are read and the first one is written.
    """

    source: str
    target: str
    transform: Transform = IDENTITY
    template: str = ""
    shared: bool = False

    _pattern: re.Pattern = field(init=False, repr=False, compare=False)
    _path: re.Pattern = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        groups = dict(_GROUP.findall(self.source))
        object.__setattr__(self, "_pattern", re.compile(self.source))
        path, end = "", 0
        for hit in re.finditer(r"\\g<(\w+)>", self.target):
            if hit[1] not in groups:
                raise ValueError(f"target {self.target!r} names the group {hit[1]!r}, which {self.source!r} lacks")
            path += re.escape(self.target[end : hit.start()]) + f"(?P<{hit[1]}>{groups[hit[1]]})"
            end = hit.end()
        object.__setattr__(self, "_path", re.compile(path + re.escape(self.target[end:])))
        if not self.template:
            template = re.sub(r"\\([.\-])", r"\1", _GROUP.sub(lambda hit: "{" + hit[1] + "}", self.source))
            literal = re.sub(r"\\[.\-]", "", _GROUP.sub("", self.source))
            if _META.search(literal):
                raise ValueError(
                    f"no name to export can be derived from {self.source!r}; give template= (or escape its dots)"
                )
            object.__setattr__(self, "template", template)

    @property
    def stacked(self) -> bool:
        """Whether the target has a leading layer axis that this rule's tensors fill."""
        return "layer" in self._pattern.groupindex

    def match(self, name: str) -> tuple[str, int | None] | None:
        """(our path, layer or None) of a published name, or None if this rule does not speak of it."""
        hit = self._pattern.fullmatch(name)
        if hit is None:
            return None
        return hit.expand(self.target), int(hit["layer"]) if self.stacked else None

    def published_name(self, path: str, layer: int | None = None) -> str | None:
        """The published name of our path (and layer), or None if this rule does not speak of it."""
        hit = self._path.fullmatch(path)
        if hit is None:
            return None
        return self.template.format(**hit.groupdict(), layer=layer)


def prefixed(rules: Iterable[Rule], source: str = "", target: str = "") -> tuple[Rule, ...]:
    """The same table one level down: `source` (literal text) before every published name, `target` before our path."""
    escaped = re.escape(source)
    return tuple(
        Rule(escaped + rule.source, target + rule.target, rule.transform, source + rule.template, rule.shared)
        for rule in rules
    )


class WeightsError(UserError):
    """A checkpoint that does not fit its table; holds every complaint, shows the first twenty of each sort."""

    def __init__(self, what: str, *, missing: Sequence[str] = (), unexpected: Sequence[str] = (), misshapen=()):
        self.missing, self.unexpected, self.misshapen = tuple(missing), tuple(unexpected), tuple(misshapen)
        lines = [f"{what}: {len(missing)} missing, {len(unexpected)} unexpected, {len(misshapen)} wrongly shaped"]
        for title, names in (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", misshapen)):
            lines += [f"  {title}: {name}" for name in names[:SHOWN]]
            if len(names) > SHOWN:
                lines.append(f"  {title}: ... and {len(names) - SHOWN} more")
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class Placement:
    """One published tensor and where it goes: all of our `path`, or its row `layer`."""

    name: str
    path: str
    layer: int | None
    rule: Rule


def flat_params(module: nnx.Module) -> dict[str, nnx.Variable]:
    """All parameters of a module by dotted path, sorted; the Variables themselves, so that they can be set."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    by_path = {".".join(map(str, path)): path for path, _ in flat}
    return {name: _variable(module, path) for name, path in sorted(by_path.items())}


def _variable(node, path: tuple) -> nnx.Variable:
    for key in path:
        node = node[key] if isinstance(key, int) or isinstance(node, Mapping) else getattr(node, key)
    return node


def shape_of(tensors: Mapping[str, np.ndarray], name: str) -> tuple[int, ...]:
    """Shape of one tensor, without reading it where the mapping knows better (`tensors.shape(name)`)."""
    shape = getattr(tensors, "shape", None)
    return tuple(shape(name)) if callable(shape) else tuple(np.shape(tensors[name]))


def transformed_shape(shape: Sequence[int], transform: Transform) -> tuple[int, ...]:
    """What a transform makes of a shape; () if it cannot take it."""
    stand_in = np.broadcast_to(np.zeros((), np.int8), tuple(shape))
    try:
        return transform.forward(stand_in).shape
    except ValueError:  # a vector where a matrix was meant
        return ()


@dataclass
class Survey:
    """Where tensors go, and every complaint about them."""

    placements: list[Placement]
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]


def survey(
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    *,
    ignore: Sequence[str] = (),
    partial: bool | Sequence[str] = False,
) -> Survey:
    """Says where every published tensor goes; reads names and shapes, no numbers, and raises nothing.

    Args:
      shapes: our parameters' shapes by dotted path.
      tensors: the published tensors.
      rules: the table; the first rule that matches a name counts.
      ignore: regular expressions (matched in full) of published names that carry nothing of ours.
      partial: True if parameters may stay unset (a checkpoint of what was trained), or regular expressions of our
        paths that may.

    Returns:
      The placements in the order of `tensors`; what is missing, unexpected (given twice included) or wrongly shaped.
    """
    skip = [re.compile(pattern) for pattern in ignore]
    optional = [re.compile(pattern) for pattern in ([".*"] if partial is True else partial or [])]
    found = Survey([], [], [], [])
    filled: dict[tuple[str, int | None], str] = {}
    for name in tensors:
        rule, hit = next(((rule, hit) for rule in rules if (hit := rule.match(name)) is not None), (None, None))
        if rule is None or hit is None or hit[0] not in shapes:
            if not any(pattern.fullmatch(name) for pattern in skip):
                found.unexpected.append(name)
            continue
        path, layer = hit
        if layer is not None and layer >= shapes[path][0]:
            found.unexpected.append(f"{name} (only {shapes[path][0]} layers are configured)")
            continue
        if (path, layer) in filled and not rule.shared:
            found.unexpected.append(f"{name} (a second one beside {filled[path, layer]})")
            continue
        wanted = shapes[path] if layer is None else shapes[path][1:]
        given = shape_of(tensors, name)
        if transformed_shape(given, rule.transform) != wanted:
            found.misshapen.append(f"{name} is {list(given)}, {_wanted(rule, wanted)}")
        filled[path, layer] = name
        found.placements.append(Placement(name, path, layer, rule))
    required = {path: shape for path, shape in shapes.items() if not any(p.fullmatch(path) for p in optional)}
    found.missing = [published_name(rules, *place) for place in slots(required, rules) if place not in filled]
    return found


def slots(shapes: Mapping[str, tuple[int, ...]], rules: Sequence[Rule]) -> list[tuple[str, int | None]]:
    """Every (path, layer or None) that one published tensor fills."""
    places: list[tuple[str, int | None]] = []
    for path, shape in shapes.items():
        stacked = next((rule.stacked for rule in rules if rule._path.fullmatch(path)), False)
        places += [(path, layer) for layer in (range(shape[0]) if stacked else [None])]
    return places


def published_name(rules: Sequence[Rule], path: str, layer: int | None) -> str:
    """The published name of one slot, as the first rule that knows it writes it."""
    names = (rule.published_name(path, layer) for rule in rules)
    return next((name for name in names if name is not None), f"(no published name is known for our {path})")


def place(
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    *,
    ignore: Sequence[str] = (),
    partial: bool | Sequence[str] = False,
    what: str = "weights",
) -> list[Placement]:
    """The placements of `survey` (arguments there), when nothing is wrong.

    Raises WeightsError, which `what` begins, with everything that is missing, unexpected or wrongly shaped.
    """
    found = survey(shapes, tensors, rules, ignore=ignore, partial=partial)
    if found.missing or found.unexpected or found.misshapen:
        raise WeightsError(what, missing=found.missing, unexpected=found.unexpected, misshapen=found.misshapen)
    return found.placements


def _wanted(rule: Rule, ours: tuple[int, ...]) -> str:
    try:
        published = rule.transform.inverse(np.broadcast_to(np.zeros((), np.int8), ours)).shape
    except ValueError:
        return f"wanted as ours {list(ours)}"
    return f"wanted {list(published)}"


def load_tensors(
    module: nnx.Module,
    tensors: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    *,
    ignore: Sequence[str] = (),
    partial: bool | Sequence[str] = False,
    what: str = "weights",
) -> None:
    """Sets a module's parameters in place from published tensors; each keeps its own dtype.

    Arguments are those of `survey`, errors those of `place`; nothing is set if anything is wrong. With `partial`, what
    is not in `tensors` keeps its value, single layers of a stack included.
    """
    params = flat_params(module)
    shapes = {path: tuple(variable.get_value().shape) for path, variable in params.items()}
    by_path: dict[str, list[Placement]] = {}
    for placement in place(shapes, tensors, rules, ignore=ignore, partial=partial, what=what):
        by_path.setdefault(placement.path, []).append(placement)
    for path, placements in by_path.items():
        variable = params[path]
        old = variable.get_value()
        if placements[0].layer is None:
            new = placements[-1].rule.transform.forward(np.asarray(tensors[placements[-1].name]))
        else:
            whole = len(placements) == shapes[path][0]
            new = np.empty(shapes[path], old.dtype) if whole else np.array(old)
            for placement in placements:
                new[placement.layer] = placement.rule.transform.forward(np.asarray(tensors[placement.name]))
        variable.set_value(jnp.asarray(new, dtype=old.dtype))


def export_names(
    shapes: Mapping[str, tuple[int, ...]], rules: Sequence[Rule], *, partial: bool = False
) -> dict[str, Placement]:
    """Published name -> where its numbers lie with us, by the first rule that knows each path.

    Raises WeightsError if a path has no rule, unless `partial`: then only what the table speaks of is exported.
    """
    names, unknown = {}, []
    for path, shape in shapes.items():
        rule = next((rule for rule in rules if rule._path.fullmatch(path)), None)
        if rule is None:
            unknown.append(path)
            continue
        for layer in range(shape[0]) if rule.stacked else [None]:
            name = rule.published_name(path, layer)
            names[name] = Placement(name, path, layer, rule)
    if unknown and not partial:
        raise WeightsError("parameters without a published name", missing=unknown)
    return names


def export_tensors(module: nnx.Module, rules: Sequence[Rule], *, partial: bool = False) -> dict[str, np.ndarray]:
    """The inverse of `load_tensors`: published names and layouts, contiguous arrays."""
    params = flat_params(module)
    shapes = {path: tuple(variable.get_value().shape) for path, variable in params.items()}
    values = {path: np.asarray(jax.device_get(variable.get_value())) for path, variable in params.items()}
    return {name: exported(values[at.path], at) for name, at in export_names(shapes, rules, partial=partial).items()}


def contiguous(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`x` in row order and in `dtype`; a transposed matrix block by block, several times faster than as a whole."""
    if x.ndim != 2 or x.flags.c_contiguous or not x.flags.f_contiguous or min(x.shape) < 2 * BLOCK:
        return np.ascontiguousarray(x, dtype=dtype)
    out = np.empty(x.shape, dtype)
    for start in range(0, x.shape[1], BLOCK):
        out[:, start : start + BLOCK] = x[:, start : start + BLOCK]
    return out


def exported(value: np.ndarray, at: Placement) -> np.ndarray:
    """One published tensor out of our (perhaps stacked) array."""
    return contiguous(at.rule.transform.inverse(value if at.layer is None else value[at.layer]), value.dtype)
