"""Signatures of classes whose `__init__` is made from their fields: `equinox.Module`
and `NamedTuple`."""

import griffe


_BASES = ("equinox.Module", "typing.NamedTuple")
_NOT_FIELDS = ("ClassVar", "AbstractVar", "AbstractClassVar")


class Fields(griffe.Extension):
    """Adds to each such class an `__init__` with one parameter per field, those of its
    base classes first."""

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        del kwargs
        for cls in _classes(pkg):
            if (
                "__init__" not in cls.members
                and "Abstract" not in cls.name
                and _has_fields(cls)
            ):
                parameters = {
                    p.name: p
                    for parent in (*reversed(cls.mro()), cls)
                    for p in _parameters(parent)
                }
                this = griffe.Parameter(
                    "self", kind=griffe.ParameterKind.positional_or_keyword
                )
                init = griffe.Function(
                    "__init__",
                    parent=cls,
                    parameters=griffe.Parameters(this, *parameters.values()),
                )
                cls.set_member("__init__", init)


def _classes(module: griffe.Module):
    for member in module.members.values():
        if not member.is_alias and member.is_module:
            yield from _classes(member)
        elif not member.is_alias and member.is_class:
            yield member


def _has_fields(cls: griffe.Class) -> bool:
    bases = [base for parent in (cls, *cls.mro()) for base in parent.bases]
    return any(
        isinstance(base, griffe.Expr) and base.canonical_path in _BASES
        for base in bases
    )


def _parameters(cls: griffe.Class):
    for member in cls.members.values():
        if (
            member.is_alias
            or not member.is_attribute
            or member.annotation is None
            or "property" in member.labels
        ):
            continue
        if "instance-attribute" not in member.labels or any(
            f".{name}" in str(member.annotation) for name in _NOT_FIELDS
        ):
            continue
        yield griffe.Parameter(
            member.name,
            annotation=member.annotation,
            kind=griffe.ParameterKind.positional_or_keyword,
            default=_default(member),
        )


def _default(member: griffe.Attribute):
    """The default, also of `eqx.field(..., default=...)`; `None` if there is none."""
    if (
        isinstance(member.value, griffe.ExprCall)
        and str(member.value.function) == "eqx.field"
    ):
        keywords = [
            a for a in member.value.arguments if isinstance(a, griffe.ExprKeyword)
        ]
        return next((a.value for a in keywords if a.name == "default"), None)
    return member.value
