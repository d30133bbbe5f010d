#!/usr/bin/env bash
# Builds the images, without an engine, and leaves them in buildah's store under <prefix>/<name>:<version>.
# Called by `make images` and `make release`. Options come as environment variables:
#   PREFIX  put before the names: crescendo, or registry.example.com/team/crescendo
#   BASE    the image that all build on; each Dockerfile names its default
#   IMAGES  which to build; all four without it
#   PUSH=1  push them too, to where PREFIX leads
#   LEAVE_OUT  packages that the run images go without (a pattern of names), for nodes that bring them on a volume
#   BUILDAH_OPTIONS  `--isolation chroot` inside a container
set -euo pipefail
cd "$(dirname "$0")/../.."
prefix="${PREFIX:-crescendo}"
python=.venv/bin/python
command -v buildah >/dev/null || { echo "buildah is not installed; on Debian: apt install buildah" >&2; exit 3; }
version="$($python -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')"

context=build/images
rm -rf "$context" build/lib build/bdist.* && mkdir -p "$context/dist"
cp -r requirements "$context/"
if [ -n "${LEAVE_OUT:-}" ]; then
    for pins in "$context"/requirements/image-run-*.txt; do
        $python helm/images/leave_out.py "$LEAVE_OUT" "$pins"
    done
fi
export SOURCE_DATE_EPOCH=315532800 # what has not changed makes the same wheel, and the same layers
$python -W ignore -c 'from setuptools import build_meta; import sys; build_meta.build_wheel(sys.argv[1])' \
    "$PWD/$context/dist" >/dev/null

for image in ${IMAGES:-operator reward run run-gpu}; do
    arguments=(--file "helm/images/Dockerfile.${image%-gpu}")
    [ -z "${BASE:-}" ] || arguments+=(--build-arg "BASE=$BASE")
    [ "$image" != run-gpu ] || arguments+=(--build-arg FLAVOUR=gpu)
    echo "image: $prefix/$image:$version"
    # shellcheck disable=SC2086
    buildah build ${BUILDAH_OPTIONS:-} --layers --tag "$prefix/$image:$version" "${arguments[@]}" "$context"
    [ -z "${PUSH:-}" ] || buildah push "$prefix/$image:$version"
done
