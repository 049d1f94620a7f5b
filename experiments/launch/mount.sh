#!/usr/bin/env bash
# Mounts what all hosts share at /mnt/gen_rl, unless that is done already.
#
#   bash experiments/launch/mount.sh 10.0.0.2:/share  # NFS, such as Filestore
#   bash experiments/launch/mount.sh gs://BUCKET      # by Cloud Storage FUSE
set -euo pipefail

share=$1
target=/mnt/gen_rl
if mountpoint -q "$target"; then
  exit 0
fi
sudo mkdir -p "$target"
case $share in
  gs://*)
    if ! command -v gcsfuse >/dev/null; then
      site=https://packages.cloud.google.com/apt
      key=/usr/share/keyrings/cloud.google.asc
      curl -sf "$site/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
      echo "deb [signed-by=$key] $site gcsfuse-$(lsb_release -cs) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
      sudo apt-get update -qq
      sudo apt-get install -qq -y gcsfuse
    fi
    sudo chown "$(id -u)" "$target"
    # No caches: every host sees at once what another one wrote. Checkpoints
    # are folders that are renamed: the bucket needs a hierarchical namespace.
    gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 \
      --metadata-cache-negative-ttl-secs=0 "${share#gs://}" "$target"
    ;;
  *:/*)
    if ! command -v mount.nfs >/dev/null; then
      sudo apt-get update -qq
      sudo apt-get install -qq -y nfs-common
    fi
    # nolock: the lock of a workdir stays on its host. The server would keep
    # that of a host that vanished, and the next start would wait for nobody.
    sudo mount -t nfs -o vers=3,nolock "$share" "$target"
    sudo mkdir -p "$target/runs"
    sudo chmod 1777 "$target/runs"
    ;;
  *)
    echo "mount.sh: $share is neither HOST:/PATH nor gs://BUCKET" >&2
    exit 2
    ;;
esac
