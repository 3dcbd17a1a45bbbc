# Installs Debian and Ubuntu packages that a script needs. To be sourced: it defines `ensure_packages` and `as_root`.
# shellcheck shell=bash

# Not every user has the administrator's tools on the path.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# Runs a command as root.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# Runs a command while no package may start a service. A policy that the machine already has is kept.
# The body is a subshell, so that its trap always removes the policy.
without_services() (
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'as_root rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' | as_root install -m 755 /dev/stdin "$policy"
    fi
    "$@"
)

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

# ensure_packages COMMAND=PACKAGE[,PACKAGE...] ...
# Installs the packages of every command that is not on the path. When it cannot, reports what is missing and fails.
ensure_packages() {
    local pair missing=() packages=() added=()
    for pair in "$@"; do
        if ! command -v "${pair%%=*}" >/dev/null; then
            missing+=("${pair%%=*}")
            IFS=, read -ra added <<<"${pair#*=}"
            packages+=("${added[@]}")
        fi
    done
    if [ "${#missing[@]}" -eq 0 ]; then
        return
    fi
    if ! command -v apt-get >/dev/null; then
        echo "missing: ${missing[*]}. This is not Debian or Ubuntu: install them with your package manager." >&2
        return 1
    fi
    if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
        echo "missing: ${missing[*]}. As root, run: apt-get install ${packages[*]}" >&2
        return 1
    fi
    echo "installing ${packages[*]}" >&2
    if ! { as_root apt-get update -q && without_services apt_install "${packages[@]}"; } >&2; then
        echo "missing: ${missing[*]}. Could not install: ${packages[*]}" >&2
        return 1
    fi
    # The tests start their own brokers. The machine's own service, which the package enables, is not wanted.
    case " ${packages[*]} " in
    *" rabbitmq-server "*)
        if [ -d /run/systemd/system ]; then
            as_root systemctl disable --now rabbitmq-server >&2 || return 1
        fi
        ;;
    esac
}
