"""Write docs/commands.md from the commands themselves: `python -m runs.command_table > docs/commands.md`."""

from __future__ import annotations

import sys

from runs.options import PACKAGES, Command, Setting, list_commands

HEAD = """# Commands

Every command of `python -m annotate`, `reward`, `refl` and `runs`, made from the commands by
`python -m runs.command_table`. Each takes `--data DIR` (default `./data`) and `--db URL` (default: SQLite in the data
folder). Beside them are `python -m db backup FILE`, `restore FILE` and `images push` or `check`.
"""


def write_table() -> str:
    """The whole document, as Markdown."""
    parts = [HEAD]
    for package in PACKAGES:
        parts.append(f"\n## python -m {package}\n")
        parts += [_describe(command) for command in list_commands(package)]
    return "".join(parts)


def _describe(command: Command) -> str:  # type: ignore[type-arg]
    about = f"{command.about[0].upper()}{command.about[1:]}."
    lines = [f"\n### {command.name}\n", about, *([command.description] if command.description else [])]
    if command.presets:
        names = ", ".join(f"`{name}`" for name in command.presets.names())
        lines.append(f"`--preset`: {names}; or `--config FILE`. A flag replaces a single setting of it.")
    shown = [found for found in command.settings if not command.presets or found.name != "preset"]
    if shown:
        lines += ["", "| option | values | |", "|---|---|---|", *map(_row, shown)]
    return "\n".join(lines) + "\n"


def _row(setting: Setting) -> str:
    name = f"`{setting.flag}`" if setting.flag else f"`{setting.how.metavar or setting.name.upper()}`"
    values = ", ".join(f"`{choice}`" for choice in setting.choices)
    values = values or ("" if setting.type == "switch" else setting.type)
    words = setting.help.replace("|", "\\|")
    return f"| {name} | {values} | {words} |"


if __name__ == "__main__":
    sys.stdout.write(write_table())
