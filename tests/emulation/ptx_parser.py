"""PTX text -> kernels, variables and instructions. Nothing is executed here.

The grammar is the part of PTX that nvcc writes and that fits in an asm statement: one statement
up to each semicolon, labels, and scopes in braces with names of their own. A body is parsed when
its kernel is first asked for, since a file may hold many.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property

from tests.emulation.ptx_formats import FORMATS, Unsupported


@dataclass(frozen=True)
class Register:
    name: str  # unique within the kernel: scopes are resolved
    format: str  # as declared: "b32", "pred", ...


@dataclass(frozen=True)
class Negated:
    register: Register  # a predicate


@dataclass(frozen=True)
class Special:
    name: str  # "tid.x", "laneid"


@dataclass(frozen=True)
class Immediate:
    value: int  # the bits, if the number is written as a float
    float_bits: int = 0  # 32 or 64 for 0f... and 0d...


@dataclass(frozen=True)
class Symbol:
    name: str


@dataclass(frozen=True)
class Vector:
    parts: tuple["Operand", ...]


@dataclass(frozen=True)
class Pair:
    first: "Operand"  # "%r1|%p1": a result and the predicate beside it
    second: "Operand"


@dataclass(frozen=True)
class Address:
    base: "Operand"
    offset: int


@dataclass(frozen=True)
class Sink:
    """The operand "_": the result is dropped."""


Operand = Register | Negated | Special | Immediate | Symbol | Vector | Pair | Address | Sink


@dataclass(frozen=True)
class Instruction:
    text: str
    where: str  # "file.cu:12", or "" without line information
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | None = None
    guard_negated: bool = False

    def has(self, modifier: str) -> bool:
        return modifier in self.modifiers

    @property
    def formats(self) -> list[str]:
        """The modifiers that name a number format, in order."""
        return [modifier for modifier in self.modifiers if modifier in FORMATS]

    @property
    def format(self) -> str:
        if not self.formats:
            raise Unsupported("no number format")
        return self.formats[-1]


@dataclass(frozen=True)
class Parameter:
    name: str
    format: str
    align: int
    count: int

    @property
    def bytes(self) -> int:
        return self.count * FORMATS[self.format].bytes


@dataclass(frozen=True)
class Variable:
    name: str
    space: str  # "global", "const", "shared", "local"
    align: int
    bytes: int  # 0 for `extern __shared__`, whose size is the launch's
    initial: bytes = b""


@dataclass
class Body:
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)


_VARIABLE = re.compile(
    r"\.(?P<space>const|global|shared|local)\s+(?:\.attribute\([^)]*\)\s*)?"
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<format>\w+)\s+(?P<name>[\w$]+)"
    r"(?P<extent>(?:\[\d*\])*)\s*(?:=\s*\{?(?P<initial>[^;}]*)\}?)?"
)
_MODULE_VARIABLE = re.compile(
    r"^(?:\.(?:visible|extern|weak|common)\s+)*(" + _VARIABLE.pattern + r")\s*;", re.MULTILINE
)
_ENTRY = re.compile(
    r"^(?:\.(?:visible|extern|weak)\s+)*\.entry\s+(?P<name>[\w$]+)\s*"
    r"\((?P<parameters>[^)]*)\)(?P<directives>[^{;]*)\{",
    re.MULTILINE,
)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<format>\w+)\s+"
    r"(?:\.ptr\s+(?:\.(?:global|const|shared|local)\s+)?(?:\.align\s+\d+\s+)?)?"
    r"(?P<name>[\w$]+)(?:\[(?P<count>\d+)\])?"
)
_STATEMENT = re.compile(
    r"\s*(?:\.loc\s+(?P<file>\d+)\s+(?P<line>\d+)[^\n]*"
    r"|(?P<brace>[{}])"
    r"|(?P<label>[\w$]+)\s*:(?!:)"
    r"|(?P<text>[^;]+);)"
)
_INSTRUCTION = re.compile(r"(?:@(?P<negated>!?)\s*(?P<guard>[%\w$]+)\s+)?(?P<name>[\w.:]+)\s*(.*)")
_INTEGER = re.compile(r"-?(0[xX][0-9a-fA-F]+|\d+)U?")
_REGISTERS = re.compile(r"(%?[\w$]+)(?:<(\d+)>)?")


def _integer(text: str) -> int:
    return int(text.rstrip("U"), 0)


def split_operands(text: str) -> list[str]:
    """Split at the commas that are not inside brackets."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def _variable(match: re.Match) -> Variable:
    name = match["format"]
    if name not in FORMATS:
        raise Unsupported(f"a variable of type .{name}")
    number = FORMATS[name]
    count = 1
    for extent in re.findall(r"\[(\d*)\]", match["extent"]):
        count *= int(extent or 0)
    initial = b""
    for word in split_operands(match["initial"] or ""):
        if word[:2] in ("0f", "0d"):
            initial += int(word[2:], 16).to_bytes(number.bytes, "little")
        elif _INTEGER.fullmatch(word):
            bits = _integer(word) & ((1 << 8 * number.bytes) - 1)
            initial += bits.to_bytes(number.bytes, "little")
        else:
            raise Unsupported(f"initial value {word!r} of {match['name']}")
    align = int(match["align"] or number.bytes)
    return Variable(match["name"], match["space"], align, count * number.bytes, initial)


