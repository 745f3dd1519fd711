"""mqttc/codec.pyi says what is there: every public name, attribute and parameter, and no other."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

from mqttc import codec

TREE = ast.parse((Path(__file__).parent.parent.parent / "mqttc" / "codec.pyi").read_text("utf-8"))
CLASSES = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}
FUNCTIONS = {node.name for node in TREE.body if isinstance(node, ast.FunctionDef)}


def declared(name: str) -> set[str]:
    """Public attributes of a class and its bases in the stub."""
    node = CLASSES[name]
    found = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    found |= {item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in CLASSES:
            found |= declared(base.id)
    return {item for item in found if not item.startswith("_")}


def test_names() -> None:
    public = {name for name, value in vars(codec).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public == set(CLASSES) | FUNCTIONS


def test_attributes() -> None:
    for name in CLASSES:
        kind = getattr(codec, name)
        if issubclass(kind, int):
            members = {target.id: node.value.value for node in CLASSES[name].body if isinstance(node, ast.Assign)
                       for target in node.targets if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant)}  # fmt: skip
            assert members == {key: member.value for key, member in kind.__members__.items()}
            continue
        inherited = set(dir(ValueError)) if issubclass(kind, ValueError) else set(dir(object))
        assert {item for item in set(dir(kind)) - inherited if not item.startswith("_")} == declared(name), name


def test_keywords_are_taken() -> None:
    """Each parameter of a constructor in the stub is one at run time, and reads back under its name."""
    checked = 0
    for name, node in CLASSES.items():
        init = next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
        if init is None or issubclass(getattr(codec, name), Exception):
            continue
        for parameter in [*init.args.args[1:], *init.args.kwonlyargs]:
            try:
                getattr(codec, name)(**{parameter.arg: object()})
            except TypeError as error:
                assert "unexpected keyword" not in str(error) and "no such property" not in str(error), (name, parameter.arg)
            assert name == "Decoder" or hasattr(getattr(codec, name), parameter.arg)
            checked += 1
    assert checked > 80
