#!/usr/bin/env bash
# Builds the images, without an engine, and leaves them in buildah's store under <prefix>/<name>:<version>.
# Called by `make images` and `make release`. Options come as environment variables:
#   PREFIX  put before the names: crescendo, or registry.example.com/team/crescendo
#   BASE    the image that all build on; each Dockerfile names its default
#   IMAGES  which to build; all four without it
#   PUSH=1  push them too, to where PREFIX leads, and say the digest of each. A login comes from `buildah login`, or as
#           CRESCENDO_REGISTRY_USER and CRESCENDO_REGISTRY_PASSWORD
#   PLAIN_HTTP=1  push without TLS, to a registry on this machine
#   LEAVE_OUT  packages that the run images go without (a pattern of names), for nodes that bring them on a volume
#   KEEP_STAGES=1  tag what the last stage copies from too (<name>-stages), so that `buildah rmi --prune` spares it
#   BUILDAH_OPTIONS  `--isolation chroot` inside a container
set -euo pipefail
cd "$(dirname "$0")/../.."
prefix="${PREFIX:-crescendo}"
python=.venv/bin/python
command -v buildah >/dev/null || { echo "buildah is not installed; on Debian: apt install buildah" >&2; exit 3; }
version="$($python -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')"

# A folder of this call's own: two may build at once.
mkdir -p build
context="$(mktemp -d "$PWD/build/images.XXXXXX")"
trap 'rm -rf "$context"' EXIT
mkdir "$context/dist"
cp -r requirements "$context/"
if [ -n "${LEAVE_OUT:-}" ]; then
    for pins in "$context"/requirements/image-run-*.txt; do
        $python helm/images/leave_out.py "$LEAVE_OUT" "$pins"
    done
fi
export SOURCE_DATE_EPOCH=315532800 # what has not changed makes the same wheel, and the same layers
{
    flock 9 # setuptools knows one build/lib
    rm -rf build/lib build/bdist.*
    $python -W ignore -c 'from setuptools import build_meta; import sys; build_meta.build_wheel(sys.argv[1])' \
        "$context/dist" >/dev/null
} 9>build/wheel.lock

labels=(--label "org.opencontainers.image.version=$version")
pushing=()
if [ -n "${PUSH:-}" ]; then
    # Of a release only: a label changes with each commit, and the image with it.
    revision="$(git describe --always --abbrev=40 --exclude '*' --dirty 2>/dev/null || true)"
    [ -z "$revision" ] || labels+=(--label "org.opencontainers.image.revision=$revision")
    pushing=(--quiet --digestfile "$context/digest")
    [ -z "${PLAIN_HTTP:-}" ] || pushing+=(--tls-verify=false)
    if [ -n "${CRESCENDO_REGISTRY_USER:-}" ]; then
        pushing+=(--authfile "$context/login")
        printf %s "$CRESCENDO_REGISTRY_PASSWORD" | buildah login --authfile "$context/login" \
            ${PLAIN_HTTP:+--tls-verify=false} --username "$CRESCENDO_REGISTRY_USER" --password-stdin "${prefix%%/*}"
    fi
fi

for image in ${IMAGES:-operator reward run run-gpu}; do
    name="$prefix/$image"
    arguments=(--layers --file "helm/images/Dockerfile.${image%-gpu}")
    [ -z "${BASE:-}" ] || arguments+=(--build-arg "BASE=$BASE")
    [ "$image" != run-gpu ] || arguments+=(--build-arg FLAVOUR=gpu)
    echo "image: $name:$version"
    # shellcheck disable=SC2086
    [ -z "${KEEP_STAGES:-}" ] ||
        buildah build ${BUILDAH_OPTIONS:-} --target project --tag "$name-stages:$version" "${arguments[@]}" "$context"
    # shellcheck disable=SC2086
    buildah build ${BUILDAH_OPTIONS:-} --tag "$name:$version" "${labels[@]}" "${arguments[@]}" "$context"
    if [ -n "${PUSH:-}" ]; then
        buildah push "${pushing[@]}" "$name:$version"
        echo "pushed: $name@$(cat "$context/digest")"
    fi
done
