#!/bin/bash
# What the package has to do, on a Debian whose systemd runs. See run.
set -euo pipefail
fail() { echo "FAILED: $*"; journalctl --no-pager -u cantus | tail -40; systemctl status --no-pager cantus || true; exit 1; }
not() { if "$@"; then fail "not $*"; fi; }
step() { echo "== $*"; }
main_pid() { systemctl show -p MainPID --value cantus; }
until_true() { # waits for a condition
  for ((i = 0; i < 600; i++)); do if "$@"; then return 0; fi; sleep 0.1; done
  fail "never: $*"
}
export HOME=/root CANTUS_SERVER=nats://127.0.0.1:4222
trap 'fail "line $LINENO"' ERR

step "install"
cd /root
mv old.deb cantus_0.1.0_amd64.deb
mv new.deb cantus_0.2.0_amd64.deb
apt install -y ./cantus_0.1.0_amd64.deb
id cantus
[ "$(stat -c %U:%G:%a /etc/cantus)" = root:cantus:750 ]
not systemctl --quiet is-active cantus
not systemctl --quiet is-enabled cantus
cantus config check /etc/cantus/cantus.yaml
for file in /usr/share/man/man1/cantus.1.gz /usr/share/bash-completion/completions/cantus; do dpkg -L cantus | grep -x "$file"; done

step "the node runs under its unit"
systemctl enable --now cantus # returns once the node is ready
systemctl --no-pager status cantus
[ "$(stat -c %U "/proc/$(main_pid)")" = cantus ]
[ "$(stat -c %U:%a /var/lib/cantus)" = cantus:700 ]
[ "$(systemctl show -p StatusText --value cantus)" = serving ]
[ "$(systemctl show -p LimitNOFILE --value cantus)" = 524288 ] # which a container may not reach
grep -q '^NoNewPrivs:.*1' "/proc/$(main_pid)/status"
grep -q '^CapEff:.*0000000000000000' "/proc/$(main_pid)/status"
echo hello | cantus append 0

step "reload"
pid=$(main_pid)
systemctl reload cantus
[ "$(main_pid)" = "$pid" ]
[ "$(systemctl show -p StatusText --value cantus)" = serving ]
echo "partitons: 2" >>/etc/cantus/cantus.yaml
systemctl reload cantus
[ "$(main_pid)" = "$pid" ]
systemctl show -p StatusText --value cantus | grep 'the reload failed'
sed -i '$d' /etc/cantus/cantus.yaml

step "the watchdog replaces a process that does not run"
mkdir -p /run/systemd/system/cantus.service.d
printf '[Service]\nWatchdogSec=4s\n' >/run/systemd/system/cantus.service.d/test.conf
systemctl daemon-reload
systemctl restart cantus
pid=$(main_pid)
sleep 6 # longer than the watchdog's time: it has to be satisfied meanwhile
[ "$(main_pid)" = "$pid" ]
kill -STOP "$pid"
replaced() { [ "$(main_pid)" != "$pid" ] && [ "$(main_pid)" != 0 ] && systemctl --quiet is-active cantus; }
until_true replaced
journalctl --no-pager -u cantus | grep 'Watchdog timeout'
[ "$(systemctl show -p NRestarts --value cantus)" = 1 ]
cantus read 0 | grep hello
rm -r /run/systemd/system/cantus.service.d
systemctl daemon-reload

step "a mistake in the settings ends the start, and is not tried again"
cp /etc/cantus/cantus.yaml /root/cantus.yaml
echo "partitons: 2" >>/etc/cantus/cantus.yaml
not systemctl restart cantus
[ "$(systemctl show -p ExecMainStatus --value cantus)" = 2 ]
systemctl --quiet is-failed cantus
cp /root/cantus.yaml /etc/cantus/cantus.yaml
systemctl start cantus

step "upgrade"
echo "log-level: debug" >>/etc/cantus/cantus.yaml # an operator's change
pid=$(main_pid)
before=$(cantus version)
apt install -y ./cantus_0.2.0_amd64.deb </dev/null
[ "$(main_pid)" = "$pid" ] # it goes on
[ "$(cantus version)" != "$before" ]
grep -q '^log-level: debug$' /etc/cantus/cantus.yaml
systemctl restart cantus
journalctl --no-pager -u cantus | grep -c 'level=DEBUG'
cantus read 0 | grep hello

step "remove"
apt remove -y cantus
not systemctl --quiet is-active cantus
not test -e /usr/bin/cantus
test -e /etc/cantus/cantus.yaml
[ -n "$(ls -A /var/lib/cantus)" ]

step "purge"
apt purge -y cantus | tee /root/purge
grep -q '/var/lib/cantus, which may hold transactions' /root/purge
not test -e /etc/cantus/cantus.yaml
[ -n "$(ls -A /var/lib/cantus)" ]
id cantus

step "install again: the log is there"
apt install -y ./cantus_0.2.0_amd64.deb
systemctl start cantus
cantus read 0 | grep hello
step "passed"
touch /root/passed
