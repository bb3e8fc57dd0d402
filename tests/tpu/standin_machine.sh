#!/usr/bin/env bash
# A worker's programs that a test must not run: each is a link to this file.
set -euo pipefail
called=$(basename "$0")
echo "$called $*" >>"$HOME/machine.log"
case $called in
  hostname) echo "w-$WORKER" ;;
  sudo) exec "$@" ;;
  mountpoint) test -e "$HOME/mounted" ;;
  mount) touch "$HOME/mounted" ;;
  lsblk) printf '%s disk \n' /dev/sda /dev/sdb && echo '/dev/sda1 part /dev/sda' ;;
  blkid) exit "${STANDIN_BLKID:-2}" ;;
  python3) # pip install uv
    mkdir -p "$HOME/.local/bin"
    ln -sf "$0" "$HOME/.local/bin/uv"
    ;;
  uv)
    last=${*: -1}
    case $1 in
      venv)
        mkdir -p "$last/bin"
        printf '#!/bin/sh\nexec "%s" "$@"\n' "$STANDIN_PYTHON" >"$last/bin/python"
        chmod +x "$last/bin/python"
        ;;
      pip) test -e "${last%\[tpu\]}/pyproject.toml" ;;
    esac
    ;;
esac
