"""From the Metal text that MLX generates to C++ that g++ compiles: a few textual rewrites, line for line.

Address spaces, vectors and Metal's functions are definitions in `runtime/`. What is left to rewrite are threadgroup
variables (one for all threads of a group, so not on a fiber's stack), the kernel's template, whose arguments are bound
by name in front of it, and its signature, from which the call of the kernel is made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

VARIABLE = "MSL_THREADGROUP"
FULL_SIZE = "msl::full_group_size.x * msl::full_group_size.y * msl::full_group_size.z"
# What a kernel's attributes are here; those of three components first.
POSITIONS = {
    "thread_position_in_grid": "msl::cur->in_grid",
    "thread_position_in_threadgroup": "msl::cur->in_group",
    "threadgroup_position_in_grid": "msl::group",
    "threads_per_threadgroup": "msl::group_size",
    "dispatch_threads_per_threadgroup": "msl::full_group_size",
    "threads_per_grid": "msl::grid_size",
    "grid_size": "msl::grid_size",
    "threadgroups_per_grid": "msl::groups_per_grid",
    "grid_origin": "msl::Uint3{}",
}
NUMBERS = {
    "thread_index_in_simdgroup": "msl::cur->lane",
    "simdgroup_index_in_threadgroup": "msl::cur->simd",
    "thread_index_in_threadgroup": "msl::cur->linear",
    "simdgroups_per_threadgroup": "msl::nsimd",
    "dispatch_simdgroups_per_threadgroup": f"({FULL_SIZE} + 31) / 32",
    "threads_per_simdgroup": "32",
    "thread_execution_width": "32",
    "thread_index_in_quadgroup": "msl::cur->lane % 4",
    "quadgroup_index_in_threadgroup": "msl::cur->linear / 4",
    "quadgroups_per_threadgroup": "(msl::nlanes + 3) / 4",
    "dispatch_quadgroups_per_threadgroup": f"({FULL_SIZE} + 3) / 4",
}


class Untranslatable(ValueError):
    """The text uses something that has no counterpart here."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of the kernel: a buffer, or an attribute such as a thread's position."""

    type: str
    name: str
    attribute: str

    def argument(self, buffer: int) -> str:
        """What the kernel is called with."""
        if self.attribute in POSITIONS:
            value = f"msl_uint3({POSITIONS[self.attribute]})"
            return value if "3" in self.type else f"{value}.x"
        if self.attribute in NUMBERS:
            return NUMBERS[self.attribute]
        kind = self.type.replace("const constant", "constant")
        if kind.endswith("&"):
            return f"*({kind[:-1]}*)msl::arguments[{buffer}]"
        return f"({kind})msl::arguments[{buffer}]"

    @property
    def is_buffer(self) -> bool:
        return self.attribute not in POSITIONS and self.attribute not in NUMBERS


def without_comments(text: str) -> str:
    """The text with blanks for comments, so that lines and columns stay."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.S)


def split_arguments(text: str) -> list[str]:
    """Splits at commas that stand in no brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([{<") - (char in ")]}>")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def closing(text: str, start: int) -> int:
    """Where the bracket opened just before `start` is closed."""
    depth, at = 1, start
    while depth:
        depth += (text[at] in "([{") - (text[at] in ")]}")
        at += 1
    return at - 1


def parameters(text: str, name: str) -> list[Parameter]:
    """The kernel's parameters, from its signature."""
    found = re.search(rf"\[\[kernel\]\]\s+void\s+{re.escape(name)}\s*\(", text)
    if not found:
        raise Untranslatable(f"no kernel named {name}")
    result = []
    for part in split_arguments(text[found.end() : closing(text, found.end())]):
        attribute = re.search(r"\[\[\s*(\w+)", part)
        declared = re.fullmatch(r"(.*?)(\w+)", " ".join(re.sub(r"\[\[.*?\]\]", "", part, flags=re.S).split()))
        assert declared, part
        result.append(Parameter(declared[1].strip(), declared[2], attribute[1] if attribute else ""))
    return result


def declared_by(text: str, start: int) -> tuple[str, str]:
    """The declaration that goes on at `start`, without what it has in brackets, and the character that ends it."""
    kept, at = "", start
    while text[at] not in ";=,){":
        if text[at] in "([<":
            pairs = {"(": ")", "[": "]", "<": ">"}
            opener, depth = text[at], 1
            while depth:
                at += 1
                depth += (text[at] == opener) - (text[at] == pairs[opener])
        else:
            kept += text[at]
        at += 1
    return kept, text[at]


def rewrite_threadgroup(text: str) -> str:
    """Marks variables, `threadgroup T a[N];`, and leaves pointers and parameters, where the word means nothing."""
    out, last, depth, at = [], 0, 0, 0
    for token in re.finditer(r"[()]|\bthreadgroup\b", text):
        at = token.start()
        if token[0] != "threadgroup":
            depth += 1 if token[0] == "(" else -1
            continue
        kept, end = declared_by(text, token.end())
        if depth or re.search(r"[*&]", kept):
            continue
        if end not in ";,":
            raise Untranslatable(f"a threadgroup variable can't have an initialiser: `threadgroup{kept}{end}`")
        out += [text[last:at], VARIABLE]
        last = token.end()
    return "".join([*out, text[last:]])


def bind_template(text: str, name: str, qualifier: str = "static constexpr") -> str:
    """Makes the kernel a plain function: its template's arguments become definitions in front of it."""
    head = re.search(rf"(?:template\s*<([^>]*)>\s*)?\[\[kernel\]\]\s+void\s+{re.escape(name)}\b", text)
    assert head
    given = re.search(rf"decltype\({re.escape(name)}<(.*?)>\) ", text)
    bound = ""
    if head[1]:
        assert given
        for parameter, value in zip(head[1].split(","), given[1].split(","), strict=True):
            *kind, word = parameter.split()
            types = kind[0] in ("typename", "class")
            bound += f"using {word} = {value}; " if types else f"{qualifier} {' '.join(kind)} {word} = {value}; "
    lines = "\n" * head[0].count("\n")
    text = f"{text[: head.start()]}{bound}{lines}void {name}{text[head.end() :]}"
    return re.sub(r"^template \[\[host_name.*$", "", text, flags=re.M)


def translate(text: str, name: str) -> str:
    """The C++ source for one kernel: MLX's text as file `kernel.metal`, and the function that calls it."""
    text = without_comments(text)
    body = re.sub(r"^[ \t]*#[ \t]*include[ \t]*(<metal_\w+>|\"mlx/.*\")[ \t]*$", "", text, flags=re.M)
    body = bind_template(body, name)
    # `constant` stands for const: never twice in one type
    body = re.sub(r"\b(?:const\s+)?constant\b(\s+constexpr)?(?:\s+const\b)?", r"constant\1", body)
    body = re.sub(r"\[\[(?:buffer|threadgroup)\(\d+\)\]\]|\[\[\w+\]\]", "", body)
    arguments, buffers = [], 0
    for parameter in parameters(text, name):
        arguments.append(parameter.argument(buffers))
        buffers += parameter.is_buffer
    return (
        f'#include "functions.h"\n#line 1 "kernel.metal"\n{rewrite_threadgroup(body)}\n#line 1 "call"\n'
        f"MSL_RT void msl_entry() {{ ::{name}({', '.join(arguments)}); }}\n"
    )
