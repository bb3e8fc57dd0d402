#!/usr/bin/env bash
# TPU slices by gcloud: create, push, setup, run, watch, delete. `tpu/vm.sh help`
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/.."
# shellcheck source=tpu/gcloud.sh
. "$here/gcloud.sh"
# shellcheck source=tpu/babysit.sh
. "$here/babysit.sh"

name=${RLHF_TPU_NAME-} zone=${RLHF_TPU_ZONE-} type=${RLHF_TPU_TYPE-}
project=${RLHF_TPU_PROJECT-} runtime=${RLHF_TPU_RUNTIME-} spot=${RLHF_TPU_SPOT-}
valid_until_duration=${RLHF_TPU_VALID_UNTIL_DURATION-}
disk=${RLHF_TPU_DISK-} nfs=${RLHF_TPU_NFS-} mount=${RLHF_TPU_MOUNT:-/mnt/rlhf}
poll=${RLHF_TPU_POLL:-30} backoff=${RLHF_TPU_BACKOFF:-30}
tries=${RLHF_TPU_TRIES:-12} attempts=${RLHF_TPU_ATTEMPTS:-5}
dry_run='' then_delete='' follow='' lines=50 program=() run_dir=''

usage() {
  cat <<'EOF'
tpu/vm.sh COMMAND [options] [-- program]

  create      asks for a slice and waits until it is there
  push        copies this working tree, less what git ignores, to every worker
  setup       mounts --disk or --nfs; Python 3.12 and what the pushed code needs
  run -- …    starts a program on every worker; it stays when the connection goes
  status      the slice, and what the program does on each worker
  logs        the end of each worker's log; with --follow worker 0's as it grows
  stop        asks the program to save and to end
  babysit --  all of it: until the program has finished, on one slice after another
  delete      deletes the slice and its request; fine if there is none

settings, as an option or in the environment:
  --name      RLHF_TPU_NAME      of the slice and of its queued resource
  --zone      RLHF_TPU_ZONE      such as us-west4-a
  --project   RLHF_TPU_PROJECT   none: the one that gcloud is set to
  --type      RLHF_TPU_TYPE      such as v5litepod-1, v5litepod-16, v5p-16, v6e-16
  --runtime   RLHF_TPU_RUNTIME   none: the documented one of the type
  --spot      RLHF_TPU_SPOT=1    cheaper, and taken away at any time
  --valid-until-duration …       gives up the queue after, such as 6h
  --disk      RLHF_TPU_DISK      disk that outlives the slice; one host only
  --nfs       RLHF_TPU_NFS       HOST:/SHARE that all workers write to
  --mount     RLHF_TPU_MOUNT     where either is to be seen; /mnt/rlhf

  --dry-run      prints the commands, runs none
  --then-delete  babysit: deletes the slice however it ends
  --lines 50, --follow           logs

  RLHF_TPU_POLL=30      seconds between looks
  RLHF_TPU_BACKOFF=30   seconds after a first failure; doubles, up to 600
  RLHF_TPU_TRIES=12     of gcloud, before it is given up
  RLHF_TPU_ATTEMPTS=5   babysit: of the program, in a row, with no new checkpoint

babysit exits with 0: finished; 2: something to mend, the message says what;
1: crashed again and again; 75: ended early again and again; 69: gcloud fails.
EOF
}

parse() {
  local key
  while [ $# -gt 0 ]; do
    case $1 in
      --) shift && program=("$@") && return ;;
      --dry-run | --spot | --then-delete | --follow)
        key=${1#--} && printf -v "${key//-/_}" 1 && shift ;;
      --name | --zone | --project | --type | --runtime | --disk | --nfs | --mount | \
        --valid-until-duration | --lines)
        [ $# -gt 1 ] && [ "${2#--}" = "$2" ] || fail "$1: expected a value"
        key=${1#--} && printf -v "${key//-/_}" %s "$2" && shift 2 ;;
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
      *) fail "$1: no such option: tpu/vm.sh help lists them" ;;
    esac
  done
}

need() { # SETTING EXAMPLE
  [ -n "${!1}" ] || fail "--$1: expected one, such as $2; or set $(variable "$1")"
}

variable() { printf RLHF_TPU_%s "$(printf %s "$1" | tr a-z- A-Z_)"; }

