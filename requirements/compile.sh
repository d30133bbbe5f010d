#!/usr/bin/env bash
# Recompiles every pin file beside this script: exact versions, hashes, no registry addresses.
# Called by `make requirements` with the uv to use; give --upgrade to move to newest versions.
set -euo pipefail
uv="${1:?usage: compile.sh <uv> [uv pip compile options]}"
shift
cd "$(dirname "$0")/.."

compile() { # <output> <python version> <source> [options]
    local output="requirements/$1" python="$2" source="$3"
    shift 3
    echo "requirements: $output"
    "$uv" pip compile "$source" --quiet --python-version "$python" --python-platform x86_64-manylinux_2_28 \
        --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header -o "$output" "$@"
}

project=(--extra trainer --extra convert --group dev)
for python in 3.11 3.12; do
    suffix="py${python/./}"
    compile "cpu-$suffix.txt" "$python" pyproject.toml --extra cpu "${project[@]}" "$@"
    compile "gpu-$suffix.txt" "$python" pyproject.toml --extra gpu "${project[@]}" "$@"
    # Nothing in an image differs from the pins that the tests run with.
    for flavour in cpu gpu; do
        compile "image-run-$flavour-$suffix.txt" "$python" pyproject.toml --extra "$flavour" --extra trainer \
            --extra convert --constraint "requirements/$flavour-$suffix.txt" "$@"
    done
    for image in operator reward; do
        compile "image-$image-$suffix.txt" "$python" "requirements/image-$image.in" \
            --constraint "requirements/cpu-$suffix.txt" "$@"
    done
    compile "bench-trl-$suffix.txt" "$python" requirements/bench-trl.in "$@"
done
compile uv.txt 3.11 requirements/uv.in "$@"
compile models.txt 3.11 requirements/models.in --no-deps "$@"
