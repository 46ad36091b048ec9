"""Checks a value against a JSON Schema: the keywords that docs/result_schema.json uses, and no others."""

TYPES = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
}
ANNOTATIONS = {"$schema", "title", "description", "$defs"}


def errors(value, schema, root=None, path="$"):
    """All violations, as sentences; an unknown keyword is a KeyError, so that none is skipped."""
    root = root or schema
    found = []
    for keyword, rule in schema.items():
        if keyword not in ANNOTATIONS:
            found += CHECKS[keyword](value, rule, schema, root, path)
    return found


def _type(value, rule, schema, root, path):
    names = rule if isinstance(rule, list) else [rule]
    return [] if any(TYPES[name](value) for name in names) else [f"{path} is not {' or '.join(names)}"]


def _properties(value, rule, schema, root, path):
    if not isinstance(value, dict):
        return []
    return [e for key, inner in rule.items() if key in value for e in errors(value[key], inner, root, f"{path}.{key}")]


def _additional(value, rule, schema, root, path):
    if not isinstance(value, dict):
        return []
    extra = [key for key in value if key not in schema.get("properties", {})]
    if rule is False:
        return [f"{path} has the unknown key {key}" for key in extra]
    return [e for key in extra for e in errors(value[key], rule, root, f"{path}.{key}")]


def _items(value, rule, schema, root, path):
    if not isinstance(value, list):
        return []
    return [e for i, item in enumerate(value) for e in errors(item, rule, root, f"{path}[{i}]")]


def _ref(value, rule, schema, root, path):
    return errors(value, root["$defs"][rule.removeprefix("#/$defs/")], root, path)


def _matches(value, rules, root, path):
    return sum(not errors(value, rule, root, path) for rule in rules)


def _number(test, text):
    def check(value, rule, schema, root, path):
        return [f"{path} = {value} is {text} {rule}"] if TYPES["number"](value) and test(value, rule) else []

    return check


def _length(test, text):
    def check(value, rule, schema, root, path):
        return [f"{path} has {text} than {rule} items"] if isinstance(value, list) and test(len(value), rule) else []

    return check


CHECKS = {
    "type": _type,
    "properties": _properties,
    "additionalProperties": _additional,
    "items": _items,
    "$ref": _ref,
    "const": lambda v, rule, s, root, p: [] if v == rule else [f"{p} is not {rule}"],
    "enum": lambda v, rule, s, root, p: [] if v in rule else [f"{p} = {v} is none of {rule}"],
    "required": lambda v, rule, s, root, p: [f"{p} lacks {key}" for key in rule if isinstance(v, dict) and key not in v],
    "oneOf": lambda v, rule, s, root, p: [] if _matches(v, rule, root, p) == 1 else [f"{p} matches not exactly one form"],
    "anyOf": lambda v, rule, s, root, p: [] if _matches(v, rule, root, p) else [f"{p} matches no form"],
    "minimum": _number(lambda v, rule: v < rule, "below"),
    "maximum": _number(lambda v, rule: v > rule, "above"),
    "minItems": _length(lambda n, rule: n < rule, "fewer"),
    "maxItems": _length(lambda n, rule: n > rule, "more"),
}
