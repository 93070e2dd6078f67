"""What Ollama does with a Modelfile and with messages: only what our files use, from its documentation and Go's."""

from __future__ import annotations

import json
import re
from typing import Any

_ACTION = re.compile(r'\{\{(- )?((?:"(?:[^"\\]|\\.)*"|[^"])*?)( -)?\}\}')
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[()]|:?=|[.$]?\w+')


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """Return the values of a Modelfile with their names; that of a parameter is its own."""
    found, lines = [], text.removesuffix("\n").split("\n")
    while lines:
        name, _, value = lines.pop(0).partition(" ")
        if name == "PARAMETER":
            name, _, value = value.partition(" ")
        while (whole := _unquoted(value.strip())) is None:
            value += "\n" + lines.pop(0)
        found.append((name, "".join(c for c in whole if c.isprintable() or c in "\n\t")))
    return found


def _unquoted(value: str) -> str | None:
    for quotes in ('"""', '"'):
        if value.startswith(quotes):
            closed = value.endswith(quotes) and len(value) >= 2 * len(quotes)
            return value[len(quotes) : -len(quotes)] if closed else None
    return value


def ollama_prompt(template: str, messages: list[dict[str, str]]) -> str:
    """Return the prompt that Ollama makes of messages, without the BOS that it adds."""
    return render(template, template_values(messages))


def template_values(messages: list[dict[str, str]]) -> dict[str, Any]:
    """Return what a template is given: the system messages are there as one text, too."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    named = [{"Role": message["role"], "Content": message["content"]} for message in messages]
    return {"System": "\n\n".join(system), "Messages": named}


def render(template: str, values: dict[str, Any]) -> str:
    """Execute a Go template: text, strings, fields, variables, `if`, `else`, `range`, `eq` and `and`."""
    parts, variables, written = _parse(template), {"$": values}, []

    def run(position: int, dot: Any, live: bool) -> int:
        """Execute up to the `end` or `else` of a block; return its position."""
        while position < len(parts):
            text, action = parts[position]
            word, _, rest = action.partition(" ")
            if word in ("end", "else"):
                return position
            if word == "if":
                position = branches(position, rest, dot, live)
            elif word == "range":
                start, items = position, value(rest, dot) if live else []
                position = run(start + 1, None, False)
                for item in items:
                    run(start + 1, item, True)
            elif live and (assignment := re.fullmatch(r"(\$\w+) :?= (.*)", action)):
                variables[assignment[1]] = value(assignment[2], dot)
            elif live:
                written.append(text + (value(action, dot) if action else ""))
            position += 1
        return position

    def branches(position: int, condition: str, dot: Any, live: bool) -> int:
        while True:
            taken = live and bool(value(condition, dot))
            position, live = run(position + 1, dot, taken), live and not taken
            _, action = parts[position]
            if action == "end":
                return position
            condition = action.removeprefix("else").strip().removeprefix("if ") or "true"

    def value(expression: str, dot: Any) -> Any:
        return evaluate(_TOKEN.findall(expression), dot)

    def evaluate(tokens: list[str], dot: Any) -> Any:
        operands = []
        function = tokens.pop(0) if tokens[0] in ("eq", "and") else None
        while tokens and tokens[0] != ")":
            token = tokens.pop(0)
            if token == "(":
                operands.append(evaluate(tokens, dot))
                tokens.pop(0)
            elif token[0] == '"':
                operands.append(json.loads(token))  # the escapes that our files use are the same
            elif token[0] == "$":
                operands.append(variables[token])
            else:
                operands.append(dot[token[1:]] if token[0] == "." else {"true": True, "false": False}[token])
        return operands[0] == operands[1] if function == "eq" else all(operands) if function else operands[0]

    run(0, values, True)
    return "".join(written)


def _parse(template: str) -> list[tuple[str, str]]:
    """Return texts, with an empty action, and actions, with an empty text, in their order."""
    parts, end, trim = [], 0, False
    for action in [*_ACTION.finditer(template), None]:
        text = template[end : action.start() if action else None]
        text = text.lstrip() if trim else text
        parts.append((text.rstrip() if action and action[1] else text, ""))
        if action:
            parts.append(("", action[2].strip()))
            end, trim = action.end(), bool(action[3])
    return parts
