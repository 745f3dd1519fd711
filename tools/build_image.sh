#!/bin/bash
# Builds the container image of Dockerfile with buildah, runs it and publishes through it. Debian, as root; needs buildah, and debootstrap
# unless BASE names an image.
#
#   tools/build_image.sh [NAME]          default name: mqttc
#
# BASE=image     base image; without it one is made by debootstrap, of the suite SUITE (default: this system's), so that no registry is needed
# WORK=folder    where images are kept; default build/image
# KEEP=1         keep the storage; without it only the sizes printed remain
#
# No daemon and no privileges beyond root are asked for: vfs storage, chroot isolation.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:-mqttc}
work=$(mkdir -p "${WORK:-build/image}" && cd "${WORK:-build/image}" && pwd)
storage=(--root "$work/storage" --runroot "$work/run" --storage-driver vfs)
isolation=(--isolation chroot)
container=
runner=

finish() {
    [[ -z $runner ]] || kill "$runner" 2>/dev/null || true
    [[ -z $container ]] || buildah "${storage[@]}" rm "$container" >/dev/null || true
    [[ -n ${KEEP:-} ]] || rm -rf "$work"
}
trap finish EXIT

# pip in the build reaches its index as pip here does. The certificates go elsewhere than to their place, which a package fills in the build.
volumes=()
if [[ -f /etc/pip.conf ]]; then
    sed -E 's#^(cert[ =]).*#cert = /mnt/certificates.crt#' /etc/pip.conf >"$work/pip.conf"
    volumes+=(--volume "$work/pip.conf:/etc/pip.conf:ro")
    certificates=$(sed -nE 's#^cert *= *##p' /etc/pip.conf)
    [[ ! -f $certificates ]] || volumes+=(--volume "$certificates:/mnt/certificates.crt:ro")
fi

base=${BASE:-}
if [[ -z $base ]]; then
    suite=${SUITE:-$(. /etc/os-release && echo "$VERSION_CODENAME")}
    mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $suite" "Created-By: Packages" | head -1)
    base=localhost/debian-base:$suite
    if ! buildah "${storage[@]}" images -q "$base" >/dev/null 2>&1; then
        tree=$work/base
        rm -rf "$tree"
        debootstrap --variant=minbase "$suite" "$tree" ${mirror:+"$mirror"} >"$work/debootstrap.log" || {
            tail -20 "$work/debootstrap.log" >&2
            exit 1
        }
        rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/*
        container=$(buildah "${storage[@]}" from scratch)
        buildah "${storage[@]}" copy -q "$container" "$tree" / >/dev/null
        buildah "${storage[@]}" commit -q "$container" "$base" >/dev/null
        buildah "${storage[@]}" rm "$container" >/dev/null
        container=
        rm -rf "$tree"
    fi
fi

echo "== building $name on $base"
buildah "${storage[@]}" bud "${isolation[@]}" --format docker --pull-never "${volumes[@]}" --build-arg BASE="$base" -t "$name" . \
    >"$work/build.log" 2>&1 || {
    tail -40 "$work/build.log" >&2
    exit 1
}
buildah "${storage[@]}" images

echo "== running it"
container=$(buildah "${storage[@]}" from --pull-never "$name")
settings=$(buildah "${storage[@]}" inspect --format '{{.OCIv1.Config.User}} {{.OCIv1.Config.Entrypoint}} {{.OCIv1.Config.ExposedPorts}}' "$container")
echo "user, entry point, ports: $settings"
[[ $settings == "mqttc [mqttc-broker] map[14567/udp:{} 1883/tcp:{} 8080/tcp:{} 8883/tcp:{}]" ]]
[[ $(buildah "${storage[@]}" run "${isolation[@]}" "$container" -- id -u) != 0 ]]
said=$work/broker.log
buildah "${storage[@]}" run "${isolation[@]}" "$container" -- mqttc-broker --listen tcp://127.0.0.1:0 2>"$said" &
runner=$!
for _ in $(seq 100); do
    ! grep -q 'ready$' "$said" || break
    kill -0 "$runner" 2>/dev/null || break
    sleep 0.1
done
port=$(grep -oP 'tcp://127\.0\.0\.1:\K[0-9]+' "$said" | head -1) || {
    cat "$said" >&2
    exit 1
}
python3 tools/publish_check.py 127.0.0.1 "$port"
kill -TERM "$runner"
wait "$runner" || true
runner=
echo "== the image works"
