#!/bin/sh
# Starts the SSH server with the key that the provider hands over, says what is wrong with this container, then becomes the command.
set -eu

# Each container has host keys of its own, and its sessions see the image's settings: sshd starts them with a bare environment.
ssh-keygen -A >/dev/null
mkdir -p /root/.ssh /run/sshd
chmod 700 /root/.ssh
printf '%s\n' "${PUBLIC_KEY:-}" "${SSH_PUBLIC_KEY:-}" | grep . >>/root/.ssh/authorized_keys || true
settings=$(env | grep -E '^(PATH|LANG|RUNPOD_POD_ID|VAST_CONTAINERLABEL|PYTHON|TUNE_|HF_HOME|XDG_|TORCH|TRITON_|NVIDIA_|LD_LIBRARY_PATH)' | tr '\n' ' ')
if [ -s /root/.ssh/authorized_keys ]; then
    chmod 600 /root/.ssh/authorized_keys
    /usr/sbin/sshd -o "SetEnv=$settings" -p "${TUNE_SSH_PORT:-22}"
else
    echo "No SSH server: give the container your public key in PUBLIC_KEY." >&2
fi

exec /opt/tunestation/docker/start.sh "$@"
