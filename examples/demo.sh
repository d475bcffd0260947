#!/usr/bin/env bash
# What a user would type, each command printed before it runs, with the time of each part at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
out=runs/demo-$(date +%Y%m%d-%H%M%S)
times=()

# run LABEL COMMAND...: print the command as it would be typed, run it, note its time.
run() {
  local label=$1 shown="" word start=$SECONDS
  shift
  for word in "$@"; do
    case $word in *[[:space:]]*|*[^[:ascii:]]*) word="\"$word\"" ;; esac
    shown+="$word "
  done
  printf '\n\033[1m$ %s\033[0m\n' "$shown"
  "$@" < /dev/null
  times+=("$(printf '%4d s  %s' $((SECONDS - start)) "$label")")
}

[ -f .venv/setup-seconds ] && times+=("$(printf '%4d s  setting up .venv (when it was made)' "$(cat .venv/setup-seconds)")")

run "bring the model" instructrec models fetch smollm2-135m
run "check" instructrec check examples/support.tsv --test examples/test_wordings.tsv --test examples/test_matters.tsv --show 2
run "tune" instructrec tune examples/tune.yaml --out "$out"
run "evaluate before and after, report" instructrec evaluate "$out" examples/test_wordings.tsv examples/test_matters.tsv
while IFS= read -r question; do
  run "answer: $question" instructrec run "$out" "$question"
done < examples/ask.txt

printf '\nTime of each part:\n'
printf '%s\n' "${times[@]}"
printf '\nReport: %s\n' "$PWD/$out/report.html"
printf 'Next:   .venv/bin/instructrec chat %s\n' "$out"
