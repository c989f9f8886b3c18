#!/bin/sh
# run.sh short|whole RELEASE...: boots Debian's own kernel of each release under qemu, in software (no KVM, so that it runs
# and takes the same everywhere), runs jobs inside and prints a table. Exits with 1 when a job failed or did not run.
#
# With "whole" what the jobs gave is compared with results/RELEASE, of which the table in tests/README.md is made; with
# UPDATE_MATRIX set it is written there. Needs the test programs built (`cargo nextest run --workspace --no-run`), and what
# deploy/setup-debian.sh installs. Kernels and each boot's console are left in target/kernels.
set -eu

here=$(dirname "$(readlink -f "$0")")
top=$(readlink -f "$here/../..")
target=${CARGO_TARGET_DIR:-$top/target}
folder=$target/kernels
extent=$1
jobs=$here/jobs.$extent
shift
mkdir -p "$folder"

files=$folder/files
rm -rf "$files"
mkdir -p "$files"
cp "$jobs" "$files/jobs"
ln -s "$target/debug/sluice" "$files/sluice"
# The test programs that the jobs name, each by its package and its own name: suite-admission.
if grep -q '^tests ' "$jobs"; then
    cargo nextest list --locked --workspace --list-type binaries-only --message-format json |
        python3 -c '
import json, sys
for name, binary in json.load(sys.stdin)["rust-binaries"].items():
    print(name.replace("::", "-"), binary["binary-path"])
' > "$folder/programs"
    while read -r name path; do
        if grep -qw -- "$name" "$jobs"; then
            ln -s "$path" "$files/$name"
        fi
    done < "$folder/programs"
fi

# On a busy machine the emulated timer is late, which a kernel may take for a broken one when it boots (no_timer_check).
boot() { # release
    console=$folder/$1.console
    "$here/fetch.sh" "$1" "$folder"
    "$here/initramfs.sh" "$folder/$1" "$folder/$1.initramfs" "$files"/*
    timeout 3600 qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 3072 -nographic -no-reboot -net none \
        -kernel "$folder/$1/boot/vmlinuz-$(cat "$folder/$1/version")" -initrd "$folder/$1.initramfs" \
        -append "console=ttyS0 quiet panic=-1 no_timer_check rdinit=/init" < /dev/null > "$console.raw" 2>&1 || true
    rm -f "$folder/$1.initramfs"
    tr -d '\r' < "$console.raw" > "$console"
    rm -f "$console.raw"
}

tab=$(printf '\t')
failed=0
printf '%-10s %-22s %-42s %-8s %s\n' release kernel job result seconds
for release in "$@"; do
    boot "$release"
    console=$folder/$release.console
    results=$folder/$release.results
    kernel=$(sed -n "s/^KERNEL$tab//p" "$console" | head -n 1)
    # The version's end changes with every repair of a kernel.
    printf 'kernel\t%s\n' "$(echo "$kernel" | cut -d . -f 1,2)" > "$results"
    sed -n "s/^FACT$tab//p" "$console" >> "$results"
    sed -n "s/^RESULT$tab//p" "$console" > "$results.told"
    if ! grep -q '^END$' "$console"; then
        printf '%-10s %-22s %-42s %s\n' "$release" "${kernel:-?}" "the whole" FAILED
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
        printf '%-10s %-22s %-42s %-8s %s\n' "$release" "$kernel" "$job" "$result" "$seconds"
    done < "$results.told"
    rm -f "$results.told"
    if [ "$extent" = whole ] && [ $failed -eq 0 ]; then
        [ -z "${UPDATE_MATRIX:-}" ] || cp "$results" "$here/results/$release"
        if ! diff "$here/results/$release" "$results"; then
            echo "results/$release is not what the jobs gave; UPDATE_MATRIX=1 writes it" >&2
            failed=1
        fi
    fi
done
exit $failed
