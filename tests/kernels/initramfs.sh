#!/bin/sh
# initramfs.sh KERNEL_FOLDER OUTPUT FILE...: a file system for one boot: busybox; nft, iptables, ipset, ip and conntrack of
# the kernel's own Debian release; its network modules, save those that WITHOUT names; and FILEs under /test. /init is this
# folder's `init`.
set -eu

here=$(dirname "$(readlink -f "$0")")
kernel=$1
output=$2
shift 2
version=$(cat "$kernel/version")
modules=$(find "$kernel" -path "*/lib/modules/$version" -prune | head -n 1)

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/bin" "$root/sbin" "$root/test" "$root/proc" "$root/sys" "$root/dev" "$root/run" "$root/tmp" \
    "$root/etc" "$root/var" "$root/usr"
ln -s ../bin "$root/usr/bin"
ln -s ../sbin "$root/usr/sbin"
ln -s ../run "$root/var/run"

with_libraries() { # file, place
    cp -L "$1" "$2"
    # Libraries keep their places; the loader is among them.
    { ldd "$1" 2>/dev/null || true; } | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        [ -e "$root$library" ] || cp -L "$library" "$root$library"
    done
}
cp "$(command -v busybox)" "$root/bin/busybox"
with_libraries "$(command -v kmod || echo /usr/bin/kmod)" "$root/sbin/kmod"
# The kernel calls this one by its path.
ln -s kmod "$root/sbin/modprobe"

# The release's tools, with a loader and a C library of their own: older or newer than what the test programs were built
# for. A tool is called by a script of its name.
tools=$kernel/tools
libraries=$root/release/lib
mkdir -p "$libraries" "$root/release/bin" "$root/release/xtables"
find "$tools" -path '*/x86_64-linux-gnu/*.so*' -not -path '*/x86_64-linux-gnu/*/*' -exec cp -P {} "$libraries/" \;
find "$tools" -path '*/xtables/*.so' -exec cp {} "$root/release/xtables/" \;
tool() { # name, program and its first arguments
    name=$1
    program=$2
    shift 2
    if [ ! -e "$root/release/bin/$program" ]; then
        cp "$(find "$tools" -type f -path "*bin/$program")" "$root/release/bin/$program"
    fi
    printf '#!/bin/busybox sh\nexec /release/lib/ld-linux-x86-64.so.2 --library-path /release/lib /release/bin/%s "$@"\n' \
        "$program${*:+ $*}" > "$root/sbin/$name"
    chmod +x "$root/sbin/$name"
}
for name in nft ip bridge ss conntrack ipset; do tool "$name" "$name"; done
for variant in nft legacy; do
    for family in iptables ip6tables; do
        for act in "" -save -restore; do
            tool "$family-$variant$act" "xtables-$variant-multi" "$family$act"
        done
    done
done
for family in iptables ip6tables; do
    for act in "" -save -restore; do ln -s "$family-nft$act" "$root/sbin/$family$act"; done
done
# iproute2 and iptables look numbers up in these.
for file in protocols services; do [ ! -e "/etc/$file" ] || cp "/etc/$file" "$root/etc/"; done

for file in "$@"; do
    with_libraries "$file" "$root/test/$(basename "$file")"
    # A script among them is no program.
    strip --strip-debug "$root/test/$(basename "$file")" 2>/dev/null || true
done

# What the cells of the support matrix are compared with, where the test programs look for it.
matrix=$(readlink -f "$here/../suite/matrix")
mkdir -p "$root$matrix"
cp "$matrix"/* "$root$matrix/"

# Only what networking needs; a rule that asks for a module loads it by its alias.
to=$root/lib/modules/$version
mkdir -p "$to/kernel"
(cd "$modules" && find kernel/net/netfilter kernel/net/ipv4 kernel/net/ipv6 kernel/net/bridge kernel/net/llc kernel/net/802 \
    kernel/net/sctp kernel/net/sched kernel/net/core kernel/lib kernel/arch/x86/crypto kernel/crypto \
    kernel/drivers/net -name '*.ko*' 2>/dev/null) |
    grep -E '^kernel/net/|/(veth|vxlan|dummy|ip_tunnel|udp_tunnel)\.ko|crc32c|libcrc' |
    while read -r module; do
        mkdir -p "$to/$(dirname "$module")"
        cp "$modules/$module" "$to/$module"
    done
find "$to" -name '*.ko.xz' -exec xz -d {} +
cp "$modules/modules.builtin" "$modules/modules.order" "$to/"
[ ! -e "$modules/modules.builtin.modinfo" ] || cp "$modules/modules.builtin.modinfo" "$to/"
for module in ${WITHOUT:-}; do
    found=$(find "$to" -name "$module.ko")
    [ -n "$found" ] || { echo "initramfs.sh: $version has no module $module" >&2; exit 1; }
    rm "$found"
done
PATH=$PATH:/usr/sbin:/sbin depmod -b "$root" "$version"

cp "$here/init" "$root/init"
cp "$here/twice" "$root/test/twice"
chmod +x "$root/init" "$root/test/twice"
(cd "$root" && find . -print0 | cpio --null --create --format=newc --quiet --owner=0:0) | gzip -1 > "$output"
