#!/bin/sh
# run.sh short|whole RELEASE...: boots Debian's own kernel of each release under qemu, in software (no KVM, so that it runs
# and takes the same everywhere), runs jobs inside and prints a table. Exits with 1 when a job failed or none was run.
#
# Needs the test programs built (`cargo nextest run --workspace --no-run`), and what deploy/setup-debian.sh installs. Kernels, file
# systems and each boot's console are left in target/kernels.
set -eu

here=$(dirname "$(readlink -f "$0")")
top=$(readlink -f "$here/../..")
target=${CARGO_TARGET_DIR:-$top/target}
folder=$target/kernels
jobs=$here/jobs.$1
shift
mkdir -p "$folder"

files=$folder/files
rm -rf "$files"
mkdir -p "$files"
cp "$jobs" "$files/jobs"
ln -s "$target/debug/sluice" "$files/sluice"
# Only the test programs that the jobs name, each by its package and its own name: suite-admission.
wanted=$(sed -n 's/^tests [^ ]* [^ ]* [a-z]*-\([a-z_]*\).*/--test=\1/p' "$jobs")
if [ -n "$wanted" ]; then
    # shellcheck disable=SC2086 # a list of arguments
    cargo nextest list --locked --workspace $wanted --list-type binaries-only --message-format json |
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

boot() { # release
    console=$folder/$1.console
    "$here/fetch.sh" "$1" "$folder"
    "$here/initramfs.sh" "$folder/$1" "$folder/$1.initramfs" "$files"/*
    timeout 1800 qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 3072 -nographic -no-reboot -net none \
        -kernel "$folder/$1/boot/vmlinuz-$(cat "$folder/$1/version")" -initrd "$folder/$1.initramfs" \
        -append "console=ttyS0 quiet panic=-1 rdinit=/init" < /dev/null > "$console" 2>&1 || true
    rm -f "$folder/$1.initramfs"
    tr -d '\r' < "$console" > "$console.txt"
}

failed=0
printf '%-10s %-24s %-28s %-6s %s\n' release kernel job result seconds
for release in "$@"; do
    boot "$release"
    text=$folder/$release.console.txt
    kernel=$(sed -n 's/^KERNEL //p' "$text" | head -n 1)
    results=$(sed -n 's/^RESULT //p' "$text")
    if [ -z "$results" ] || ! grep -q '^END$' "$text"; then
        printf '%-10s %-24s %-28s %-6s\n' "$release" "${kernel:-?}" boot FAILED
        tail -n 40 "$text" >&2
        failed=1
    fi
    [ -z "$results" ] || while read -r job code seconds; do
        result=ok
        if [ "$code" -ne 0 ]; then
            result=FAILED
            sed -n "/^BEGIN $job\$/,/^RESULT $job /p" "$text" | tail -n 60 >&2
            touch "$folder/failed"
        fi
        printf '%-10s %-24s %-28s %-6s %s\n' "$release" "$kernel" "$job" "$result" "$seconds"
    done <<RESULTS
$results
RESULTS
done
if [ -e "$folder/failed" ]; then
    rm -f "$folder/failed"
    failed=1
fi
exit $failed
