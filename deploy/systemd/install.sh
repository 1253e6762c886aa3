#!/bin/sh
# Install the tiers on this host as systemd units, or a new version of them, from a checkout:
#
#     sudo sh deploy/systemd/install.sh [--gpu | --cpu] [primary] [fallback]
#     sudo sh deploy/systemd/install.sh --rollback
#
# What is not said stays as it is on this host; the first time it is both tiers, without a GPU. Settings,
# keys and models that are there stay as they are. What runs goes on running: a restart is yours to choose,
# except with --rollback. PYTHON=python3.12 takes that one.
set -eu
umask 022

here=$(cd "$(dirname "$0")" && pwd)
checkout=$(cd "$here/../.." && pwd)
home=/opt/stt
units=/etc/systemd/system

say() { printf '==> %s\n' "$*"; }
fail() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

# A version's environment is never changed: `venv` is a link to the one in force, and swapped whole.
use() {
    ln -sfn "venvs/$1" "$home/venv.new"
    mv -T "$home/venv.new" "$home/venv"
}
in_force() { basename "$(readlink "$home/venv" || true)"; }
# Those of these whose units are on this host.
installed() {
    for name in "$@"; do
        [ ! -e "$units/stt-$name.service" ] || printf '%s ' "$name"
    done
}
# These units, as the version in force has them.
put_units() {
    for name in "$@"; do
        install -m 0644 "$home/venv/units/stt-$name.service" "$units/"
    done
    install -m 0644 "$home/venv/units/stt.target" "$units/"
    systemctl daemon-reload
}

tiers='' device=cpu rollback=''
[ ! -e "$home/venv/cuda/libcublas.so.12" ] || device=gpu
for word in "$@"; do
    case $word in
        primary | fallback) tiers="$tiers $word" ;;
        --gpu) device=gpu ;;
        --cpu) device=cpu ;;
        --rollback) rollback=yes ;;
        *) fail "$word: not known; it takes --gpu, --cpu, --rollback, primary, fallback" ;;
    esac
done
[ "$(id -u)" = 0 ] || fail 'this takes root'

if [ -n "$rollback" ]; then
    before=$(cat "$home/venvs/before" 2>/dev/null) || fail 'there is no version before this one'
    now=$(in_force)
    for tier in $(installed primary fallback); do
        "$home/venvs/$before/bin/stt" config check "$home/stt_$tier.env" > /dev/null ||
            fail "$before could not start with $home/stt_$tier.env: mend it first"
    done
    use "$before"
    printf '%s\n' "$now" > "$home/venvs/before"
    say "$before instead of $now"
    # shellcheck disable=SC2046  # words
    put_units $(installed gpu primary fallback)
    systemctl try-restart stt-fallback.service stt-primary.service
    exit
fi

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(not sys.version_info >= (3, 11))' ||
    fail "$python is older than Python 3.11: name a newer one, for example PYTHON=python3.12"

tiers=${tiers:-$(installed primary fallback)}
tiers=${tiers:-primary fallback}
getent group stt > /dev/null || groupadd --system stt
getent passwd stt > /dev/null ||
    useradd --system --gid stt --home-dir "$home" --no-create-home --shell /usr/sbin/nologin stt
# All of it is root's: the service cannot change what it runs, nor its settings, nor its keys.
install -d -m 0755 "$home" "$home/venvs" "$home/models" "$home/keys"

# The checkout may be somebody else's than root's, which git takes for a trap.
git() { command git -c safe.directory="$checkout" -C "$checkout" "$@"; }
now=$(date -u +%Y%m%dT%H%M%SZ)
commit=$(git rev-parse --short HEAD 2> /dev/null || echo "$now")
[ -z "$(git status --porcelain 2> /dev/null)" ] || commit=$commit-$now
version=$commit
[ "$device" = cpu ] || version=$commit-gpu
new=$home/venvs/$version
if [ -e "$new/COMMIT" ]; then
    say "$version is installed already"
else
    say "Installing $version into $new"
    rm -rf "$new"
    "$python" -m venv "$new"
    pip() { "$new/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
    for packages in "$device" build; do
        pip install --only-binary :all: --require-hashes -r "$checkout/requirements-$packages.txt"
    done
    pip install --no-deps --no-build-isolation --no-index "$checkout"
    mkdir "$new/cuda"
    find "$new" -path '*/nvidia/*/lib/*.so*' -exec ln -s -t "$new/cuda" {} +
    install -d "$new/units"
    install -m 0644 "$here"/*.service "$here/stt.target" "$new/units/"
    printf '%s\n' "$commit" > "$new/COMMIT"
fi
if [ "$(in_force)" != "$version" ]; then
    [ ! -L "$home/venv" ] || in_force > "$home/venvs/before"
    use "$version"
fi

# One key a line, of 48 hex digits.
key() { head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n' && echo; }
new_file() { # its path; its content comes from standard input
    [ ! -e "$1" ] || { cat > /dev/null; return; }
    (umask 077 && cat > "$1.new")
    chown root:stt "$1.new"
    chmod 0640 "$1.new"
    mv "$1.new" "$1"
    say "New: $1"
}
for tier in $tiers; do
    install -d -o root -g stt -m 0750 "$home/keys/$tier"
    new_file "$home/stt_$tier.env" < "$here/$device/stt_$tier.env"
    key | new_file "$home/keys/$tier/api.keys"
done
if [ -d "$home/keys/primary" ]; then
    if [ -e "$home/keys/fallback/api.keys" ]; then
        grep -v -e '^#' -e '^$' "$home/keys/fallback/api.keys" | head -n 1 |
            new_file "$home/keys/primary/fallback.key"
    elif [ ! -e "$home/keys/primary/fallback.key" ]; then
        say "Wanted: $home/keys/primary/fallback.key, with a line of the fallback's keys/fallback/api.keys"
    fi
fi

names=$tiers
[ "$device" = cpu ] || names="gpu $tiers"
# shellcheck disable=SC2086  # words
put_units $names
for name in $names; do
    systemctl enable --quiet "stt-$name.service"
done
systemctl enable --quiet stt.target
for tier in $tiers; do
    "$home/venv/bin/stt" config check "$home/stt_$tier.env" > /dev/null ||
        say "To be mended before the start: $home/stt_$tier.env"
done
say "Next: the models in $home/models, then systemctl start stt.target"
