#!/usr/bin/env bash
# What tpu/vm.sh does on each worker of a slice. It is pushed with the code.
set -euo pipefail
code=$HOME/rlhf_jax environment=$HOME/venv run=$HOME/run

fail() { echo "error: $(hostname): $*" >&2 && exit 2; }

running() {
  [ -e "$run/pid" ] && [ ! -e "$run/exit" ] && kill -0 "$(cat "$run/pid")" 2>/dev/null
}

place() { # the tree that has come takes the old one's place; runs/ stays
  ! running || fail "a program is under way: tpu/vm.sh stop, then push"
  [ ! -d "$code/runs" ] || [ -e "$code.new/runs" ] || mv "$code/runs" "$code.new/"
  rm -rf "$code"
  mv "$code.new" "$code"
}

# Images have Ubuntu 22.04 and Python 3.10, and no venv; this program wants 3.11 or
# later. uv is one package for any pip, and brings a Python that leaves theirs alone.
install() {
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
  local uv=$HOME/.local/bin/uv
  [ -x "$environment/bin/python" ] || "$uv" venv --quiet --python 3.12 "$environment"
  "$uv" pip install --quiet --python "$environment/bin/python" "${code}[tpu]"
}

data_disk() { # the one disk without partitions; the boot disk has some
  lsblk -nrpo NAME,TYPE,PKNAME | awk '
    $2 == "disk" { whole[$1] }
    $2 == "part" { delete whole[$3] }
    END { for (disk in whole) print disk }'
}

mount_disk() { # MOUNT
  local device status=0
  device=$(data_disk)
  [ "$(printf %s "$device" | wc -w)" = 1 ] ||
    fail "--disk: expected one disk without partitions, found: ${device:-none}"
  sudo blkid -p "$device" >/dev/null || status=$?
  # 2: nothing at all is on it. Anything else is never formatted.
  [ "$status" != 2 ] || sudo mkfs.ext4 -q "$device"
  sudo mount "$device" "$1"
}

# Locks are each VM's own: a server would keep those of a VM that was taken away. And
# what one worker writes the others must see at once.
mount_nfs() { # MOUNT HOST:/SHARE; a new VM may still be installing its updates
  sudo apt-get -o DPkg::Lock::Timeout=600 -qq update
  sudo apt-get -o DPkg::Lock::Timeout=600 -qq -y install nfs-common >/dev/null
  sudo mount -t nfs -o vers=3,nolock,lookupcache=positive,actimeo=1 "$2" "$1"
}

setup() { # MOUNT KIND [SOURCE]
  if [ "$2" != none ] && ! mountpoint -q "$1"; then
    sudo mkdir -p "$1"
    "mount_$2" "$1" "${@:3}"
    [ -O "$1" ] || sudo chown -R "$(id -u):$(id -g)" "$1" # another VM's user was it
  fi
  install
  echo "$(hostname): $("$environment/bin/python" --version) is set up"
}

start() { # RUN-DIR COORDINATOR PROGRAM…
  if running; then # that of a connection which went before it could say so
    [ "$(digest "${@:3}")" = "$(cat "$run/digest")" ] ||
      fail "another program is under way: tpu/vm.sh stop"
    echo "$(hostname): runs already" && return
  fi
  [ -x "$environment/bin/python" ] || fail "no Python yet: tpu/vm.sh setup"
  mkdir -p "$run"
  rm -f "$run/exit"
  printf '%s\n' "$1" >"$run/dir"
  digest "${@:3}" >"$run/digest"
  cd "$code"
  export PATH="$environment/bin:$PATH" PYTHONUNBUFFERED=1
  [ "$2" = none ] || export RLHF_COORDINATOR=$2
  # In a session of its own: it stays when the connection goes.
  setsid nohup bash "$code/tpu/worker.sh" keep "${@:3}" >>"$run/log" 2>&1 </dev/null &
  echo $! >"$run/pid"
  echo "$(hostname): started"
}

keep() { # PROGRAM…: runs it and writes down how it ended; SIGTERM is passed on
  local child status again=1
  echo "== $(date -u +%FT%TZ) $*"
  "$@" &
  child=$!
  trap 'again=1; kill -TERM "$child" 2>/dev/null || true' TERM
  while [ -n "$again" ]; do
    again='' status=0
    wait "$child" || status=$?
  done
  echo "== $(date -u +%FT%TZ) exit code $status"
  echo "$status" >"$run/exit.new"
  mv "$run/exit.new" "$run/exit"
}

digest() { printf '%s\n' "$@" | cksum | tr ' ' -; }

saved() { # the last checkpoint's step; those of a run's stages are added up
  local dir
  dir=$(cat "$run/dir")
  cd "$code"
  { find "$dir" -maxdepth 4 -path '*/checkpoints/*' -prune 2>/dev/null || true; } |
    awk -F/ '
      $NF ~ /^[0-9]+$/ {
        step = $NF + 0
        sub("/[0-9]+$", "")
        if (step > last[$0]) last[$0] = step
      }
      END { for (stage in last) sum += last[stage]; print sum + 0 }'
}

status() { # worker HOST idle|running|ended CODE STEP DIGEST
  local state=running ended=-
  if [ ! -e "$run/pid" ]; then
    echo "worker $(hostname) idle - 0 -" && return
  elif ! running; then # without a code its keeper was killed, too
    state=ended ended=$(cat "$run/exit" 2>/dev/null || echo 137)
  fi
  echo "worker $(hostname) $state $ended $(saved) $(cat "$run/digest")"
}

message() { # the program's last error
  { grep '^error: ' "$run/log" || true; } | tail -n 1 | cut -c 8-
}

tail_log() { # LINES
  tail -n "$1" "$run/log" 2>/dev/null | sed "s/^/$(hostname): /"
}

stop() {
  if ! running; then echo "$(hostname): nothing runs" && return; fi
  kill -TERM "$(cat "$run/pid")"
  echo "$(hostname): asked to stop"
}

case $1 in
  place | setup | start | keep | status | stop | digest | message) "$@" ;;
  tail) tail_log "$2" ;;
  follow) exec tail -n "$2" -F "$run/log" ;;
  *) fail "worker.sh $1: no such command" ;;
esac
