#!/usr/bin/env bash
# Installs the project into .venv of this checkout. See --help.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: bash cluster/setup.sh [--tests]

Creates .venv in this checkout, installs requirements.txt into it, and the command .venv/bin/tppt,
which runs the files of this checkout. A second call returns at once unless a requirements file,
pyproject.toml, the Python or the folder has changed.

  --tests   also install tests/requirements.txt, the S3 server of the tests (in .venv-s3) and
            loggers (in .venv-loggers); on Debian or Ubuntu, as root, also SLURM and sshd, which the
            tests start on separate networks, Chromium, zsh and fish. No service of the system is
            started or enabled. A program that cannot be installed is named, and its tests are
            skipped

environment:
  PYTHON    the interpreter to use; refused if it is older than 3.10. Without it, the first
            suitable one

On a Debian or Ubuntu without the venv module of Python, apt-get installs it if this is root or
sudo allows it. Exit status: 0 done, 2 something is missing that only you can provide.
HELP
}

say() { printf 'setup: %s\n' "$*"; }
give_up() { printf 'setup: %s\n' "$*" >&2; exit 2; }

with_tests=
for argument in "$@"; do
    case $argument in
        --tests) with_tests=1 ;;
        -h | --help) usage; exit 0 ;;
        *) give_up "unknown argument '$argument'; see bash cluster/setup.sh --help" ;;
    esac
