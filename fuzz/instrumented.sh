#!/bin/sh
# instrumented.sh RUSTC ARGUMENT...: how cargo compiles the workspace's own crates for fuzzing (RUSTC_WORKSPACE_WRAPPER):
# every edge and every comparison is told to libFuzzer. Dependencies are those of the debug build, as they stand there.
set -eu

exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0
