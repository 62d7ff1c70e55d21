#!/bin/sh
# Grove on a machine without Node and without internet: python3 with torch 2.11 to 2.13 and g++ are enough.
#   ./run.sh doctor                                 what this machine has, and what is missing
#   ./run.sh grpo --config configs/8xa100.yaml      sft, eval, compare, sweep, ablation, generate, score, inspect, export, check-data, make-dataset, quickstart likewise
#   ./run.sh bench dispatch                         benchmarks
#   ./run.sh parity --device cuda                   every stage beside Hugging Face transformers, where python3 has it
#   ./run.sh selftest                               the tests that need a GPU; `selftest model/` picks others by name
# The first use builds the native addon against this machine's torch, into build/ beside this file.
set -e
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
PATH="$root/bin:$PATH"
export PATH
node="$root/bin/node"
tsx="$root/node_modules/tsx/dist/loader.mjs"

command=${1:---help}
[ $# -gt 0 ] && shift
case "$command" in
  doctor) exec "$node" "$root/scripts/doctor.mjs" "$@" ;;
  setup) exec "$node" "$root/scripts/setup.mjs" "$@" ;;
  --help | -h | help) exec "$node" --import "$tsx" "$root/src/cli/main.ts" --help ;;
esac
"$node" "$root/scripts/setup.mjs" --quiet
case "$command" in
  bench) exec "$node" --import "$tsx" "$root/bench/main.ts" "$@" ;;
  parity) exec "$node" --import "$tsx" "$root/scripts/parity/main.ts" "$@" ;;
  selftest) exec "$node" --import "$tsx" "$root/node_modules/vitest/selftest.js" "$@" ;;
  *) exec "$node" --import "$tsx" "$root/src/cli/main.ts" "$command" "$@" ;;
esac
