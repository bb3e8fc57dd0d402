# shellcheck shell=bash
# What tpu/vm.sh asks of gcloud, and how it waits. Sourced by it.

code=rlhf_jax # the pushed tree, in each worker's home
slice='' node='' packed=''

say() { # on a terminal in place of the line that waits
  [ ! -t 2 ] || printf '\r\033[K' >&2
  printf '%s\n' "$*" >&2
}

fail_as() { # EXIT-CODE TEXT
  say "error: ${*:2}"
  exit "$1"
}

fail() { fail_as 2 "$@"; }

duration() { # SECONDS
  if [ "$1" -ge 3600 ]; then printf '%d h %d min' $(($1 / 3600)) $(($1 / 60 % 60))
  elif [ "$1" -ge 60 ]; then printf '%d min %d s' $(($1 / 60)) $(($1 % 60))
  else printf '%d s' "$1"; fi
}

condition() { # what look has found
  if [ "$slice" = ACTIVE ]; then echo "ACTIVE, machines $node"; else echo "$slice"; fi
}

waiting() { # SINCE WHAT: one line, which a terminal shows in place of the last one
  local text
  text="${*:2} (for $(duration $((SECONDS - $1))))"
  if [ -t 2 ]; then printf '\r\033[K%s' "$text" >&2; else say "$text"; fi
}

quoted() { # the arguments, as a shell reads them back
  local argument between=
  for argument; do
    case $argument in
      '' | *[!A-Za-z0-9_./:=@%+,-]*)
        argument="'$(printf %s "$argument" | sed "s/'/'\\\\''/g")'" ;;
    esac
    printf '%s%s' "$between" "$argument"
    between=' '
  done
}

tpus() { # gcloud compute tpus …; what it says on stderr is kept for `reason`
  local whole=(gcloud compute tpus "$@" --zone "$zone")
  [ -z "$project" ] || whole+=(--project "$project")
  if [ -n "$dry_run" ]; then
    quoted "${whole[@]}" && echo
  else
    "${whole[@]}" 2>"$scratch/stderr" </dev/null
  fi
}

said() { grep -qE "$1" "$scratch/stderr"; }

reason() { # gcloud's first error, or a worker's, or the last line
  local line
  if said 'worker.sh: No such file'; then
    printf 'nothing has been pushed: tpu/vm.sh push, then setup' && return
  fi
  line=$(grep -m 1 -iE '^error:' "$scratch/stderr" || tail -n 1 "$scratch/stderr")
  printf %s "${line#[eE][rR][rR][oO][rR]: }"
}

hopeless() { # no other try will end otherwise
  said 'PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|SERVICE_DISABLED' ||
    said 'active account|auth login|ssh-add|Failed to find attribute|worker.sh: No such'
}

pause() { # HOW-MANY-FAILURES WHAT: waits, each time twice as long
  local seconds
  seconds=$(awk -v s="$backoff" -v n="$1" \
    'BEGIN { s *= 2 ^ (n - 1); print (s > 600 ? 600 : s) }')
  say "${*:2}; again in $seconds s"
  sleep "$seconds"
}

persist() { # WHAT COMMAND…: until it works; exit code 2 of a worker ends it, too
  local what=$1 tried=0 status
  shift
  while :; do
    status=0
    "$@" || status=$?
    [ "$status" != 0 ] || return 0
    if [ "$status" = 2 ] || hopeless; then fail "$what: $(reason)"; fi
    tried=$((tried + 1))
    [ "$tried" -lt "$tries" ] || fail_as 69 "$what: failed $tried times: $(reason)"
    pause "$tried" "$what failed: $(reason)"
  done
}

missing() { said 'NOT_FOUND|was not found'; }

state_of() { # COMMAND FIELD: its state, ABSENT where there is none
  if tpus "$1" describe "$name" --format "value($2)"; then return; fi
  missing && echo ABSENT
}

look() { # sets slice, the request's state, and node, the machines'
  if [ -n "$dry_run" ]; then
    state_of queued-resources state.state && state_of tpu-vm state
    return
  fi
  slice=$(state_of queued-resources state.state) || return
  node=ABSENT
  if [ "$slice" = ACTIVE ]; then node=$(state_of tpu-vm state) || return; fi
}

create() {
  local more=() source=$disk
  [ -z "$spot" ] || more+=(--spot)
  [ -z "$valid_until_duration" ] ||
    more+=(--valid-until-duration "$valid_until_duration")
  if [ -n "$disk" ]; then
    [[ $disk = */* ]] || source="projects/$project/zones/$zone/disks/$disk"
    more+=(--data-disk "source=$source,mode=read-write")
  fi
  tpus queued-resources create "$name" --node-id "$name" --accelerator-type "$type" \
    --runtime-version "$runtime" ${more[@]+"${more[@]}"} || said ALREADY_EXISTS
}

remove() { # one that is gone already is as good
  tpus queued-resources delete "$name" --force --quiet || missing
}

wait_active() { # until the slice is there; fails where it will never be
  local since=$SECONDS
  [ -z "$dry_run" ] || { echo '# until it says ACTIVE:' && look && return; }
  while persist "asking for $name" look; do
    case $slice in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED | ABSENT) return 1 ;;
    esac
    waiting "$since" "waiting for $name to be ACTIVE: $slice"
    sleep "$poll"
  done
}

# A connection that says nothing for two minutes is given up: the VM may be gone.
on_worker() { # WHICH COMMAND-LINE
  tpus tpu-vm ssh "$name" --worker="$1" --quiet --ssh-flag=-oServerAliveInterval=30 \
    --ssh-flag=-oServerAliveCountMax=4 --command "$2"
}

worker() { # WHICH what tpu/worker.sh does there
  on_worker "$1" "$(quoted bash "$code/tpu/worker.sh" "${@:2}")"
}

pack() { # the working tree in one file: what is committed, changed and new
  local folder index tree
  folder=$(git rev-parse --git-dir 2>/dev/null) ||
    fail "push: expected a git checkout in $PWD: clone the repository"
  packed=$folder/$code-$name.tar.gz index=$folder/$code-$name.index
  if [ -n "$dry_run" ]; then
    echo "(export GIT_INDEX_FILE=$index && git add --all &&" \
      "git archive -o $packed \"\$(git write-tree)\")"
    return
  fi
  if ! tree=$(export GIT_INDEX_FILE=$index && git add --all && git write-tree) ||
    ! git archive -o "$packed" "$tree"; then
    fail "push: $packed: could not be written"
  fi
}

push() {
  tpus tpu-vm scp "$packed" "$name:$code.tar.gz" --worker=all --quiet || return
  on_worker all "rm -rf $code.new && mkdir $code.new && tar -xzf $code.tar.gz -C \
$code.new && bash $code.new/tpu/worker.sh place"
}

setup() {
  local from=(none)
  [ -z "$disk" ] || from=(disk)
  [ -z "$nfs" ] || from=(nfs "$nfs")
  worker all setup "$mount" "${from[@]}"
}

start() { # a pod's processes find one another; one host is alone
  local joins=auto
  ! one_host || joins=none
  worker all start "${run_dir:-none}" "${RLHF_COORDINATOR:-$joins}" "${program[@]}"
}
