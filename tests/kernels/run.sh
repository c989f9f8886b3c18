#!/bin/sh
# run.sh EXTENT RELEASE...: boots Debian's own kernel of each release under qemu, in software (no KVM, so that it runs and
# takes the same everywhere), runs the jobs of jobs.EXTENT inside and prints a table. Exits with 1 when a job failed or did
# not run. A line "# without: MODULE..." in jobs.EXTENT takes modules from the kernel.
#
# But for "short", what the jobs gave is compared with results/RELEASE-EXTENT (without "-whole"), of which the table in
# tests/README.md is made; with UPDATE_MATRIX set it is written there. With JOBS set, a pattern of grep -E, only jobs with such
# names are run, and what is known of others stays. Needs the test programs built (`cargo nextest run --workspace --no-run`),
# and what deploy/setup-debian.sh installs. SLUICE names another binary than that build's: one of a release takes two thirds of
# the processor time. Kernels and each boot's console are left in target/kernels. Of several releases as many are booted at a
# time as there are processors, and what each prints stays together.
set -eu

here=$(dirname "$(readlink -f "$0")")
top=$(readlink -f "$here/../..")
target=${CARGO_TARGET_DIR:-$top/target}
folder=$target/kernels
extent=$1
jobs=$here/jobs.$extent
shift
mkdir -p "$folder"
if [ $# -gt 1 ]; then
    # shellcheck disable=SC2016 # for the inner shell
    printf '%s\n' "$@" | xargs -P "$(nproc)" -I RELEASE sh -c '
        "$0" "$1" "$2" > "$3" 2>&1; code=$?; cat "$3"; rm "$3"; exit $code' "$0" "$extent" RELEASE "$folder/RELEASE-$extent.told" || exit 1
    exit
fi
release=$1
of=$release-$extent
[ "$extent" != whole ] || of=$release
WITHOUT=$(sed -n 's/^# without: //p' "$jobs")
export WITHOUT

# Several of these may run at a time.
files=$(mktemp -d "$folder/files.XXXXXX")
trap 'rm -rf "$files"' EXIT
cp "$jobs" "$files/jobs"
echo "${JOBS:-.}" > "$files/only"
ln -s "${SLUICE:-$target/debug/sluice}" "$files/sluice"
# The test programs of the jobs, each by its package and its own name: suite-admission.
needed=$(sed -n 's/^ *tests "\([^"]*\)" [0-9]* \([^ ]*\).*/\1\t\2/p' "$jobs" | grep -E "${JOBS:-.}" | cut -f 2 | sort -u || true)
if [ -n "$needed" ]; then
    cargo nextest list --locked --workspace --list-type binaries-only --message-format json |
        python3 -c '
import json, sys
for name, binary in json.load(sys.stdin)["rust-binaries"].items():
    print(name.replace("::", "-"), binary["binary-path"])
' > "$files/.programs"
    for name in $needed; do
        path=$(sed -n "s/^$name //p" "$files/.programs")
        [ -n "$path" ] || { echo "run.sh: there is no test program $name" >&2; exit 1; }
        ln -s "$path" "$files/$name"
    done
fi

# The machine's clock counts its instructions, four nanoseconds each, and jumps over what would be spent asleep. So waits are
# free, and a host that is busy or stands still makes it late for nothing. Such a clock goes with one processor only.
clock="-accel tcg,thread=single -icount shift=2,sleep=off -smp 1"
# What protects memory from other programs and from leftovers is dear in software and does not bear on the network, and so is
# copying byte by byte. qemu finds its translation of a program again only where that is loaded at the same address: with
# addresses by chance it spends most of its time translating, and takes three times as long.
processor=max,-la57,-smap,-smep,-erms,-fsrm
cheaper="mitigations=off apparmor=0 audit=0 init_on_alloc=0 nowatchdog norandmaps"
console=$folder/$of.console
initramfs=$folder/$of.initramfs
"$here/fetch.sh" "$release" "$folder"
"$here/initramfs.sh" "$folder/$release" "$initramfs" "$files"/*
# shellcheck disable=SC2086 # a list of arguments
timeout 14400 qemu-system-x86_64 $clock -cpu "$processor" -m 3072 -nographic -no-reboot -net none \
    -kernel "$folder/$release/boot/vmlinuz-$(cat "$folder/$release/version")" -initrd "$initramfs" \
    -append "console=ttyS0 quiet panic=-1 no_timer_check $cheaper rdinit=/init" < /dev/null > "$console.raw" 2>&1 || true
rm -f "$initramfs"
tr -d '\r' < "$console.raw" > "$console"
rm -f "$console.raw"

tab=$(printf '\t')
failed=0
printf '%-10s %-22s %-60s %-8s %s\n' release kernel job result seconds
results=$folder/$of.results
kernel=$(sed -n "s/^KERNEL$tab//p" "$console" | head -n 1)
# The version's end changes with every repair of a kernel.
printf 'kernel\t%s\n' "$(echo "$kernel" | cut -d . -f 1,2)" > "$results"
sed -n "s/^FACT$tab//p" "$console" >> "$results"
sed -n "s/^RESULT$tab//p" "$console" > "$results.told"
if ! grep -q '^END$' "$console"; then
    printf '%-10s %-22s %-60s %s\n' "$release" "${kernel:-?}" "the whole" FAILED
    tail -n 40 "$console" >&2
    failed=1
fi
while IFS="$tab" read -r job code seconds; do
    result=yes
    if [ "$code" -ne 0 ]; then
        result=FAILED
        failed=1
        sed -n "/^BEGIN$tab$job\$/,/^RESULT$tab$job$tab/p" "$console" | tail -n 80 >&2
    fi
    printf '%s\t%s\n' "$job" "$result" >> "$results"
    printf '%-10s %-22s %-60s %-8s %s\n' "$release" "$kernel" "$job" "$result" "$seconds"
done < "$results.told"
rm -f "$results.told"
if [ "$extent" != short ]; then
    kept=$here/results/$of
    if [ -n "${JOBS:-}" ] && [ -e "$kept" ]; then
        # Rows that were not run now are as they were; a new one is the last.
        awk -F '\t' 'NR == FNR { now[$1] = $0; order[++count] = $1; next }
            $1 in now { print now[$1]; delete now[$1]; next } { print }
            END { for (i = 1; i <= count; i++) if (order[i] in now) print now[order[i]] }' \
            "$results" "$kept" > "$results.all"
        mv "$results.all" "$results"
    fi
    [ -z "${UPDATE_MATRIX:-}" ] || grep -v "${tab}FAILED\$" "$results" > "$kept"
    if ! diff "$kept" "$results"; then
        echo "results/$of is not what the jobs gave; UPDATE_MATRIX=1 writes it" >&2
        failed=1
    fi
fi
exit $failed
