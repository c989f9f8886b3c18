#!/bin/sh
# Installs the Debian packages that building, the lab and the tests need and this machine lacks.
# With "test" also what only the tests need, with "bench" the proxies that Sluice is measured beside, with "fuzz" what
# libFuzzer is compiled with, with "kernels" what boots other kernels, with "image" what builds an image.
set -eu

missing=
need() { # command, package
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] || missing="$missing $2"
}
need cc gcc
need nft nftables
need iptables-nft iptables
need ipset ipset
need ip iproute2
need conntrack conntrack
need sysctl procps
need setpriv util-linux
need sqlite3 sqlite3
if [ "${1:-}" = test ]; then
    need git git
    need python3 python3
    python3 -m pip --version >/dev/null 2>&1 || missing="$missing python3-pip"
    need runc runc
    need mmdebstrap mmdebstrap
    need promtool prometheus
    need mkfs.ext4 e2fsprogs
    [ -x /lib/systemd/systemd-journald ] || missing="$missing systemd"
fi
if [ "${1:-}" = image ]; then
    need buildah buildah
    need mmdebstrap mmdebstrap
fi
if [ "${1:-}" = fuzz ]; then
    need c++ g++
fi
if [ "${1:-}" = kernels ]; then
    need python3 python3
    need qemu-system-x86_64 qemu-system-x86
    need busybox busybox-static
    need cpio cpio
    need depmod kmod
    need strip binutils
    need xz xz-utils
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing="$missing debian-archive-keyring"
fi
if [ "${1:-}" = bench ]; then
    need haproxy haproxy
    need nginx nginx
    [ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || missing="$missing libnginx-mod-stream"
    need strace strace
fi

[ -n "$missing" ] || exit 0
echo "installing:$missing"
sudo=
[ "$(id -u)" -eq 0 ] || sudo=sudo
export DEBIAN_FRONTEND=noninteractive
case "${1:-}" in bench | test) programs_only=y ;; *) programs_only= ;; esac
if [ -n "$programs_only" ] && [ ! -e /usr/sbin/policy-rc.d ]; then
    # Only the programs are wanted: their packages must not start services on this machine (invoke-rc.d(8)).
    printf '#!/bin/sh\nexit 101\n' | $sudo tee /usr/sbin/policy-rc.d >/dev/null
    $sudo chmod +x /usr/sbin/policy-rc.d
    trap '$sudo rm -f /usr/sbin/policy-rc.d' EXIT
fi
$sudo apt-get update -qq
# shellcheck disable=SC2086 # a list of package names
$sudo apt-get install -y -qq --no-install-recommends $missing
