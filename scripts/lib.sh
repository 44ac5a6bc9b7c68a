# shellcheck shell=bash
# What every script here shares: words on the terminal, packages, tools built from crates, the tidefs binary, and leaving
# the machine as it was. Sourced, never run. Whoever sources it gets `set -euo pipefail` and one EXIT trap, so a script
# registers what must be undone with `on_exit` and sets no trap of its own.

set -euo pipefail
# Bytes, not characters: names in a backup need not be valid UTF-8, and sorting must not depend on the operator's locale.
export LC_ALL=C
umask 022

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TIDEFS_TOOLS=${TIDEFS_TOOLS:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/tidefs-tools}

say() { printf '%s\n' "-- $*" >&2; }
die() { printf '%s\n' "error: $*" >&2; exit 1; }

# The comment at the head of a script is its --help.
print_head_comment() { sed -n '2,/^$/{s/^# \{0,1\}//;/./p}' "$0"; }

need_root() { [ "$(id -u)" -eq 0 ] || die "$(basename "$0") mounts file systems: run it as root"; }

# Seconds with milliseconds, for arithmetic by `elapsed`.
now_ms() { date +%s%3N; }
elapsed() { local ms=$(($(now_ms) - $1)); printf '%d.%03d' $((ms / 1000)) $((ms % 1000)); }

# --- Undoing, in reverse order -----------------------------------------------------------------------------------------

EXIT_STEPS=()
on_exit() {
    local step
    printf -v step '%q ' "$@"
    EXIT_STEPS+=("$step")
}

