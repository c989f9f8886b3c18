#!/bin/sh
# fetch.sh RELEASE FOLDER: Debian's own kernel of a release, unpacked into FOLDER/RELEASE (boot/vmlinuz-*, lib/modules/*),
# and the same release's nft, iptables, ipset, ip and conntrack with their libraries, into FOLDER/RELEASE/tools.
#
# From deb.debian.org alone, by apt with lists, state and sources of its own under FOLDER/apt: this machine's are neither
# read nor changed. What is there already is not fetched again; remove the folder to take a newer one.
set -eu

release=$1
folder=$2
apt_root=$folder/apt/$release
unpacked=$folder/$release
keys=/usr/share/keyrings

tools="nftables iptables ipset iproute2 conntrack"
if [ "$(cat "$unpacked/fetched" 2>/dev/null)" = "$tools" ]; then
    exit 0
fi
# The machine's own release needs nothing else; others' keys come with the same package.
key=$keys/debian-archive-keyring.gpg
[ -e "$key" ] || { echo "fetch.sh: no $key: apt-get install debian-archive-keyring" >&2; exit 1; }

mkdir -p "$apt_root/lists/partial" "$apt_root/cache/archives/partial" "$apt_root/etc" "$apt_root/download"
: > "$apt_root/status"
cat > "$apt_root/etc/sources.list" <<SOURCES
deb [signed-by=$key] http://deb.debian.org/debian $release main
deb [signed-by=$key] http://deb.debian.org/debian-security $release-security main
SOURCES

own_apt() { # command, arguments
    command=$1
    shift
    "$command" \
        -o "Dir::State=$apt_root" -o "Dir::State::Lists=$apt_root/lists" -o "Dir::State::status=$apt_root/status" \
        -o "Dir::Cache=$apt_root/cache" -o "Dir::Etc::SourceList=$apt_root/etc/sources.list" \
        -o "Dir::Etc::SourceParts=/dev/null" -o "Dir::Etc::Preferences=/dev/null" \
        -o "Dir::Etc::PreferencesParts=/dev/null" -o "Dir::Etc::Parts=/dev/null" \
        -o APT::Architecture=amd64 -o APT::Architectures::=amd64 -o APT::Sandbox::User=root \
        -o Acquire::Retries=3 -o Acquire::Check-Valid-Until=false -q "$@"
}
own_apt apt-get -qq update

# The kernel that the release's meta package leads to, such as linux-image-6.1.0-40-amd64.
package=$(own_apt apt-cache show linux-image-amd64 | sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p' | head -n 1)
[ -n "$package" ] || { echo "fetch.sh: $release names no kernel" >&2; exit 1; }
(cd "$apt_root/download" && own_apt apt-get -qq download "$package")
# One file: a name with an epoch or a build's suffix is written with other characters.
deb=$(find "$apt_root/download" -name "${package}_*.deb" | head -n 1)
# Nothing counts as installed, so their libraries come along.
# shellcheck disable=SC2086 # a list of package names
own_apt apt-get -qq install --download-only --no-install-recommends $tools

rm -rf "$unpacked" "$unpacked.new"
mkdir -p "$unpacked.new/tools"
dpkg-deb -x "$deb" "$unpacked.new"
for package in "$apt_root/cache/archives"/*.deb; do dpkg-deb -x "$package" "$unpacked.new/tools"; done
rm -f "$deb" "$apt_root/cache/archives"/*.deb
basename "$(echo "$unpacked.new"/boot/vmlinuz-*)" | sed 's/^vmlinuz-//' > "$unpacked.new/version"
echo "$tools" > "$unpacked.new/fetched"
mv "$unpacked.new" "$unpacked"
