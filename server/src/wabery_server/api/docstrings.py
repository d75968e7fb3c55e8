"""The explanations that stand as strings below the members of a class. Python forgets them; the documents are made from them."""

import ast
import inspect
import sys
import textwrap
from itertools import pairwise


def explanations(of: type) -> dict[str, str]:
    """By member, inherited ones too; a member without an explanation is missing.

    Reads the source of the class; one made by a call has none.
    """
    try:
        source = inspect.getsource(of)
    except OSError:
        return {}
    (node,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(node, ast.ClassDef)
    found: dict[str, str] = {}
    for base in node.bases:
        # Not `__bases__`: a TypedDict has none.
        name = base.id if isinstance(base, ast.Name) else ""
        parent = getattr(sys.modules[of.__module__], name, None)
        if isinstance(parent, type) and parent.__module__.partition(".")[0] == __name__.partition(".")[0]:
            found |= explanations(parent)
    for member, below in pairwise(node.body):
        match member, below:
            case (
                ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = inspect.cleandoc(text)
    return found