run_exit_steps() {
    local status=$? i
    trap - EXIT INT TERM HUP
    set +e
    for ((i = ${#EXIT_STEPS[@]} - 1; i >= 0; i--)); do eval "${EXIT_STEPS[i]}"; done
    exit "$status"
}
trap run_exit_steps EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# A lazy unmount also ends a mount whose daemon has died, and one that a failed test still has files open in.
drop_mount() {
    while mountpoint -q "$1" 2>/dev/null || is_dead_mount "$1"; do umount -l "$1" 2>/dev/null || return 0; done
}
# mountpoint(1) calls a mount whose FUSE daemon died "not a mount point"; the kernel's table still lists it.
is_dead_mount() { cut -d' ' -f2 /proc/self/mounts | grep -qxF -- "$1"; }

# Ends only the process given, which the script started; escalates after five seconds.
end_process() {
    local pid=$1 i
    kill "$pid" 2>/dev/null || return 0
    for ((i = 0; i < 50; i++)); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null || true
}

# work_dir VARIABLE [PARENT]: a fresh directory, removed at the end unless KEEP=1. Refuses to remove through a mount that
# is still there: better a directory left behind than somebody's backup deleted.
work_dir() {
    local made
    made=$(mktemp -d "${2:-${TMPDIR:-/tmp}}/tidefs-$(basename "$0").XXXXXX")
    printf -v "$1" '%s' "$made"
    on_exit remove_work_dir "$made"
}
remove_work_dir() {
    if [ "${KEEP:-0}" = 1 ]; then say "kept: $1"; return; fi
    if cut -d' ' -f2 /proc/self/mounts | grep -qF -- "$1/"; then say "something is still mounted below $1: left alone"; return; fi
    rm -rf --one-file-system -- "$1"
}

# --- Packages and tools ------------------------------------------------------------------------------------------------

# Installs what is missing of the Debian packages named, and nothing when nothing is.
need_packages() {
    local missing=() package
    for package in "$@"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "please install: ${missing[*]}"
    need_root
    say "installing: ${missing[*]}"
    apt-get -q=2 -o DPkg::Lock::Timeout=300 update >&2
    DEBIAN_FRONTEND=noninteractive apt-get -q=2 -o DPkg::Lock::Timeout=300 install -y --no-install-recommends \
        "${missing[@]}" >/dev/null
}

need_cargo() {
    [ -x "${CARGO_HOME:-${HOME:-/root}/.cargo}/bin/cargo" ] && PATH="${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH"
    command -v cargo >/dev/null || die "cargo is missing: install Rust with rustup (https://rustup.rs), then run this again"
}

# need_cargo_tool NAME VERSION: prints the path of the tool's binary, built at most once per machine.
need_cargo_tool() {
    local name=$1 version=$2 root="$TIDEFS_TOOLS/$1-$2"
    if ! grep -qF "\"$name $version " "$root/.crates.toml" 2>/dev/null || [ ! -x "$root/bin/$name" ]; then
        need_cargo
        say "building $name $version (once, into $root)"
        mkdir -p "$root"
        # Away from the tree: its settings, its target directory and its lock are none of the tool's business.
        (cd / && env -u CARGO_TARGET_DIR -u RUSTFLAGS cargo install --quiet --locked --version "$version" --root "$root" "$name" >&2)
    fi
    printf '%s\n' "$root/bin/$name"
}

# tidefs_binary dev|release: builds if cargo finds it out of date and prints the path. $TIDEFS, when set, is used as it is.
# dev is the very program that the tests run: built together with one of them, or cargo would choose other features of the
# libraries and compile everything once more.
tidefs_binary() {
    local profile=$1 target
    if [ -n "${TIDEFS:-}" ]; then
        [ -x "$TIDEFS" ] || die "TIDEFS=$TIDEFS is not a program"
        realpath "$TIDEFS"
        return
    fi
    need_cargo
    case $profile in
    dev) (cd "$REPO" && cargo test --locked --quiet --workspace --no-run --test cli >&2) ;;
    *) (cd "$REPO" && cargo build --locked --quiet --bin tidefs --profile "$profile" >&2) ;;
    esac
    target=$(cd "$REPO" && cargo metadata --format-version 1 --no-deps --offline |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
    [ "$profile" = dev ] && profile=debug
    printf '%s\n' "$target/$profile/tidefs"
}

need_fuse() {
    need_packages fuse3
    [ -e /dev/fuse ] || die "/dev/fuse is missing: load the fuse module, or start the container with --device /dev/fuse --cap-add SYS_ADMIN"
}

# need_uml DIR: a second machine to kill. Sets UML, the command that starts user-mode Linux, and makes DIR hold what the
# guest needs: `modprobe -d DIR` finds the kernel's modules there.
need_uml() {
    need_packages user-mode-linux kmod gcc libc6-dev
    cc -shared -fPIC -O2 -o "$1/uml-preload.so" "$REPO/scripts/uml-xstate.c" "$REPO/scripts/uml-disk-cache.c"
    mkdir -p "$1/lib" "$1/uml"
    ln -sfn /usr/lib/uml/modules "$1/lib/modules"
    # shellcheck disable=SC2034 # used by the scripts
    UML=(env "LD_PRELOAD=$1/uml-preload.so" linux.uml "uml_dir=$1/uml" rootfstype=hostfs rootflags=/ ro)
}

# --- Fresh file systems of a benchmark, in the directory $WORK -----------------------------------------------------------

# fresh_image NAME MIB: an ext4 of its own, mounted at $WORK/NAME
fresh_image() {
    truncate -s "$2M" "$WORK/$1.img"
    mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 "$WORK/$1.img"
    mkdir -p "$WORK/$1"
    mount -o loop "$WORK/$1.img" "$WORK/$1"
    on_exit drop_mount "$WORK/$1"
}
drop_image() { umount "$WORK/$1" && rm -f "$WORK/$1.img"; }
drop_caches() { sync && echo 3 >/proc/sys/vm/drop_caches; }

# --- Servers of a test, in the directory $DIR ---------------------------------------------------------------------------

is_alive() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

# start_daemon NAME COMMAND...: a process of its own. It outlives the script, and holds no pipe of the caller's.
start_daemon() {
    local name=$1
    shift
    setsid "$@" >"$DIR/log/$name.out" 2>&1 </dev/null &
    echo $! >"$DIR/$name.pid"
}

# A port nobody listens on. A server's own would be taken on a machine that runs one.
free_port() {
    local port
    for _ in $(seq 200); do
        port=$((20000 + RANDOM % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port" && return; }
    done
    die "no free port on 127.0.0.1"
}

# wait_until SECONDS WHAT COMMAND...
wait_until() {
    local seconds=$1 what=$2 end
    shift 2
    end=$(($(date +%s) + seconds))
    while ! "$@" >/dev/null 2>&1; do
        if [ "$(date +%s)" -ge "$end" ]; then
            tail -n 20 "$DIR"/log/*.out >&2 || true
            die "$what: not within $seconds s; logs are in $DIR/log"
        fi
        sleep 0.2
    done
}

# make_bucket ENDPOINT BUCKET REGION ACCESS_KEY SECRET_KEY. The keys go by a pipe: a command line can be seen by all.
make_bucket() {
    printf 'user = "%s:%s"\n' "$4" "$5" |
        curl --silent --show-error --fail --max-time 60 --noproxy '*' --config - --aws-sigv4 "aws:amz:$3:s3" \
            -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' -X PUT "$1/$2"
}

# print_bucket_env HOST:PORT BUCKET REGION ACCESS_KEY SECRET_KEY: what tests and tidefs need to use it.
print_bucket_env() {
    cat <<C
export TIDEFS_TEST_S3='s3://$1/$2?region=$3&tls=off'
export AWS_ACCESS_KEY_ID=$4 AWS_SECRET_ACCESS_KEY=$5
C
}

# --- Buckets that tidefs uses ------------------------------------------------------------------------------------------

# add_bucket LABEL URL: makes s3://HOST/BUCKET/PREFIX?region=..&tls=.. known to tidefs, below $TIDEFS_CONFIG_DIR. No key is
# written: each process takes them from the environment.
add_bucket() {
    local label=$1 place=${2#s3://} query='' scheme=https pair options=()
    case $place in *\?*) query=${place#*\?} place=${place%%\?*} ;; esac
    local host=${place%%/*} path=${place#*/}
    while read -r pair; do
        case $pair in
        region=*) options+=(--region "${pair#*=}") ;;
        style=*) options+=(--style "${pair#*=}") ;;
        ca=*) options+=(--ca-file "${pair#*=}") ;;
        tls=off) scheme=http ;;
        '' | tls=on) ;;
        *) die "$2: '$pair' is not known here; region=, style=, ca= and tls= are" ;;
        esac
    done < <(tr '&' '\n' <<<"$query")
    case $path in */*) options+=(--prefix "${path#*/}") ;; esac
    "$TIDEFS" bucket add --label "$label" --bucket "${path%%/*}" --endpoint "$scheme://$host" --environment "${options[@]}"
}
# below_bucket URL NAME: the URL of the prefix NAME below it.
below_bucket() {
    local place=${1%%\?*} query=''
    case $1 in *\?*) query="?${1#*\?}" ;; esac
    printf '%s/%s%s\n' "${place%/}" "$2" "$query"
}