check() {
  need name grpo-1
  need zone us-west4-a
  [[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    fail "--name $name: expected small letters, digits and hyphens, as in grpo-1"
  [[ $mount =~ ^/[A-Za-z0-9_./-]+$ ]] || fail "--mount $mount: expected /a/path"
  local number
  for number in lines poll backoff tries attempts; do
    [[ ${!number} =~ ^[0-9]+(\.[0-9]+)?$ ]] ||
      fail "$(variable "$number")=${!number}: expected a number"
  done
  [ -z "$disk" ] || [ -z "$nfs" ] || fail "--disk and --nfs: expected one of them"
  [ -z "$nfs" ] || [[ $nfs =~ ^[^:]+:/ ]] || fail "--nfs $nfs: expected HOST:/SHARE"
}

# https://cloud.google.com/tpu/docs/runtimes
check_type() {
  need type v5litepod-1
  local documented=
  case $type in
    v5litepod-*) documented=v2-alpha-tpuv5-lite ;;
    v5p-*) documented=v2-alpha-tpuv5 ;;
    v6e-*) documented=v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) documented=tpu-ubuntu2204-base ;;
  esac
  runtime=${runtime:-$documented}
  [ -n "$runtime" ] ||
    fail "--type $type: expected v5litepod-N, v5p-N, v6e-N or v4-N; or its --runtime"
  [ -z "$disk" ] || one_host ||
    fail "--disk $disk: one host alone can write to it, $type has several: use --nfs"
  [ -z "$disk" ] || [[ $disk = */* ]] || need project my-project
}

one_host() {
  case $type in
    v5litepod-[148] | v6e-[148] | v4-8 | v5p-8 | v2-8 | v3-8) return 0 ;;
  esac
  return 1
}

check_program() {
  [ ${#program[@]} -gt 0 ] ||
    fail "$command: expected a program after --, such as -- python -m experiments.sft"
  local i argument
  for ((i = 0; i < ${#program[@]}; i++)); do
    argument=${program[i]}
    case $argument in
      --run-dir=* | --run_dir=*) run_dir=${argument#*=} ;;
      --run-dir | --run_dir) run_dir=${program[i + 1]-} ;;
    esac
  done
  [[ $run_dir != *://* ]] ||
    fail "--run-dir $run_dir: expected a path, such as $mount/run: buckets are none"
}

do_create() {
  check_type
  persist "asking for $name" look
  [ -n "$dry_run" ] || [ "$slice" = ABSENT ] ||
    fail "--name $name: is there already ($slice): choose another, or delete it first"
  persist "creating $name" create
  wait_active || fail_as 1 "$name is $slice: tpu/vm.sh delete, then try again"
}

do_push() { pack && persist "pushing to $name" push; }
do_setup() { persist "setting up $name" setup; }

do_run() {
  need type v5litepod-1
  check_program
  persist "starting on $name" start
}

do_status() {
  persist "asking for $name" look
  [ -n "$dry_run" ] || echo "$name: $(condition)"
  if [ -n "$dry_run" ] || [ "$slice" = ACTIVE ]; then
    worker all status || fail_as 69 "$(reason)"
  fi
}

do_logs() {
  if [ -n "$follow" ]; then
    worker 0 follow "$lines"
  else
    worker all tail "$lines"
  fi || fail_as 69 "$(reason)"
}

do_stop() { worker all stop || fail_as 69 "$(reason)"; }

do_babysit() {
  check_type
  check_program
  [ -n "$disk$nfs" ] ||
    fail "babysit: expected --disk or --nfs, for a run directory that outlives a slice"
  [[ $run_dir = "$mount"/* ]] ||
    fail "--run-dir ${run_dir:-(none)}: expected a folder in $mount: what lies" \
      "elsewhere goes with the slice"
  case " ${program[*]} " in
    *" --resume "*) ;;
    *) program+=(--resume) ;; # a run that is not there yet it begins
  esac
  if [ -n "$dry_run" ]; then rehearse; else babysit; fi
}

do_delete() { persist "deleting $name" remove; }

command=${1:-help}
case $command in
  help | -h | --help) usage && exit ;;
  create | push | setup | run | status | logs | stop | babysit | delete) ;;
  *) fail "$command: no such command: tpu/vm.sh help lists them" ;;
esac
parse "${@:2}"
check
[ -n "$dry_run" ] || command -v gcloud >/dev/null ||
  fail "gcloud: not found: install it as https://cloud.google.com/sdk/docs/install says"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"do_$command"
