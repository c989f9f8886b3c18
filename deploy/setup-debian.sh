#!/bin/sh
# Installs the Debian packages that building, the lab and the tests need and this machine lacks.
set -eu

missing=
need() { # command, package
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] || missing="$missing $2"
}
need cc gcc
need nft nftables
need iptables-nft iptables
need ip iproute2
need conntrack conntrack
need sysctl procps
need setpriv util-linux

[ -n "$missing" ] || exit 0
echo "installing:$missing"
sudo=
[ "$(id -u)" -eq 0 ] || sudo=sudo
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
# shellcheck disable=SC2086 # a list of package names
$sudo apt-get install -y -qq --no-install-recommends $missing