done
cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# Installs Debian packages. Fails if that is not allowed; asks nothing without a terminal.
apt_is_fresh=
apt_install() {
    command -v apt-get >/dev/null || return 1
    local as_root=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || return 1
        as_root=(sudo)
        [ -t 0 ] || as_root+=(-n)
        say "sudo is needed to install $*"
        "${as_root[@]}" true 2>/dev/null || return 1
    fi
    as_root+=(env DEBIAN_FRONTEND=noninteractive)
    say "apt-get install $*"
    # The package lists of a fresh image are empty or old.
    [ -n "$apt_is_fresh" ] || "${as_root[@]}" apt-get update -qq || return 1
    apt_is_fresh=1
    "${as_root[@]}" apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

# The programs that the tests use, each with its Debian package.
services=(
    slurmctld:slurm-wlm slurmd:slurm-wlm munged:munge sshd:openssh-server pdsh:pdsh ip:iproute2
    memcached:memcached shellcheck:shellcheck chromium:chromium chromedriver:chromium-driver
    zsh:zsh fish:fish
)

# Prints the missing programs of services, or with "packages" as $1 their packages.
missing_services() {
    local service
    for service in "${services[@]}"; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${service%:*}" >/dev/null && continue
        if [ "$1" = packages ]; then echo "${service#*:}"; else echo "${service%:*}"; fi
    done | sort -u
}

# Installs the missing services that are available. Their tests need root too.
install_services() {
    local policy=/usr/sbin/policy-rc.d package file before new wanted=()
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
    [ -n "$(missing_services packages)" ] || return 0
    [ -n "$apt_is_fresh" ] || apt-get update -qq || true
    apt_is_fresh=1
    # With one unknown package apt-get would install none.
    for package in $(missing_services packages); do
        if [ -n "$(apt-cache show "$package" 2>/dev/null)" ]; then wanted+=("$package"); fi
    done
    [ ${#wanted[@]} != 0 ] || return 0
    # Debian starts the services that it installs, unless this file of the administrator forbids it.
    if [ ! -e "$policy" ]; then
        trap 'rm -f -- /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    before=$(dpkg-query --show --showformat '${Package}\n' | sort)
    apt_install "${wanted[@]}" || true
    # It also enables them for the next start of the machine.
    new=$(comm -13 <(echo "$before") <(dpkg-query --show --showformat '${Package}\n' | sort))
    for file in $(for package in $new; do dpkg --listfiles "$package"; done); do
        case $file in
            /lib/systemd/system/*.service | /usr/lib/systemd/system/*.service)
                deb-systemd-helper disable "${file##*/}" >/dev/null 2>&1 || true ;;
            /etc/init.d/*) update-rc.d "${file##*/}" disable || true ;;
        esac
    done
}

# Prints the first suitable interpreter: PYTHON, or the one of the present .venv, or another.
find_python() {
    local candidate known
    known=$(.venv/bin/python -c 'import sys; print(sys._base_executable)' 2>/dev/null) || known=
    for candidate in ${PYTHON:-$known python3 python3.14 python3.13 python3.12 python3.11 \
        python3.10}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

can() { "$python" -c "import $1" 2>/dev/null; }

# Creates the virtual environment $1 with pip, in any way that this machine allows.
make_venv() {
    local version
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    # Debian has ensurepip, which installs pip in a new environment, in a separate package.
    can venv,ensurepip || can venv,pip || apt_install "python$version-venv" ||
        apt_install python3-venv || true
    can venv,ensurepip || can venv,pip ||
        give_up "$python cannot make virtual environments; as root: apt-get install python3-venv"
    rm -rf -- "$1"
    if can venv,ensurepip; then
        "$python" -m venv "$1"
    else
        # Debian's guard "externally managed" allows --target in our own folder.
        "$python" -m venv --without-pip "$1"
        "$python" -m pip install --quiet --target "$1/lib/python$version/site-packages" pip
        "$1/bin/python" -m pip install --quiet --force-reinstall pip
    fi
}

# Succeeds if environment $1 works and this Python created it here (its scripts contain the path).
is_complete() {
    [ "$("$1/bin/python" -V 2>/dev/null)" = "$("$python" -V)" ] &&
        head -n 3 "$1/bin/pip" 2>/dev/null | grep -qF "$PWD/$1/bin/python" &&
        "$1/bin/python" -m pip --version >/dev/null 2>&1
}

# Installs requirements files $2.. into environment $1, unless they are installed already.
install_into() {
    local venv=$1 file state arguments=() missing=()
    shift
    for file in "$@"; do
        arguments+=(-r "$file")
        state=$({ pwd; "$python" -V; cat -- "$file"; } | cksum)
        [ "$(cat "$venv/installed/$file" 2>/dev/null)" = "$state" ] || missing+=("$file")
    done
    if [ ${#missing[@]} = 0 ]; then
        say "$venv is up to date"
        return
    fi
    if ! is_complete "$venv"; then
        say "creating $venv with $("$python" -V) ($python)"
        make_venv "$venv"
    fi
    say "installing ${missing[*]} into $venv"
    # Unpack wheels of gigabytes in the environment: /tmp is often small and in memory.
    mkdir -p "$venv/tmp"
    TMPDIR=$PWD/$venv/tmp "$venv/bin/python" -m pip install --disable-pip-version-check \
        "${arguments[@]}" || return
    rm -rf -- "$venv/tmp"
    for file in "$@"; do
        mkdir -p "$venv/installed/$(dirname "$file")"
        { pwd; "$python" -V; cat -- "$file"; } | cksum >"$venv/installed/$file"
    done
}

# Installs the command tppt and makes the package importable in every folder.
install_command() {
    local state record=.venv/installed/tppt
    state=$({ pwd; "$python" -V; cat -- pyproject.toml; } | cksum)
    [ ! -x .venv/bin/tppt ] || [ "$(cat $record 2>/dev/null)" != "$state" ] || return 0
    say "installing .venv/bin/tppt"
    .venv/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --editable . ||
        return
    mkdir -p .venv/installed
    echo "$state" >$record
}

if [ -n "${PYTHON:-}" ] && ! find_python >/dev/null; then
    found=$("$PYTHON" -V 2>&1) || found="no Python that can be started"
    give_up "PYTHON=$PYTHON is $found; Python 3.10 or newer is needed: name one, or unset PYTHON"
fi
python=$(find_python) || { apt_install python3 python3-venv && python=$(find_python); } ||
    give_up "no Python 3.10 or newer found; install one, or name it with PYTHON=/path/to/python3"

requirements=(requirements.txt ${with_tests:+tests/requirements.txt})
install_into .venv "${requirements[@]}" ||
    give_up "pip could not install ${requirements[*]}; its message is above"
install_command || give_up "pip could not install .venv/bin/tppt; its message is above"
if [ -n "$with_tests" ]; then
    install_into .venv-s3 tests/services/requirements.txt ||
        say "the S3 server cannot be installed: tests that need one will be skipped"
    install_into .venv-loggers tests/loggers/requirements.txt ||
        say "wandb and mlflow cannot be installed: tests that need them will be skipped"
    install_services
    lacking=$(missing_services programs | paste -sd ' ')
    [ -z "$lacking" ] ||
        say "cannot be installed here: $lacking; their tests are skipped, or slower"
fi
say "done; next: .venv/bin/tppt demo${with_tests:+, or -m pytest -n 2}"
