"""Reads .pyx and .pxd files with Cython's own parser, for the checkers. Nothing is analysed or compiled."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Finding:
    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclass(frozen=True, slots=True)
class Import:
    line: int
    module: str  # absolute dotted name as written; for `from a import b` both a and a.b are possible owners
    names: tuple[str, ...]
    is_cimport: bool


def sources(root: Path, *suffixes: str, folder: str = "mqttc") -> list[Path]:
    return sorted(path for path in (root / folder).rglob("*") if path.suffix in suffixes)


def module_name(root: Path, path: Path) -> str:
    parts = list(path.relative_to(root).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def parse(root: Path, path: Path) -> Any:
    """The parse tree of a .pyx or .pxd; raises Cython's CompileError, printed with its place, for what it cannot read."""
    from Cython.Compiler import Errors, Parsing
    from Cython.Compiler.Main import Context
    from Cython.Compiler.Options import CompilationOptions, default_options
    from Cython.Compiler.Scanning import FileSourceDescriptor, PyrexScanner
    from Cython.Compiler.Symtab import ModuleScope

    context = Context.from_options(CompilationOptions(default_options, language_level=3, include_path=[str(root)]))
    Errors.init_thread()
    Errors.open_listing_file(None)
    name = module_name(root, path)
    scope = ModuleScope(name, None, context)
    source = FileSourceDescriptor(str(path), path.relative_to(root).as_posix())
    before = Errors.get_errors_count()
    with source.get_file_object() as handle:
        scanner = PyrexScanner(handle, source, source_encoding=handle.encoding, scope=scope, context=context)
        tree = Parsing.p_module(scanner, path.suffix == ".pxd", name)
    if Errors.get_errors_count() > before:
        raise Errors.CompileError(None, f"{path}: cannot be parsed")
    return tree


def children(node: Any) -> Iterator[Any]:
    for attribute in node.child_attrs or ():
        child = getattr(node, attribute, None)
        if isinstance(child, list | tuple):
            yield from (item for item in child if hasattr(item, "child_attrs"))
        elif child is not None and hasattr(child, "child_attrs"):
            yield child


def walk(node: Any, *, into_extern: bool = True) -> Iterator[Any]:
    """The node and everything below it, in source order; `cdef extern` blocks only if asked for."""
    yield node
    if not into_extern and type(node).__name__ == "CDefExternNode":
        return
    for child in children(node):
        yield from walk(child, into_extern=into_extern)


def imports(root: Path, path: Path, tree: Any = None) -> list[Import]:
    if path.suffix in (".py", ".pyi"):
        return list(_python_imports(root, path))
    return list(_cython_imports(root, path, parse(root, path) if tree is None else tree))


def _package(root: Path, path: Path, level: int) -> str:
    """What `level` leading dots mean in this file."""
    parts = list(path.relative_to(root).parent.parts)
    return ".".join(parts[: len(parts) - (level - 1)])


def _python_imports(root: Path, path: Path) -> Iterator[Import]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, (), False)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = ".".join(part for part in (_package(root, path, node.level), module) if part)
            yield Import(node.lineno, module, tuple(alias.name for alias in node.names), False)
        elif isinstance(node, ast.Call) and _calls_import(node) and node.args and isinstance(node.args[0], ast.Constant):
            yield Import(node.lineno, str(node.args[0].value), (), False)


def _calls_import(node: ast.Call) -> bool:
    called = node.func
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
    return name in ("import_module", "__import__")


def _cython_imports(root: Path, path: Path, tree: Any) -> Iterator[Import]:
    for node in walk(tree):
        kind = type(node).__name__
        if kind == "CImportStatNode":
            yield Import(node.pos[1], str(node.module_name), (), True)
        elif kind == "FromCImportStatNode":
            module = str(node.module_name)
            if node.relative_level:
                module = ".".join(part for part in (_package(root, path, node.relative_level), module) if part)
            yield Import(node.pos[1], module, tuple(str(name[1]) for name in node.imported_names), True)
        elif kind == "FromImportStatNode":
            module = str(node.module.module_name.value)
            level = node.module.level or 0
            if level:
                module = ".".join(part for part in (_package(root, path, level), module) if part)
            yield Import(node.pos[1], module, tuple(str(name) for name, _ in node.items), False)
        elif kind == "SingleAssignmentNode" and type(node.rhs).__name__ == "ImportNode":
            yield Import(node.pos[1], str(node.rhs.module_name.value), (), False)