class _BodyParser:
    """Parses one kernel body; holds the scopes that are open and the line being described."""

    def __init__(self, files: dict[int, str]) -> None:
        self.files, self.where = files, ""
        self.scopes: list[dict[str, Register]] = [{}]
        self.opened = 0
        self.body = Body()

    def parse(self, text: str) -> Body:
        position = 0
        while match := _STATEMENT.match(text, position):
            position = match.end()
            if match["file"]:
                self.where = f"{self.files.get(int(match['file']), '?')}:{match['line']}"
            elif match["brace"] == "{":
                self.opened += 1
                self.scopes.append({})
            elif match["brace"]:
                self.scopes.pop()
            elif match["label"]:
                self.body.labels[match["label"]] = len(self.body.instructions)
            else:
                self.statement(" ".join(match["text"].split()))
        if text[position:].strip():
            raise Unsupported(f"the text {text[position:].strip()[:60]!r}")
        return self.body

    def statement(self, text: str) -> None:
        if text.startswith(".reg"):
            _, kind, names = text.split(maxsplit=2)
            self.declare(kind[1:], names)
        elif match := _VARIABLE.match(text):
            self.body.variables.append(_variable(match))
        elif not text.startswith(".pragma"):
            self.instruction(text)

    def declare(self, kind: str, names: str) -> None:
        suffix = f"@{self.opened}" if len(self.scopes) > 1 else ""
        for item in split_operands(names):
            name, count = _REGISTERS.fullmatch(item).groups()
            for each in [name] if count is None else [f"{name}{i}" for i in range(int(count))]:
                self.scopes[-1][each] = Register(each + suffix, kind)

    def instruction(self, text: str) -> None:
        match = _INSTRUCTION.fullmatch(text)
        if match is None:
            raise Unsupported(f"the statement {text!r}")
        opcode, *modifiers = match["name"].split(".")
        operands = tuple(self.operand(part) for part in split_operands(match[4]))
        guard = self.register(match["guard"]) if match["guard"] else None
        self.body.instructions.append(
            Instruction(
                text, self.where, opcode, tuple(modifiers), operands, guard, match["negated"] == "!"
            )
        )

    def register(self, name: str) -> Register | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None

    def operand(self, text: str) -> Operand:
        if text == "_":
            return Sink()
        if text[0] == "{":
            return Vector(tuple(self.operand(part) for part in split_operands(text[1:-1])))
        if text[0] == "[":
            base, sign, offset = re.fullmatch(
                r"\[\s*([^+\-\s]+)\s*([+-]?)\s*(-?\w*)\s*\]", text
            ).groups()
            value = int(offset, 0) if offset else 0
            return Address(self.operand(base), -value if sign == "-" else value)
        if text[0] == "!":
            return Negated(self.register(text[1:].strip()))
        if "|" in text:
            first, second = text.split("|")
            return Pair(self.operand(first.strip()), self.operand(second.strip()))
        if text[:2].lower() in ("0f", "0d") and len(text) in (10, 18):
            return Immediate(int(text[2:], 16), 32 if len(text) == 10 else 64)
        if _INTEGER.fullmatch(text):
            return Immediate(_integer(text))
        if (register := self.register(text)) is not None:
            return register
        return Special(text[1:]) if text[0] == "%" else Symbol(text)


class Entry:
    """One kernel of a PTX file."""

    def __init__(self, name: str, parameters: str, directives: str, text: str, files) -> None:
        self.name = name
        self.parameters = [
            Parameter(
                match["name"],
                match["format"],
                int(match["align"] or FORMATS[match["format"]].bytes),
                int(match["count"] or 1),
            )
            for match in _PARAMETER.finditer(parameters)
        ]
        self.thread_limits = {
            kind: tuple(int(word) for word in numbers.split(","))
            for kind, numbers in re.findall(r"\.(maxntid|reqntid)\s+([\d, ]+)", directives)
        }
        self.text, self._files = text, files

    @cached_property
    def body(self) -> Body:
        return _BodyParser(self._files).parse(self.text)


class PtxFile:
    """A PTX file: its kernels by mangled name, and the variables outside of them."""

    def __init__(self, text: str) -> None:
        files = {
            int(number): path.rsplit("/", 1)[-1]
            for number, path in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.MULTILINE)
        }
        text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
        self.variables = [_variable(match) for match in _MODULE_VARIABLE.finditer(text)]
        self.entries = {}
        for match in _ENTRY.finditer(text):
            body = text[match.end() : _closing_brace(text, match.end())]
            self.entries[match["name"]] = Entry(
                match["name"], match["parameters"], match["directives"], body, files
            )


def _closing_brace(text: str, start: int) -> int:
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.start()
    raise Unsupported("a kernel without a closing brace")
