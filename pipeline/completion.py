"""Print the script that lets a shell complete ``tppt``: commands, options, settings.

Examples:
  source <(tppt completion bash)              # in ~/.bashrc
  source <(tppt completion zsh)               # in ~/.zshrc, after compinit
  tppt completion fish | source               # in ~/.config/fish/config.fish

Exit status: 0 printed, 2 an unknown shell.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.cli import build_parser, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = build_parser("python -m pipeline.completion", __doc__ or "")
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="the shell that reads it")
    shell = parser.parse_args(arguments).shell
    return run_command(lambda: _print_script(shell))


def _print_script(shell: str) -> int:
    from argcomplete.shell_integration import shellcode

    sys.stdout.write(shellcode(["tppt"], shell=shell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
