# shellcheck shell=bash
# Sourced by demo.sh and train_bundled.sh: steps that are taken once, with their times. The caller
# sets `folder`, where all results lie, and `steps`, their number.
# Works in the bash 3.2 of macOS.
number=0
again=""
running=""
SECONDS=0

# The time of an interrupted step is kept too: a step's time is that of all its attempts.
keep_time() {
  if [ -n "$running" ]; then printf '%s\t%s\n' "$running" $((SECONDS - began)) >>"$folder/times.tsv"; fi
  running=""
}
trap keep_time EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# step NAME TITLE RESULT COMMAND...: runs the command, unless it finished before, its result still
# exists and no earlier step was run again. Marking the step as finished comes last.
step() {
  local name=$1 title=$2 result=$folder/$3
  shift 3
  number=$((number + 1))
  printf '\n=== %d/%d  %s  (%s since the start)\n' "$number" "$steps" "$title" "$(clock $SECONDS)"
  if [ -z "$again" ] && [ -e "$folder/done/$name" ] && [ -e "$result" ]; then
    echo "Done before: $result"
    return
  fi
  again=yes
  rm -f "$folder/done/$name"
  running=$name
  began=$SECONDS
  "$@"
  keep_time
  mkdir -p "$folder/done"
  touch "$folder/done/$name"
  echo "Took $(clock $((SECONDS - began)))"
}

stopped() {  # stopped STATUS
  echo "Training ended early; start this command again to resume." >&2
  exit "$1"
}
