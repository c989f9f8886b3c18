#!/bin/sh
# Builds deploy/Dockerfile for real, where there is neither a container engine nor a registry, and leaves the image's
# root file system in FOLDER/root: buildah needs no daemon, its chroot isolation no namespaces, and the images that
# the Dockerfile starts from are made here under their names: Debian's from Debian's archive, and Rust's of that with
# this machine's toolchain. All of it is in FOLDER; nothing of it is published.
set -eu

folder=${1:?usage: image.sh FOLDER}
top=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
say() { echo "image: $*"; }
fail() { echo "image: $*" >&2; exit 1; }
[ "$(id -u)" -eq 0 ] || fail "root is needed: files of the images belong to it"
export TMPDIR="$folder/tmp"
rm -rf "$folder/root" "$TMPDIR"
mkdir -p "$TMPDIR"
container() { buildah --storage-driver vfs --root "$folder/store" --runroot "$folder/run" "$@"; }
trap 'rm -rf "$TMPDIR"' EXIT

# name of the image, of which Debian release
debian() {
    container inspect --type image "$1" >/dev/null 2>&1 && return
    say "making $1 from Debian $2"
    mmdebstrap --quiet --variant=minbase --include=ca-certificates "$2" "$TMPDIR/debian.tar"
    # As mounts they are the build's business.
    mkdir "$TMPDIR/debian"
    tar -C "$TMPDIR/debian" --exclude './dev/*' -xf "$TMPDIR/debian.tar"
    made=$(container from scratch)
    container add --quiet "$made" "$TMPDIR/debian" / >/dev/null
    container config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd bash "$made"
    container commit --quiet --rm "$made" "$1" >/dev/null
    rm -rf "$TMPDIR/debian" "$TMPDIR/debian.tar"
}

# name of the image, of the image it is made of, version of Rust
rust() {
    container inspect --type image "$1" >/dev/null 2>&1 && return
    here=$(rustc --version | cut -d ' ' -f 2)
    case $here in "$3" | "$3".*) ;; *) fail "the Dockerfile is built with Rust $3, and here is $here" ;; esac
    say "making $1 with this machine's Rust $here"
    made=$(container from "$2")
    sysroot=$(rustc --print sysroot)
    for part in bin lib libexec; do
        [ ! -e "$sysroot/$part" ] || container add --quiet "$made" "$sysroot/$part" "/usr/local/rust/$part" >/dev/null
    done
    # Whoever signs for the registry of crates here signs for it there.
    container add --quiet "$made" /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt >/dev/null
    container config --env PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        --env CARGO_HOME=/usr/local/cargo "$made"
    container commit --quiet --rm "$made" "$1" >/dev/null
}

# The last stage's image is the one that others can be made of.
for base in $(sed -n 's/^FROM \([^ ]*\).*/\1/p' "$top/deploy/Dockerfile" | tac); do
    case $base in
        debian:*-slim) plain=localhost/$base; release=${base#debian:}; debian "$plain" "${release%-slim}" ;;
        rust:*-slim-*) version=${base#rust:}; rust "localhost/$base" "$plain" "${version%%-*}" ;;
        *) fail "the Dockerfile starts from $base, which this script does not know how to make" ;;
    esac
done

say "building deploy/Dockerfile"
crates=${CARGO_HOME:-$HOME/.cargo}/registry
mkdir -p "$crates"

container bud --isolation chroot --pull=never --layers=false --ignorefile "$top/.dockerignore" \
    --volume "$crates:/usr/local/cargo/registry" --tag localhost/sluice:check --file "$top/deploy/Dockerfile" "$top"

made=$(container from localhost/sluice:check)
mounted=$(container mount "$made")
mkdir "$folder/root"
cp -a "$mounted/." "$folder/root"
container inspect --type image localhost/sluice:check > "$folder/image.json"
container rm "$made" >/dev/null
say "the root file system has $(du -sm "$folder/root" | cut -f 1) MiB, of which $(du -sm "$folder/root/usr/local/bin/sluice" | cut -f 1) MiB are sluice"
