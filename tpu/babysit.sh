# shellcheck shell=bash
# tpu/vm.sh babysit: one slice after another until the program has finished.

strikes=3 # times that a slice which should be there may not answer
verdict='' workers='' ready='' best=0 failed=0

rehearse() { # what babysit runs where nothing goes wrong
  look && create && wait_active
  pack && push && setup && start
  echo '# until no worker says running:'
  worker all status
  [ -z "$then_delete" ] || remove
}

babysit() {
  local known
  trap interrupted INT TERM
  pack # once: all attempts run the same code
  while :; do
    known=$best verdict=lost
    if bring_up; then watch; fi
    case $verdict in
      finished) finish 0 "finished after $(duration "$SECONDS"): $run_dir" ;;
      mend) finish 2 "error: $(message)" ;;
      lost) say "$name is lost: $(condition)" ;;
      *) show_logs 15 ;;
    esac
    count "$known"
    # A crash that repeats may be the machine's: the next attempt gets another one.
    if [ "$verdict" = lost ] || [ "$failed" -ge 3 ]; then
      persist "deleting $name" remove
    fi
  done
}

interrupted() {
  say ''
  say "watching has ended, $name goes on and costs money: the same command watches" \
    "again; tpu/vm.sh delete --name $name --zone $zone ends it"
  exit 130
}

finish() { # CODE TEXT
  say "${*:2}"
  if [ -n "$then_delete" ]; then
    persist "deleting $name" remove
  else
    say "$name is still there and costs money:" \
      "tpu/vm.sh delete --name $name --zone $zone"
  fi
  exit "$1"
}

count() { # BEST-BEFORE: bounds the attempts that saved nothing; waits between them
  failed=$((failed + 1))
  [ "$best" -le "$1" ] || failed=0
  if [ "$failed" -ge "$attempts" ]; then
    local last=75
    [ "$verdict" != crashed ] || last=1
    finish "$last" "error: $verdict, attempt $failed of $attempts without a new" \
      "checkpoint; the last is of step $best"
  fi
  if [ "$failed" = 0 ]; then
    say "$verdict; going on from step $best"
  else
    pause "$failed" "$verdict, attempt $failed of $attempts without a new checkpoint"
  fi
}

bring_up() { # a slice with the program under way; fails where it is lost
  local since=$SECONDS
  persist "asking for $name" look
  if gone; then persist "deleting $name" remove && slice=ABSENT; fi
  while [ "$slice" = DELETING ]; do
    waiting "$since" "waiting for the old $name to be deleted"
    sleep "$poll"
    persist "asking for $name" look
  done
  if [ "$slice" = ABSENT ]; then ready='' && persist "creating $name" create; fi
  if [ "$slice" = ACTIVE ] && [ -z "$ready" ] && under_way; then return; fi
  [ "$slice" = ACTIVE ] || wait_active || return
  if [ -z "$ready" ]; then
    insist push && insist setup || return
    ready=1
  fi
  insist start
}

under_way() { # what an earlier babysit, or run, has started
  ask && [ "$(states)" = running ] || return
  local digest
  digest=$(bash "$here/worker.sh" digest "${program[@]}")
  ! grep ' running ' <<<"$workers" | grep -qv " $digest\$" ||
    fail "$name: another program is under way: tpu/vm.sh stop, or another --name"
  say "$name: the program is under way"
}

gone() { # what gcloud says of a slice that will not come back
  case $slice in FAILED | SUSPENDING | SUSPENDED) return 0 ;; esac
  case $node in
    PREEMPTED | TERMINATED | STOPPING | STOPPED | DELETING | HIDING | HIDDEN)
      return 0
      ;;
  esac
  [ "$slice" = ACTIVE ] && [ "$node" = ABSENT ]
}

insist() { # COMMAND…: on the workers; fails where the slice is lost
  local struck=0 status
  say "$name: $1"
  while :; do
    status=0
    "$@" || status=$?
    [ "$status" != 0 ] || return 0
    if [ "$status" = 2 ] || hopeless; then verdict=mend && return 1; fi
    struck=$((struck + 1))
    lost "$struck" && return 1
    pause "$struck" "$1 failed: $(reason)"
  done
}

lost() { # STRUCK: by gcloud's word, or because it has not answered so often
  cp "$scratch/stderr" "$scratch/kept"
  persist "asking for $name" look
  cp "$scratch/kept" "$scratch/stderr"
  gone || [ "$slice" != ACTIVE ] || [ "$1" -ge "$strikes" ]
}

ask() { # sets workers: their lines of status
  workers=$(worker all status) || return
  workers=$(printf '%s\n' "$workers" | grep '^worker ') || return
  local steps
  steps=$(awk '$5 > most { most = $5 } END { print most + 0 }' <<<"$workers")
  [ "$steps" -le "$best" ] || best=$steps
}

states() { # running where any is, else ended, else idle
  local state
  for state in running ended; do
    if grep -q "^worker [^ ]* $state " <<<"$workers"; then echo "$state" && return; fi
  done
  echo idle
}

watch() { # until the program has ended on all workers, or the slice is lost
  local since=$SECONDS struck=0
  while :; do
    sleep "$poll"
    if ask; then
      struck=0
      [ "$(states)" = running ] || break
      waiting "$since" "$name runs, checkpoint of step $best"
    else
      struck=$((struck + 1))
      if lost "$struck"; then verdict=lost && return; fi
      say "$name does not answer ($struck of $strikes): $(reason)"
    fi
  done
  judge
}

judge() { # the verdict on all workers' exit codes; docs/resuming.md has what they mean
  local codes
  codes=$(awk '{ print $4 }' <<<"$workers")
  : >"$scratch/stderr"
  if ! grep -qvx 0 <<<"$codes"; then verdict=finished
  elif grep -qx 2 <<<"$codes"; then verdict=mend
  # -: has not begun; 130 and 143: ended by a signal before there was a step to save.
  elif ! grep -qvxE '0|75|130|143|-' <<<"$codes"; then verdict=stopped
  else verdict=crashed; fi
}

message() { # what a person has to mend: what gcloud says, or else the program
  if [ -s "$scratch/stderr" ]; then reason && return; fi
  worker all message | sort -u | grep . || worker all tail 5
}

show_logs() { # LINES
  worker all tail "$1" >&2 || say "no logs: $(reason)"
}
