#!/bin/bash
# What has to be right after each boot: the first, on which the recipe is
# followed, another, and one without the disk. See run.
set -euo pipefail
exec 2>&1
: >/root/log
fail() {
  echo "FAILED: $*"
  systemctl status --no-pager cantus var-lib-cantus.mount systemd-cryptsetup@cantus || true
  journalctl --no-pager -b -p notice | tail -60
  exit 1
}
trap 'fail "line $LINENO"' ERR
export HOME=/root CANTUS_SERVER=nats://127.0.0.1:4222

if [ ! -e /usr/bin/cantus ]; then
  boot=first
  dpkg -i /root/cantus.deb
  bash -euxo pipefail /root/recipe
  sed "s/UUID=[0-9a-f-]*/UUID=$(blkid -s UUID -o value /dev/ubdb)/" /root/crypttab >>/etc/crypttab
  cat /root/fstab >>/etc/fstab
  sed -i 's|^data: .*|data: /var/lib/cantus/data|' /etc/cantus/cantus.yaml
  systemctl daemon-reload
  systemctl enable --now cantus
  echo hello | cantus append 0
elif [ -e /dev/ubdb ]; then
  boot=second
  systemctl start cantus # returns once it serves
  [ "$(findmnt -n -o SOURCE /var/lib/cantus)" = /dev/mapper/cantus ]
  cantus read 0 | grep hello
  # How long the next boot waits for the disk, which here takes long to open.
  mkdir -p /etc/systemd/system.conf.d
  printf '[Manager]\nDefaultTimeoutStartSec=20s\nDefaultDeviceTimeoutSec=20s\n' >/etc/systemd/system.conf.d/test.conf
else
  boot=without
  systemctl --quiet is-active multi-user.target
  if systemctl --quiet is-active cantus; then fail "the node serves without its disk"; fi
  if systemctl start cantus >/root/start 2>&1; then fail "the node starts without its disk"; fi
  grep 'A dependency job for cantus.service failed' /root/start
  [ -z "$(ls -A /var/lib/cantus)" ]
fi
if [ $boot != without ]; then
  [ "$(stat -c %U:%a /var/lib/cantus)" = cantus:700 ]
  [ -e /var/lib/cantus/data/cluster.key ]
fi
echo "passed: $boot"
